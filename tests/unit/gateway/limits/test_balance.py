"""What gateways hold of a shared limit, against a plain account of what Redis does with their requests."""

import math
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.limits.balance import (
    LEASE_EXPIRES_SECONDS,
    SLOTS_EXPIRE_SECONDS,
    TICK_SECONDS,
    Mode,
    RateAsk,
    RateBalance,
    SlotsAsk,
    SlotsBalance,
)
from gateway.limits.script import SCRIPT

GATEWAYS = 3
MODES: tuple[Mode, ...] = ("local_share", "deny", "allow")
TINY = 1e-6


@dataclass
class Shared:
    """A rate's bucket as `script` has it."""

    full_at: float = -math.inf

    def answer(self, now: float, ask: RateAsk) -> tuple[float, float]:
        rate, burst, settle, want, least = ask
        self.full_at = max(max(self.full_at, now) + settle / rate, now)
        left = burst - (self.full_at - now) * rate
        granted = 0.0
        if want > 0 and left >= min(least, burst):
            granted = max(least, min(want, left))
            self.full_at += granted / rate
        return granted, left - granted


@dataclass
class SharedSlots:
    """Slots as `script` has them; without turns for what does not divide."""

    entries: dict[int, tuple[int, int, float]] = field(default_factory=dict)

    def answer(self, me: int, now: float, ask: SlotsAsk) -> tuple[float, float]:
        most, keep, wish = ask
        self.entries = {who: entry for who, entry in self.entries.items() if entry[2] > now}
        others = {who: entry for who, entry in self.entries.items() if who != me}
        start = 1 if most >= GATEWAYS else 0
        room = most - start * (GATEWAYS - len(others) - 1)
        free = room - sum(max(held, start) for held, _, _ in others.values())
        target = fair(max(wish, start), [max(other, start) for _, other, _ in others.values()], room)
        held = max(keep, min(wish, target, free))
        self.entries[me] = (held, wish, now + SLOTS_EXPIRE_SECONDS)
        return held, target


def fair(mine: int, others: list[int], room: int) -> int:
    wishes = sorted([mine, *others])
    while wishes and wishes[0] * len(wishes) <= room:
        room -= wishes[0]
        if mine == wishes.pop(0):
            return mine
    return room // len(wishes)


@dataclass
class Rates:
    """Gateways that share a rate."""

    rate: float
    burst: float
    shared: Shared = field(default_factory=Shared)
    taken: list[tuple[float, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.balances = [RateBalance(self.rate, self.burst, "deny") for _ in range(GATEWAYS)]

    def step(self, which: int, now: float, amount: float, action: str) -> None:
        balance = self.balances[which]
        if action == "take":
            waits = [balance.take(now, amount, gateways=GATEWAYS, away=False) for _ in range(10)]
            self.taken += [(now, amount)] * waits.count(0.0)
        elif action == "give_back":
            if balance.take(now, amount, gateways=GATEWAYS, away=False) == 0.0:
                balance.give_back(amount)
        elif action == "wait":
            if balance.soon(now, amount, away=False):
                balance.want(amount)
                self.step(which, now, amount, "tick")
                if balance.take(now, amount, gateways=GATEWAYS, away=False) == 0.0:
                    self.taken.append((now, amount))
        elif (ask := balance.ask(now)) is not None:
            granted, left = self.shared.answer(now, ask)
            if action == "tick":
                balance.answered(now, now, granted, left)
            else:
                balance.unanswered()


RateStep = tuple[int, float, float, str]
RATE_STEPS = st.lists(
    st.tuples(
        st.integers(0, GATEWAYS - 1),
        st.sampled_from((0.0, 0.0, 0.01, 0.05, 0.3, 1.1, 11.0)),
        st.sampled_from((0.5, 1.0, 1.0, 1.0, 3.0)),
        st.sampled_from(("take", "take", "take", "take", "tick", "tick", "lost", "give_back", "wait")),
    ),
    max_size=100,
)


@settings(deadline=None)
@given(RATE_STEPS, st.sampled_from((0.5, 4.0, 20.0, 200.0)), st.sampled_from((1.0, 5.0, 50.0)))
def test_all_gateways_together_stay_within_the_stated_bound(steps: list[RateStep], rate: float, burst: float) -> None:
    """Whatever they take and give back, whenever they ask, and whichever answers are lost."""
    rates = Rates(rate, burst)
    now = 0.0
    for which, step, amount, action in steps:
        now += step
        rates.step(which, now, amount, action)

    largest = max((amount for _, amount in rates.taken), default=0.0)
    lease = max(1.0, rate * 0.25, largest)
    start = max(1.0, min(rate * 0.25, burst) / GATEWAYS, largest)
    for first in range(len(rates.taken)):
        total = 0.0
        for then, amount in rates.taken[first:]:
            total += amount
            bound = max(burst, rate * 0.1, largest) + rate * (then - rates.taken[first][0]) + GATEWAYS * (lease + start)
            assert total <= bound + TINY


@dataclass
class Sharers:
    """Gateways that share slots, each heard of in time: no slots expire under the calls that use them."""

    most: int
    shared: SharedSlots = field(default_factory=SharedSlots)
    now: float = 0.0

    def __post_init__(self) -> None:
        self.balances = [SlotsBalance(self.most, "deny") for _ in range(GATEWAYS)]
        self.heard_at = [0.0] * GATEWAYS

    @property
    def in_use(self) -> int:
        return sum(balance.in_use for balance in self.balances)

    def advance(self, seconds: float) -> None:
        if self.now + seconds - min(self.heard_at) > SLOTS_EXPIRE_SECONDS - 2 * TICK_SECONDS:
            for which in range(GATEWAYS):
                self.tick(which, "tick")
                self.heard_at[which] = self.now
        self.now += seconds

    def step(self, which: int, action: str) -> None:
        if action == "take":
            self.take(which)
        elif action == "release":
            if self.balances[which].in_use:
                self.balances[which].release()
        elif action == "want":
            if self.balances[which].soon(self.now, away=False):
                self.balances[which].want()
        else:
            self.tick(which, action)

    def take(self, which: int) -> bool:
        return self.balances[which].take(self.now, gateways=GATEWAYS, away=False)

    def tick(self, which: int, how: str = "tick") -> None:
        ask = self.balances[which].ask(self.now)
        if ask is None:
            return
        answer = self.shared.answer(which, self.now, ask)
        if how == "halfway":
            while self.take(which):
                pass
        if how == "lost":
            self.balances[which].unanswered()
        else:
            self.balances[which].answered(self.now, self.now, *answer)
            self.heard_at[which] = self.now


SLOT_STEPS = st.lists(
    st.tuples(
        st.integers(0, GATEWAYS - 1),
        st.sampled_from((0.0, 0.0, 0.01, 0.05, 0.6, 2.85)),
        st.sampled_from(("take", "take", "take", "want", "release", "tick", "tick", "lost", "halfway")),
    ),
    max_size=100,
)


@settings(deadline=None)
@given(SLOT_STEPS, st.sampled_from((1, 2, 3, 4, 7, 20)))
def test_all_gateways_together_never_use_more_than_the_limit(steps: list[tuple[int, float, str]], most: int) -> None:
    """Whatever they take and release, whenever they ask, whatever happens between a question and its answer."""
    sharers = Sharers(most)

    for which, step, action in steps:
        sharers.advance(step)
        sharers.step(which, action)
        assert sharers.in_use <= most


def test_an_idle_bucket_starts_on_credit_that_is_charged_at_the_next_tick() -> None:
    balance = RateBalance(100, 100, "deny")

    taken = sum(balance.take(0, gateways=GATEWAYS, away=False) == 0.0 for _ in range(50))

    assert taken == 8  # a lease of 25, by three
    ask = balance.ask(0)
    assert ask is not None
    assert ask.settle == 8
    assert ask.want > 0


@given(
    gaps=st.lists(st.sampled_from((1 / 40, 1 / 20, 0.1, 0.4, 0.95, 1.0, 1.05, 1.2, 1.5, 1.95, 2.5, 11.0)), max_size=40),
    gateways=st.sampled_from((1, 3)),
)
@settings(deadline=None)
def test_a_caller_far_below_a_rate_is_never_refused(gaps: list[float], gateways: int) -> None:
    balance, shared, now, tick = RateBalance(100, 100, "deny"), Shared(), 0.0, 0.0

    for gap in gaps:
        now += gap
        while tick <= now:
            if (ask := balance.ask(tick)) is not None:
                balance.answered(tick, tick, *shared.answer(tick, ask))
            tick += TICK_SECONDS
        assert balance.take(now, gateways=gateways, away=False) == 0.0


def test_a_burst_after_a_single_call_has_what_is_there() -> None:
    balance, shared = RateBalance(100, 100, "deny"), Shared()
    balance.take(0, gateways=1, away=False)
    balance.answered(0, 0, *shared.answer(0, asked(balance, 0)))

    taken = [balance.take(0.01, gateways=1, away=False) for _ in range(50)].count(0.0)

    assert taken >= 2 * (balance.lease - 1)  # a lease, and a start


def test_what_is_wanted_is_leased_whatever_the_lease() -> None:
    rate, shared, slots, sharers = RateBalance(100, 100, "deny"), Shared(), SlotsBalance(100, "deny"), SharedSlots()
    for _ in range(60):
        assert rate.soon(0, 1, away=False)
        assert slots.soon(0, away=False)
        rate.want(1)
        slots.want()

    rate.answered(0, 0, *shared.answer(0, asked(rate, 0)))
    ask = slots.ask(0)
    assert ask is not None
    slots.answered(0, 0, *sharers.answer(0, 0, ask))

    assert sum(rate.take(0, gateways=GATEWAYS, away=False) == 0.0 for _ in range(60)) == 60
    assert sum(slots.take(0, gateways=GATEWAYS, away=False) for _ in range(60)) == 60


def test_nobody_is_to_wait_for_what_is_not_there() -> None:
    rate, slots = RateBalance(100, 100, "deny"), SlotsBalance(9, "deny")
    rate.take(0, gateways=1, away=False)
    asked(rate, 0)
    rate.answered(0, 0, 1, 3)  # three are left
    slots.take(0, gateways=1, away=False)
    slots.want()
    slots.ask(0)
    slots.answered(0, 0, 1, 1)  # two were wished for

    assert [rate.soon(0, amount, away=False) for amount in (3, 4)] == [True, False]
    assert not slots.soon(0, away=False)
    assert not RateBalance(100, 100, "deny").soon(0, 1, away=True)
    assert not SlotsBalance(9, "deny").soon(0, away=True)
    assert SlotsBalance(9, "deny").soon(0, away=False)


def test_a_question_under_way_is_no_answer() -> None:
    slots = SlotsBalance(100, "deny")
    slots.take(0, gateways=1, away=False)
    slots.ask(0)
    slots.answered(0, 0, 2, 2)
    for _ in range(20):
        slots.want()
    slots.ask(0.05)

    assert slots.soon(0.06, away=False)


def test_credit_ends_where_nobody_charges_it() -> None:
    balance = RateBalance(100, 100, "deny")

    taken = sum(balance.take(at / 10, gateways=GATEWAYS, away=False) == 0.0 for at in range(1000))

    assert taken == 8


def test_credit_is_no_way_around_a_slow_rate() -> None:
    """One call, forgotten, and again: the credit itself is limited to the gateway's share."""
    balance = RateBalance(0.03, 1, "deny")
    shared = Shared()
    taken = 0

    for second in (half / 2 for half in range(2000)):
        taken += balance.take(second, gateways=GATEWAYS, away=False) == 0.0
        ask = balance.ask(second)
        if ask is not None:
            balance.answered(second, second, *shared.answer(second, ask))

    assert 29 <= taken <= 33


def test_unspent_tokens_go_back_after_a_second_and_then_all_is_quiet() -> None:
    balance, shared = RateBalance(100, 100, "deny"), Shared()
    balance.take(0, gateways=1, away=False)
    balance.answered(0, 0, *shared.answer(0, asked(balance, 0)))
    held = balance.left(0) - (100 - (shared.full_at * 100))
    assert held > 0

    ask = asked(balance, LEASE_EXPIRES_SECONDS)
    balance.answered(1, 1, *shared.answer(1, ask))

    assert ask.settle == pytest.approx(-held)
    assert ask.want == 0
    assert balance.quiet(1)
    assert balance.ask(1.1) is None
    assert not balance.forgettable(5)
    assert balance.forgettable(10)


def asked(balance: RateBalance, now: float) -> RateAsk:
    ask = balance.ask(now)
    assert ask is not None
    return ask


def test_who_waits_the_told_time_finds_it_leased() -> None:
    balance, shared = RateBalance(10, 10, "deny"), Shared()
    now = 0.0
    while (wait := balance.take(now, 4, gateways=1, away=False)) == 0.0:
        balance.answered(now, now, *shared.answer(now, asked(balance, now)))
    come_back_at = now + wait

    while now < come_back_at:
        ask = balance.ask(now)
        if ask is not None:
            balance.answered(now, now, *shared.answer(now, ask))
        now += TICK_SECONDS

    assert balance.take(come_back_at, 4, gateways=1, away=False) == 0.0


def test_a_large_amount_is_leased_from_a_full_bucket() -> None:
    balance, shared = RateBalance(10, 10, "deny"), Shared()
    balance.take(0, gateways=1, away=False)
    balance.answered(0, 0, *shared.answer(0, asked(balance, 0)))
    assert balance.take(0, 50, gateways=1, away=False) > 0

    now = 0.0
    while balance.take(now, 50, gateways=1, away=False) > 0:
        now += TICK_SECONDS
        if (ask := balance.ask(now)) is not None:
            balance.answered(now, now, *shared.answer(now, ask))
        assert now < 3

    assert balance.left(now) == pytest.approx(10 - 51 + 10 * now)


@pytest.mark.parametrize("mode", MODES)
def test_without_redis_a_rate_lives_by_its_mode(mode: Mode) -> None:
    balance = RateBalance(30, 30, mode)

    taken = sum(balance.take(0, gateways=GATEWAYS, away=True) == 0.0 for _ in range(100))

    assert taken == {"local_share": 10, "deny": 0, "allow": 100}[mode]
    waited = sum(balance.take(1, gateways=GATEWAYS, away=True) == 0.0 for _ in range(100))
    assert waited == {"local_share": 10, "deny": 0, "allow": 100}[mode]


def test_what_was_allowed_for_nothing_is_given_back_for_nothing() -> None:
    """Else whatever another limit refuses meanwhile would refill the bucket of all gateways."""
    balance = RateBalance(30, 30, "allow")
    for _ in range(100):
        balance.take(0, gateways=GATEWAYS, away=True)
        balance.give_back(1)

    ask = balance.ask(1)

    assert ask is None or ask.settle >= 0


def test_what_was_spent_by_local_share_is_charged_when_redis_is_back() -> None:
    balance, shared = RateBalance(30, 30, "local_share"), Shared()
    for _ in range(10):
        balance.take(0, gateways=GATEWAYS, away=True)
    assert balance.left(0) == pytest.approx(0)
    assert balance.reset_after(0) == pytest.approx(1)

    first = asked(balance, 0.5)
    balance.unanswered()
    second = asked(balance, 0.5)
    balance.answered(0.5, 0.5, *shared.answer(0.5, second))

    assert first.settle == second.settle == pytest.approx(5)
    assert balance.left(0.5) == pytest.approx(25)


def test_debts_are_sent_until_they_are_answered_and_gifts_only_once() -> None:
    balance = RateBalance(100, 100, "deny")
    balance.take(0, 5, gateways=1, away=False)
    balance.give_back(2)
    assert asked(balance, 0).settle == 3

    balance.give_back(4)
    balance.unanswered()

    assert asked(balance, 0).settle == -1  # what the lost request said, less what came back since


@pytest.mark.parametrize("mode", MODES)
def test_without_redis_slots_live_by_their_lease_and_then_by_their_mode(mode: Mode) -> None:
    balance = SlotsBalance(9, mode)
    assert balance.take(0, gateways=GATEWAYS, away=False)
    assert isinstance(balance.ask(0), SlotsAsk)
    balance.answered(0, 0, 4, 9)

    leased = sum(balance.take(1, gateways=GATEWAYS, away=True) for _ in range(20))
    for _ in range(balance.in_use):
        balance.release()
    alone = sum(balance.take(SLOTS_EXPIRE_SECONDS, gateways=GATEWAYS, away=True) for _ in range(20))

    assert leased == {"local_share": 3, "deny": 3, "allow": 20}[mode]
    assert alone == {"local_share": 3, "deny": 0, "allow": 20}[mode]


def test_slots_that_are_not_needed_go_back() -> None:
    sharers = Sharers(20)
    balance = sharers.balances[0]
    for _ in range(20):
        sharers.take(0)
        sharers.take(0)
        sharers.tick(0)
        sharers.advance(TICK_SECONDS)
    assert balance.in_use == 18  # the other two gateways have one each

    while balance.in_use:
        balance.release()
    for _ in range(59):
        sharers.tick(0)
        sharers.now += TICK_SECONDS

    assert balance.quiet(sharers.now)
    assert sharers.shared.entries[0][:2] == (0, 0)
    assert balance.ask(sharers.now) is None


def test_what_is_about_to_go_back_is_not_taken_any_more() -> None:
    """From the question on, not only from the answer: Redis may have given it to others by then."""
    balance = SlotsBalance(20, "deny")
    balance.take(0, gateways=GATEWAYS, away=False)
    assert balance.ask(0) is not None
    balance.answered(0, 0, 18, 18)
    balance.release()

    ask = balance.ask(TICK_SECONDS)

    assert ask is not None
    taken = sum(balance.take(TICK_SECONDS, gateways=GATEWAYS, away=False) for _ in range(20))
    assert taken == max(ask.keep, 1)
    assert taken < 18


def test_a_settled_bucket_asks_only_to_renew() -> None:
    sharers = Sharers(20)
    balance = sharers.balances[0]
    sharers.take(0)
    asks = 0
    for tick in range(200):
        ask = balance.ask(tick * TICK_SECONDS)
        if ask is not None:
            asks += 1
            balance.answered(tick * TICK_SECONDS, 0, *sharers.shared.answer(0, tick * TICK_SECONDS, ask))

    assert 20 <= asks <= 25  # ten seconds, one each half second, and the beginning


def test_use_that_goes_up_and_down_asks_only_to_renew() -> None:
    """Calls end and begin all the time: that is no news for the other gateways."""
    sharers = Sharers(100)
    balance = sharers.balances[0]
    asks = 0
    for tick in range(200):
        in_use = 30 - tick * 7 % 8
        while balance.in_use > in_use:
            balance.release()
        while balance.in_use < in_use and balance.take(tick * TICK_SECONDS, gateways=GATEWAYS, away=False):
            pass
        balance.want()
        ask = balance.ask(tick * TICK_SECONDS)
        if ask is not None:
            asks += 1
            balance.answered(tick * TICK_SECONDS, 0, *sharers.shared.answer(0, tick * TICK_SECONDS, ask))

    assert 20 <= asks <= 30  # ten seconds, one each half second, and the beginning
    assert 30 <= sharers.shared.entries[0][1] <= 48


def test_who_holds_more_than_a_fair_part_lets_it_go_as_its_calls_end() -> None:
    sharers = Sharers(10)
    greedy, late = sharers.balances[:2]
    for _ in range(10):
        sharers.take(0)
        sharers.tick(0)
        sharers.advance(TICK_SECONDS)
    assert greedy.in_use == 8

    for _ in range(100):
        if greedy.in_use:
            greedy.release()
        for which in (0, 1):
            while sharers.take(which):
                pass
            sharers.tick(which)
        sharers.advance(TICK_SECONDS)

    assert abs(greedy.in_use - late.in_use) <= 2
    assert greedy.in_use + late.in_use >= 8


def test_other_limits_hold_at_once() -> None:
    rate, slots = RateBalance(100, 100, "deny"), SlotsBalance(3, "deny")

    rate.change(10, 10)
    slots.change(2)

    assert rate.left(0) == 10
    assert rate.lease == 2.5
    assert not slots.take(0, gateways=GATEWAYS, away=False)
    with pytest.raises(ValueError, match="not a limit"):
        rate.change(0, 1)


def test_a_farewell_hands_back_what_is_not_spent_and_pays_what_is_owed() -> None:
    rate = RateBalance(100, 100, "deny")
    rate.take(0, gateways=1, away=False)
    assert rate.ask(0) is not None
    rate.answered(0, 0, 7, 92)
    rate.take(0, 3, gateways=1, away=False)

    last = rate.farewell()

    assert last is not None
    assert (last.settle, last.want) == (-4, 0)
    assert rate.farewell() is None

    slots = SlotsBalance(9, "deny")
    assert slots.farewell() is None
    slots.take(0, gateways=1, away=False)
    slots.ask(0)
    slots.answered(0, 0, 5, 9)
    slots.release()
    assert slots.farewell() == SlotsAsk(9, 0, 0)


def test_what_is_given_back_while_redis_is_away_can_be_taken_again() -> None:
    balance = RateBalance(3, 3, "local_share")

    assert balance.take(0, gateways=GATEWAYS, away=True) == 0.0
    assert balance.take(0, gateways=GATEWAYS, away=True) > 0.0
    balance.give_back(1)

    assert balance.take(0, gateways=GATEWAYS, away=True) == 0.0


def test_a_slot_that_was_not_taken_cannot_be_released() -> None:
    with pytest.raises(ValueError, match="more slots than were taken"):
        SlotsBalance(1, "deny").release()


def test_an_unanswered_question_is_asked_again() -> None:
    balance = SlotsBalance(9, "deny")
    balance.take(0, gateways=GATEWAYS, away=False)
    first = balance.ask(0)

    balance.unanswered()

    assert balance.ask(0) == first
    balance.answered(0, 0, 3, 9)
    assert not balance.forgettable(0)
    balance.release()
    for tick in range(300):
        if balance.ask(tick * TICK_SECONDS) is not None:
            balance.answered(tick * TICK_SECONDS, 0, 0, 9)
    assert balance.forgettable(15)


def test_the_script_takes_what_is_asked_in_its_order() -> None:
    """The numbers go to Redis as the tuples have them."""
    names: dict[str, Any] = {"rate": RateAsk._fields, "slots": SlotsAsk._fields}

    assert names["rate"] == ("rate_per_second", "burst", "settle", "want", "least")
    assert names["slots"] == ("most", "keep", "wish")
    assert "rate(key, per_second, burst, settle, want, least)" in SCRIPT
    assert "slots(key, most, keep, wish)" in SCRIPT
