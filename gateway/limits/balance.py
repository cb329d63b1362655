"""What one gateway holds of a shared limit, and what it asks Redis for. Pure; the clock is an argument (seconds).

Each balance is asked once a tick for what to send (`ask`, None where nothing is to be sent), and is told the answer
(`answered`) or that none came (`unanswered`) before it is asked again. Takes may come at any time in between.
"""

import math
from typing import Literal, NamedTuple, Protocol

from gateway.limits.gcra import Gcra

TICK_SECONDS = 0.05
LEASE_SECONDS = 0.25
"""A gateway leases ahead at most what the limit allows in this time."""
LEASE_EXPIRES_SECONDS = 1.0
"""Leased tokens that nobody spends for longer go back."""
SLOTS_EXPIRE_SECONDS = 3.0
"""Slots of a gateway that is not heard of for longer are free for others."""
SLOTS_RENEW_SECONDS = 0.5
FORGET_SECONDS = 10.0
"""A bucket that nobody uses for longer is forgotten."""

_PLENTY_SHARE = 0.25
"""Of what the shared bucket has, so much is leased ahead though nobody needs it: more may come at once."""
_DEMAND_KEPT = 1 - TICK_SECONDS / LEASE_SECONDS  # steady use sums up to what LEASE_SECONDS of it need

Mode = Literal["local_share", "deny", "allow"]
"""While Redis is away: the limit divided by the live gateways, nothing beyond what is leased, or everything."""


class RateAsk(NamedTuple):
    """What a rate asks Redis for; `script` takes it in this order."""

    rate_per_second: float
    burst: float
    settle: float
    """Spent without a lease and to be charged whatever is left, less what is handed back."""
    want: float
    """To lease at most; 0 to lease nothing."""
    least: float
    """Less is of no use: then nothing is leased. Above the burst: leased from a full bucket, into debt."""


class SlotsAsk(NamedTuple):
    """What a concurrency limit asks Redis for; `script` takes it in this order."""

    most: int
    keep: int
    """Held before, and still: all that may be taken until the answer."""
    wish: int
    """To hold, if nobody else needs it."""


class Balance(Protocol):
    """What is common to both, for whoever talks to Redis."""

    def ask(self, now: float) -> RateAsk | SlotsAsk | None:
        """What to send now; None where nothing is to be sent."""
        ...

    def answered(self, asked_at: float, now: float, first: float, second: float) -> None:
        """The two numbers that `script` gave for what was asked last, at `asked_at`."""
        ...

    def unanswered(self) -> None:
        """No answer came for what was asked last."""
        ...

    def farewell(self) -> RateAsk | SlotsAsk | None:
        """What to send last: all goes back. None where there is nothing."""
        ...

    def quiet(self, now: float) -> bool:
        """Whether there is nothing to ask until it is used again."""
        ...

    def forgettable(self, now: float) -> bool:
        """Whether a new one would do as well."""
        ...


class RateBalance:
    """Tokens leased from a shared bucket.

    Per gateway, `lease` tokens at most are unspent, or what the largest refused amount needs. What is not leased and
    should be there, by the last answer or for want of a recent one, is taken on credit: up to `start` tokens, refilled
    at the gateway's share of the rate, and charged to the shared bucket at the next tick.
    """

    def __init__(self, rate_per_second: float, burst: float, mode: Mode) -> None:
        self._mode = mode
        self._tokens = 0.0
        self._tokens_until = -math.inf
        self._owed = 0.0  # spent without a lease
        self._back = 0.0  # to be handed back, not to be spent
        self._free = 0.0  # allowed while Redis was away, and counted nowhere
        self._sent_owed = 0.0
        self._sent_spent = 0.0  # that part of it which the share will tell again
        self._used = 0.0  # taken or refused since the last tick
        self._demand = 0.0
        self._wanted = 0.0  # since the last tick, by calls that wait for it
        self._refused_least = math.inf
        self._refused_most = 0.0
        self._refused_until = -math.inf
        self._left = 0.0
        self._answered_at = -math.inf
        self._touched_at = -math.inf
        self._credit: Gcra | None = None
        self._share: Gcra | None = None  # what counts while Redis is away
        self.change(rate_per_second, burst)

    @property
    def lease(self) -> float:
        """The most tokens that are leased ahead of single-token takes."""
        return max(1.0, self._rate * LEASE_SECONDS)

    def change(self, rate_per_second: float, burst: float) -> None:
        """Limit otherwise from now on."""
        Gcra(rate_per_second, burst)  # raises where it is no limit
        self._rate = rate_per_second
        self._burst = burst
        # What comes in between two ticks must fit in, or else it is lost before anybody can lease it.
        self._shared_burst = max(burst, rate_per_second * 2 * TICK_SECONDS)

    def spend(self, now: float, amount: float) -> bool:
        """Take it from what is leased, as `take` would; False, and nothing is taken, where that does not suffice."""
        if self._tokens < amount or now >= self._tokens_until:
            return False
        self._touched_at = now
        self._used += amount
        self._tokens -= amount
        return True

    def take(self, now: float, amount: float = 1.0, *, gateways: int, away: bool) -> float:
        """As `Rate.take`. Waits that it tells are estimates: others may take what is there by then."""
        if self.spend(now, amount):
            return 0.0
        self._touched_at = now
        if now >= self._tokens_until:
            self._hand_back_tokens()
        self._used += amount
        if away:
            return self._take_alone(now, amount, gateways)
        unknown = now - self._answered_at >= LEASE_EXPIRES_SECONDS
        if (unknown or self._is_there(now, amount)) and self._take_on_credit(now, amount, gateways):
            return 0.0
        return self._refuse(now, amount)

    def soon(self, now: float, amount: float, *, away: bool) -> bool:
        """As `Rate.soon`."""
        return not away and self._is_there(now, self._wanted + amount)

    def want(self, amount: float) -> None:
        """As `Rate.want`."""
        self._wanted += amount

    def give_back(self, amount: float) -> None:
        """Undo a take, or a part of one; it goes back to the shared bucket at the next tick."""
        free = min(self._free, amount)
        self._free -= free
        amount -= free
        if self._share is not None:
            self._share.give_back(amount)
            return
        paid = min(self._owed, amount)
        self._owed -= paid
        self._back += amount - paid

    def left(self, now: float) -> float:
        """What the shared bucket had at the last answer, refilled since, and what is in hand."""
        if self._share is not None:
            return self._share.left(now)
        tokens = self._tokens if now < self._tokens_until else 0.0
        return min(self._burst, self._shared_left(now) + tokens + self._back - self._owed)

    def reset_after(self, now: float) -> float:
        """Seconds until the shared bucket is full, if nobody takes from it."""
        if self._share is not None:
            return self._share.reset_after(now)
        return (self._burst - self.left(now)) / self._rate

    def ask(self, now: float) -> RateAsk | None:
        """What to settle and to lease."""
        if now >= self._tokens_until:
            self._hand_back_tokens()
        used, self._used = self._used, 0.0
        self._demand = self._demand * _DEMAND_KEPT + used
        want, least = self._to_lease(now, used)
        self._sent_spent = 0.0 if self._share is None else self._share.burst - self._share.left(now)
        settle = self._owed + self._sent_spent - self._back
        self._sent_owed, self._owed, self._back = self._owed, 0.0, 0.0
        if not settle and not want and self._share is None:
            self._sent_owed = 0.0
            return None
        return RateAsk(self._rate, self._shared_burst, settle, want, least)

    def answered(self, asked_at: float, now: float, first: float, second: float) -> None:  # noqa: ARG002  as Balance has it
        """Redis granted `first`, and has `second` left."""
        if first > 0:
            self._tokens += first
            self._tokens_until = now + LEASE_EXPIRES_SECONDS
        if self._tokens >= self._refused_least:
            self._forget_refused()
        self._left = second
        self._answered_at = now
        self._sent_owed = self._free = 0.0
        if self._share is not None:  # what was spent alone between the question and the answer
            self._owed += max(0.0, self._share.burst - self._share.left(now) - self._sent_spent)
            self._share = None

    def unanswered(self) -> None:
        """What is owed stays owed. What was handed back is lost: sent twice, it would be granted twice."""
        self._owed += self._sent_owed
        self._sent_owed = 0.0

    def farewell(self) -> RateAsk | None:
        """Hand everything back."""
        settle = self._owed - self._back - self._tokens
        self._tokens = self._owed = self._back = 0.0
        return RateAsk(self._rate, self._shared_burst, settle, 0.0, 0.0) if settle else None

    def quiet(self, now: float) -> bool:
        """Whether nothing is held, owed or waited for."""
        nothing = not (self._tokens or self._owed or self._back or self._used or self._wanted)
        return nothing and self._share is None and now >= self._refused_until

    def forgettable(self, now: float) -> bool:
        """Whether it is quiet, unused for a while, and would not gain credit by it."""
        refilled = self._credit is None or self._credit.reset_after(now) == 0.0
        return refilled and self.quiet(now) and now - self._touched_at >= FORGET_SECONDS

    def _is_there(self, now: float, amount: float) -> bool:
        """Whether the shared bucket has it, by what was told last. Others may have taken it since."""
        return self._shared_left(now) - self._owed - self._sent_owed >= amount

    def _take_on_credit(self, now: float, amount: float, gateways: int) -> bool:
        start = max(1.0, min(self.lease, self._burst) / gateways)
        if self._credit is None:
            self._credit = Gcra(self._rate / gateways, start)
        self._credit.change(self._rate / gateways, start)
        owed = self._owed + self._sent_owed
        if (owed and owed + amount > start) or self._credit.take(now, amount) > 0:
            return False
        self._owed += amount
        return True

    def _take_alone(self, now: float, amount: float, gateways: int) -> float:
        if self._mode == "allow":
            self._free += amount
            return 0.0
        if self._mode == "deny":
            return self._refuse(now, amount)
        rate, burst = self._rate / gateways, max(1.0, self._burst / gateways)
        if self._share is None:
            self._share = Gcra(rate, burst)
            left = max(0.0, self._shared_left(now)) / gateways
            self._share.take(now, max(0.0, burst - left))
        self._share.change(rate, burst)
        return self._share.take(now, amount)

    def _refuse(self, now: float, amount: float) -> float:
        wait = max(0.0, min(amount - self._tokens, self._shared_burst) - self._shared_left(now)) / self._rate
        # It is asked for until whoever was refused has had the time to come back for it.
        self._refused_until = max(self._refused_until, now + min(wait, FORGET_SECONDS) + LEASE_EXPIRES_SECONDS)
        self._refused_least = min(self._refused_least, amount)
        self._refused_most = max(self._refused_most, amount)
        return wait + 2 * TICK_SECONDS  # leased by then: at the first tick after the wait

    def _to_lease(self, now: float, used: float) -> tuple[float, float]:
        """At most how much, and how much at least."""
        if now >= self._refused_until:
            self._forget_refused()
        ahead = min(self.lease, max(1.0, self._demand, self._shared_left(now) * _PLENTY_SHARE))
        wanted, self._wanted = self._wanted, 0.0
        if wanted > self._tokens:
            ahead, used = max(ahead, wanted), max(used, wanted)
        if self._refused_most:
            least = self._refused_least - self._tokens
            there = self._shared_left(now) + TICK_SECONDS * self._rate >= min(least, self._shared_burst)
            return (max(ahead, self._refused_most) - self._tokens, least) if there else (0.0, 0.0)
        if used and self._tokens < max(wanted, ahead / 2):
            want = ahead - self._tokens
            return want, min(want, 1.0)
        return 0.0, 0.0

    def _forget_refused(self) -> None:
        self._refused_least, self._refused_most, self._refused_until = math.inf, 0.0, -math.inf

    def _hand_back_tokens(self) -> None:
        self._back += self._tokens
        self._tokens = 0.0

    def _shared_left(self, now: float) -> float:
        if self._answered_at == -math.inf:
            return self._burst
        return min(self._shared_burst, self._left + max(0.0, now - self._answered_at) * self._rate)


class SlotsBalance:
    """Slots leased of a shared limit of calls at a time.

    Redis keeps one slot for every live gateway that holds none, where the limit has that many: the first call of an
    idle bucket has it at once. A gateway takes only what it holds by Redis' word, lowers that itself before it says so,
    and stops to rely on it before Redis gives it to others: the sum over all gateways never exceeds the limit.
    """

    def __init__(self, most: int, mode: Mode) -> None:
        self._mode = mode
        self._most = most
        self._in_use = 0
        self._held = 0
        self._held_until = -math.inf
        self._renew_at = -math.inf
        self._target = most
        self._used_up = False  # the last answer was less than what was wished for
        self._wished = 0
        self._peak = 0  # in use at a time since the last tick
        self._refused = 0  # since the last tick
        self._wanted = 0  # since the last tick, by calls that wait for one
        self._demand = 0
        self._touched_at = -math.inf

    @property
    def in_use(self) -> int:
        """Slots taken and not released yet."""
        return self._in_use

    def change(self, most: int) -> None:
        """Limit otherwise from now on."""
        self._target = max(0, self._target + most - self._most)
        self._most = most

    def spend(self, now: float) -> bool:
        """Take one of those that are held, as `take` would; False, and nothing is taken, where none is free."""
        in_use = self._in_use
        if in_use >= self._held or in_use >= self._target or now >= self._held_until:
            return False
        self._take_one(now)
        return True

    def take(self, now: float, *, gateways: int, away: bool) -> bool:
        """As `Concurrency.take`."""
        if self.spend(now):
            return True
        if self._in_use >= self._allowed(now, gateways, away=away):
            self._touched_at = now
            self._refused += 1
            return False
        self._take_one(now)
        return True

    def soon(self, now: float, *, away: bool) -> bool:
        """As `Concurrency.soon`: not where the last answer was less than what was wished for."""
        used_up = self._used_up and now < self._held_until
        return not away and not used_up and self._in_use + self._wanted < self._most

    def want(self) -> None:
        """As `Concurrency.want`."""
        self._wanted += 1

    def release(self) -> None:
        """Free a slot that was taken. Raises ValueError where none was."""
        if self._in_use == 0:
            raise ValueError("released more slots than were taken")
        self._in_use -= 1

    def ask(self, now: float) -> SlotsAsk | None:
        """What to keep, and what would be welcome."""
        wish = self._wish()
        if now >= self._held_until:
            self._held = 0
        keep = max(self._in_use, min(self._held, wish, self._target))
        settled = keep == self._held == wish == self._wished
        if settled and (now < self._renew_at or wish == 0):
            return None
        self._held = keep
        self._wished = wish
        return SlotsAsk(self._most, keep, wish)

    def answered(self, asked_at: float, now: float, first: float, second: float) -> None:  # noqa: ARG002  as Balance has it
        """Redis granted `first`; more than `second` would be more than a fair part."""
        self._held = int(first)
        self._target = int(second)
        self._used_up = self._target < self._wished
        # Redis counts from when it was asked, which was later.
        self._held_until = asked_at + SLOTS_EXPIRE_SECONDS - TICK_SECONDS
        self._renew_at = asked_at + SLOTS_RENEW_SECONDS

    def unanswered(self) -> None:
        """What is kept is still held: Redis counts at least that much until it expires."""
        self._wished = -1  # what Redis knows is unknown: ask again

    def farewell(self) -> SlotsAsk | None:
        """Hand everything back that is not in use."""
        had, self._held = self._held or self._wished, self._in_use
        return SlotsAsk(self._most, self._in_use, self._in_use) if had else None

    def quiet(self, now: float) -> bool:
        """Whether nothing is in use, held or wished for."""
        unused = not (self._in_use or self._peak or self._refused or self._wanted or self._demand)
        return unused and (not (self._held or self._wished) or now >= self._held_until)

    def forgettable(self, now: float) -> bool:
        """Whether it is quiet and unused for a while."""
        return self.quiet(now) and now - self._touched_at >= FORGET_SECONDS

    def _take_one(self, now: float) -> None:
        self._touched_at = now
        self._in_use += 1
        self._peak = max(self._peak, self._in_use)

    def _allowed(self, now: float, gateways: int, *, away: bool) -> float:
        if away and self._mode == "allow":
            return math.inf
        start = 1 if self._most >= gateways else 0
        if now < self._held_until:
            return max(min(self._held, self._target), start)
        if not away:
            return start
        return min(self._most, max(1, self._most // gateways)) if self._mode == "local_share" else 0

    def _wish(self) -> int:
        """What was needed of late, and a quarter more. Rises at once, falls slowly, and stays where it does as well."""
        needed = min(self._most, max(self._peak, self._in_use) + max(self._refused, self._wanted))
        self._peak = self._refused = self._wanted = 0
        if needed < self._demand:
            needed = max(needed, self._demand - max(1, (self._demand - needed) // 8))
        self._demand = needed
        # More than the limit may be in use, after Redis was away: what is kept must not exceed what is wished for.
        wish = max(self._in_use, min(self._most, needed + max(1, needed // 4)) if needed else 0)
        near = 0 < needed < self._wished <= wish + max(1, needed // 4)
        return self._wished if near and self._wished <= self._most else wish
