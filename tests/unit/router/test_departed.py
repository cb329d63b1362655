"""Which routers are forgotten, when, and by whom: never one that lives, in the end each that is gone."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gateway.registry import Registry
from headrace.bus.announcements import gateway_key, model_key, parse_key, router_key, statistics_key
from headrace.bus.beacon import Beacon
from headrace.bus.memory.announcements import MemoryAnnouncements
from headrace.bus.protocols import RouterKey
from headrace.bus.v1.announcement_pb2 import (
    ROUTER_STATE_READY,
    Announcement,
    GatewayHeartbeat,
    ModelDescription,
    ModelStatistics,
    RouterHeartbeat,
)
from router.departed import FORGET_SECONDS, MOST_ON_THEIR_WAY, OUTAGE_SECONDS, TURN_SECONDS, Departed
from router.gateways import Gateways
from tests.unit.gateway.announcing import POOL
from tests.unit.router.rig import settle
from tests.unit.router.test_gateways import Links

OWN = RouterKey("m", 1)
FORGET = int(FORGET_SECONDS)
HEARTBEAT = router_key(POOL, "x")
MODEL, STATISTICS = model_key(POOL, "x", "simple"), statistics_key(POOL, "x", "simple")


class Clockwork:
    """A router whose own heartbeats come back once a second for as long as the log works."""

    def __init__(self) -> None:
        self.restated: list[str] = []
        self.departed = Departed(pool=POOL, own=OWN, taken_back=self.restated.append)
        self.log_works = True
        self.now = 100.0
        self.taken: list[str] = []
        self.heartbeat(OWN)

    def hear(self, key: str, announcement: Announcement | None) -> None:
        parsed = parse_key(key)
        assert parsed is not None
        self.departed.apply(parsed, announcement, self.now)

    def heartbeat(self, router: RouterKey, pool: str = POOL) -> None:
        self.hear(router_key(pool, router.id), Announcement(router=RouterHeartbeat(incarnation=router.incarnation)))

    def describe(self, router_id: str = "x", model: str = "simple", pool: str = POOL) -> None:
        self.hear(model_key(pool, router_id, model), Announcement(model=ModelDescription(model=model)))
        self.hear(statistics_key(pool, router_id, model), Announcement(statistics=ModelStatistics()))

    def look(self) -> list[str]:
        """What is due now, which is not yet done."""
        due = self.departed.due(self.now)
        self.taken += due
        return due

    def wait(self, seconds: int, *, speaking: tuple[RouterKey, ...] = ()) -> list[str]:
        """What was taken back meanwhile, all of which came back through the log."""
        before = len(self.taken)
        for _ in range(seconds):
            self.now += 1.0
            for router in speaking:
                self.heartbeat(router)
            if self.log_works:
                self.heartbeat(OWN)
            for key in self.look():
                self.hear(key, None)
        return self.taken[before:]


@pytest.fixture
def clockwork() -> Clockwork:
    """One that has read the log to its end, in which `x` has said something."""
    made = Clockwork()
    made.describe()
    made.departed.caught_up(made.now)
    return made


def test_what_a_silent_router_said_is_taken_back_after_ten_minutes_once(clockwork: Clockwork) -> None:
    clockwork.heartbeat(RouterKey("x", 1))
    clockwork.wait(1)
    assert clockwork.wait(FORGET - 1) == []

    assert sorted(clockwork.wait(1)) == [MODEL, HEARTBEAT, STATISTICS]
    assert clockwork.wait(FORGET) == []


def test_a_router_that_said_goodbye_has_as_long_to_come_back(clockwork: Clockwork) -> None:
    clockwork.heartbeat(RouterKey("x", 1))
    clockwork.wait(100)
    clockwork.hear(router_key(POOL, "x"), None)

    assert clockwork.wait(FORGET) == []
    assert sorted(clockwork.wait(1)) == [MODEL, STATISTICS]


def test_a_router_that_died_without_a_word_about_models_is_taken_back_too() -> None:
    """Each gateway that starts would wait for it to be known as silent."""
    clockwork = Clockwork()
    clockwork.heartbeat(RouterKey("x", 1))
    clockwork.departed.caught_up(clockwork.now)

    assert clockwork.wait(FORGET + 1) == [HEARTBEAT]


def test_a_heartbeat_that_somebody_took_back_is_no_goodbye(clockwork: Clockwork) -> None:
    """Else the rest would be kept for another ten minutes."""
    before = RouterKey("a", 1)  # whose turn it is
    clockwork.heartbeat(RouterKey("x", 1))
    clockwork.wait(FORGET + 1, speaking=(before,))

    clockwork.hear(HEARTBEAT, None)

    assert sorted(clockwork.wait(2 * int(TURN_SECONDS))) == [MODEL, STATISTICS]


def test_a_router_that_was_never_heard_counts_from_the_end_of_the_log() -> None:
    clockwork = Clockwork()
    clockwork.describe()
    assert clockwork.wait(2 * FORGET) == [], "its heartbeat may be in what is still to be read"

    clockwork.departed.caught_up(clockwork.now)

    assert clockwork.wait(FORGET) == []
    assert sorted(clockwork.wait(1)) == [MODEL, STATISTICS]


def test_a_router_that_speaks_is_never_forgotten(clockwork: Clockwork) -> None:
    assert clockwork.wait(3 * FORGET, speaking=(RouterKey("x", 1),)) == []


def test_a_router_that_speaks_again_is_not_gone_any_more(clockwork: Clockwork) -> None:
    clockwork.wait(FORGET)
    clockwork.heartbeat(RouterKey("x", 2))

    assert clockwork.wait(FORGET - 1) == []


def test_a_router_that_came_back_and_went_again_is_forgotten_again(clockwork: Clockwork) -> None:
    clockwork.wait(FORGET + 1)
    clockwork.heartbeat(RouterKey("x", 2))
    clockwork.describe()

    assert sorted(clockwork.wait(FORGET + 1)) == [MODEL, HEARTBEAT, STATISTICS]


def test_what_somebody_else_took_back_is_not_taken_back_again(clockwork: Clockwork) -> None:
    """Nor is it a sign of life."""
    clockwork.wait(FORGET - 1)
    clockwork.hear(MODEL, None)

    assert clockwork.wait(2) == [STATISTICS]


def test_other_pools_and_this_router_itself_are_not_its_business(clockwork: Clockwork) -> None:
    clockwork.describe(pool="other")
    clockwork.describe(OWN.id)

    assert sorted(clockwork.wait(2 * FORGET)) == [MODEL, STATISTICS]


def test_nobodys_silence_counts_while_the_log_is_away(clockwork: Clockwork) -> None:
    clockwork.wait(1)
    clockwork.log_works = False

    assert clockwork.wait(2 * FORGET) == []


def test_silence_counts_anew_when_the_log_is_back(clockwork: Clockwork) -> None:
    clockwork.wait(FORGET - 1)
    clockwork.log_works = False
    clockwork.wait(int(OUTAGE_SECONDS) + 1)
    clockwork.log_works = True

    assert clockwork.wait(FORGET) == []
    assert sorted(clockwork.wait(2)) == [MODEL, STATISTICS]


def test_a_hiccup_of_the_log_begins_nothing_anew(clockwork: Clockwork) -> None:
    """Else a busy broker, which is late for seconds each few minutes, would let nothing be forgotten."""
    clockwork.wait(FORGET - 4)
    clockwork.log_works = False
    clockwork.wait(4)
    clockwork.log_works = True

    assert sorted(clockwork.wait(2)) == [MODEL, STATISTICS]


def test_the_heartbeats_of_an_earlier_run_do_not_prove_that_the_log_works(clockwork: Clockwork) -> None:
    clockwork.log_works = False

    assert clockwork.wait(2 * FORGET, speaking=(RouterKey(OWN.id, 0),)) == []


def test_many_keys_are_taken_back_little_by_little() -> None:
    """No more are on their way than the log has shown that it takes."""
    clockwork = Clockwork()
    for number in range(MOST_ON_THEIR_WAY):
        clockwork.describe(model=f"m{number}")
    clockwork.departed.caught_up(clockwork.now)
    clockwork.wait(FORGET)
    clockwork.now += 1.0
    clockwork.heartbeat(OWN)

    first = clockwork.look()
    assert len(first) == MOST_ON_THEIR_WAY
    assert clockwork.look() == []

    for key in first[:3]:
        clockwork.hear(key, None)
    assert len(clockwork.look()) == 3

    for key in clockwork.taken[3:]:
        clockwork.hear(key, None)
    clockwork.wait(3)
    assert len(clockwork.taken) == len(set(clockwork.taken)) == 2 * MOST_ON_THEIR_WAY


@pytest.mark.parametrize(("other", "seconds"), [("a", TURN_SECONDS), ("z", 0.0)])
def test_routers_forget_in_turn(clockwork: Clockwork, other: str, seconds: float) -> None:
    """The first does it; the others do what it left."""
    speaking = (RouterKey(other, 1),)

    assert clockwork.wait(FORGET + int(seconds), speaking=speaking) == []
    assert sorted(clockwork.wait(2, speaking=speaking)) == [MODEL, STATISTICS]


def test_each_router_that_is_forgotten_is_told_of_once(clockwork: Clockwork, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "router.departed")
    for number in range(MOST_ON_THEIR_WAY):
        clockwork.describe("y", f"m{number}")

    clockwork.wait(2 * FORGET)

    told = [(getattr(record, "event", None), getattr(record, "router", None)) for record in caplog.records]
    assert sorted(told) == [("router_forgotten", "x"), ("router_forgotten", "y")]


def test_who_is_forgotten_is_not_remembered(clockwork: Clockwork) -> None:
    """Routers come and go for months."""
    for number in range(5):
        clockwork.heartbeat(RouterKey(f"r{number}", 1))
        clockwork.describe(f"r{number}")
    clockwork.wait(FORGET + 2)

    assert (clockwork.departed._others, clockwork.departed._on_their_way) == ({}, set())


def test_what_was_taken_back_of_this_routers_own_is_told_and_nothing_else(clockwork: Clockwork) -> None:
    model, statistics = model_key(POOL, OWN.id, "simple"), statistics_key(POOL, OWN.id, "simple")
    clockwork.describe(OWN.id)
    for key in (model, MODEL, statistics, model_key("other", OWN.id, "simple"), router_key("other", OWN.id)):
        clockwork.hear(key, None)

    assert clockwork.restated == [model, statistics]


@pytest.mark.parametrize(("seconds", "restated"), [(FORGET, 2), (FORGET // 2 - 1, 0)])
def test_a_router_that_was_cut_off_for_long_says_all_again(clockwork: Clockwork, seconds: int, restated: int) -> None:
    """The log may not tell any more that it was forgotten: it keeps for a minute what was taken back."""
    clockwork.describe(OWN.id, "gone")
    clockwork.describe(OWN.id)
    for key in (model_key(POOL, OWN.id, "gone"), statistics_key(POOL, OWN.id, "gone")):
        clockwork.hear(key, None)
    clockwork.restated.clear()
    clockwork.log_works = False
    clockwork.wait(seconds)
    clockwork.log_works = True
    clockwork.wait(3)

    own = [model_key(POOL, OWN.id, "simple"), statistics_key(POOL, OWN.id, "simple")]
    assert clockwork.restated == own[:restated]


def test_a_goodbye_under_its_own_id_makes_a_router_say_all_again(clockwork: Clockwork) -> None:
    """Another process had that id, and its words may be the newest."""
    clockwork.describe(OWN.id)

    clockwork.hear(router_key(POOL, OWN.id), None)

    assert clockwork.restated == [
        router_key(POOL, OWN.id),
        model_key(POOL, OWN.id, "simple"),
        statistics_key(POOL, OWN.id, "simple"),
    ]


def test_what_was_taken_back_while_the_log_was_away_holds_up_no_other() -> None:
    """Whether it was done is told no more by a log that is compacted."""
    clockwork = Clockwork()
    for number in range(MOST_ON_THEIR_WAY):
        clockwork.describe(model=f"m{number}")
    clockwork.departed.caught_up(clockwork.now)
    clockwork.wait(FORGET)
    clockwork.now += 1.0
    clockwork.heartbeat(OWN)
    assert len(clockwork.look()) == MOST_ON_THEIR_WAY

    clockwork.now += OUTAGE_SECONDS + 1.0
    clockwork.describe("y")
    taken = clockwork.wait(FORGET + 10)

    assert {model_key(POOL, "y", "simple"), statistics_key(POOL, "y", "simple")} <= set(taken)


# Whatever the order.

IDS = st.sampled_from(["a", OWN.id, "x"])
POOLS = st.sampled_from([POOL, POOL, POOL, "other"])


class AnyOrder(RuleBasedStateMachine):
    """Routers speak, describe, leave and are silent, while the log comes and goes."""

    def __init__(self) -> None:
        super().__init__()
        self.clockwork = Clockwork()
        self.heard_at: dict[str, float] = {}
        self.holds: set[str] = set()
        self.wrong: list[str] = []
        self.read_to_the_end = False

    def heard(self, router_id: str, pool: str) -> None:
        if pool == POOL:
            self.heard_at[router_id] = self.clockwork.now

    @rule(router_id=IDS, pool=POOLS, incarnation=st.integers(0, 2))
    def heartbeat(self, router_id: str, pool: str, incarnation: int) -> None:
        self.clockwork.heartbeat(RouterKey(router_id, incarnation), pool)
        self.holds.add(router_key(pool, router_id))
        self.heard(router_id, pool)

    @rule(router_id=IDS, pool=POOLS)
    def goodbye(self, router_id: str, pool: str) -> None:
        self.clockwork.hear(router_key(pool, router_id), None)
        self.holds.discard(router_key(pool, router_id))

    @rule(router_id=IDS, pool=POOLS, model=st.sampled_from("pq"))
    def describe(self, router_id: str, pool: str, model: str) -> None:
        self.clockwork.describe(router_id, model, pool)
        self.holds |= {model_key(pool, router_id, model), statistics_key(pool, router_id, model)}
        self.heard(router_id, pool)

    @rule(router_id=IDS, pool=POOLS, model=st.sampled_from("pq"))
    def take_back(self, router_id: str, pool: str, model: str) -> None:
        self.clockwork.hear(model_key(pool, router_id, model), None)
        self.holds.discard(model_key(pool, router_id, model))

    @precondition(lambda self: not self.read_to_the_end)
    @rule()
    def caught_up(self) -> None:
        self.read_to_the_end = True
        self.clockwork.departed.caught_up(self.clockwork.now)

    @rule(works=st.sampled_from([True, True, False]))
    def log(self, *, works: bool) -> None:
        self.clockwork.log_works = works

    @rule(seconds=st.sampled_from([1, 5, 15, 300, FORGET + 1]))
    def wait(self, seconds: int) -> None:
        for _ in range(seconds):
            taken = self.clockwork.wait(1)
            self.judge(taken)

    @rule()
    def look(self) -> None:
        """The log is slow to take it."""
        taken = self.clockwork.look()
        self.judge(taken)
        for key in taken:
            self.clockwork.hear(key, None)

    def judge(self, taken: list[str]) -> None:
        self.wrong += [key for key in taken if key not in self.holds or not self.gone(key)]
        self.holds -= set(taken)

    def gone(self, text: str) -> bool:
        key = parse_key(text)
        assert key is not None
        if key.pool != POOL or key.id == OWN.id:
            return False
        return self.clockwork.now - self.heard_at.get(key.id, 0.0) > FORGET_SECONDS

    @invariant()
    def nothing_is_taken_back_of_who_may_live(self) -> None:
        assert self.wrong == []

    def teardown(self) -> None:
        self.clockwork.log_works = True
        if not self.read_to_the_end:
            self.caught_up()
        self.wait(FORGET + 2 + int(TURN_SECONDS))
        self.nothing_is_taken_back_of_who_may_live()
        assert [key for key in self.holds if self.gone(key)] == []


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=150, stateful_step_count=25, deadline=None)


# Over a log: routers, and a gateway that hears them.


class Fleet:
    """Routers on one log, a gateway that reads it, and a clock that they share."""

    def __init__(self) -> None:
        self.log = MemoryAnnouncements()
        self.now = 100.0
        self.registry = Registry(pool=POOL, gateway_id="g", incarnation=1)
        self.tasks: list[asyncio.Task[None]] = []

    def clock(self) -> float:
        return self.now

    def spawn(self, work: Coroutine[None, None, None]) -> None:
        self.tasks.append(asyncio.create_task(work, name="fleet"))

    async def gateway(self) -> None:
        async for said in self.log.read():
            if said is not None:
                self.registry.apply(*said, self.now)

    async def wait(self, seconds: int, *routers: "Member") -> None:
        for _ in range(seconds):
            self.now += 1.0
            await self.log.announce(gateway_key("g"), Announcement(gateway=GatewayHeartbeat(incarnation=1)))
            for router in routers:
                await router.second()
            await settle()


class Member:
    """One router that serves one model."""

    def __init__(self, fleet: Fleet, key: RouterKey, model: str) -> None:
        own_key = router_key(POOL, key.id)
        self.fleet = fleet
        self.key = key
        self.beacon = Beacon(fleet.log, key=own_key, heartbeat=self.heartbeat)
        self.departed = Departed(pool=POOL, own=key, taken_back=self.beacon.taken_back, forget_seconds=5.0)
        gateways = Gateways(pool=POOL, own_key=own_key, own_incarnation=key.incarnation, links=Links())
        fleet.spawn(gateways.follow(fleet.log, fleet.clock, self.caught_up, self.departed.apply))
        self.word = ModelDescription(router_incarnation=key.incarnation, model=model, partition_count=1)
        self.beacon.put(model_key(POOL, key.id, model), Announcement(model=self.word))
        fleet.registry.attached(key)

    def caught_up(self) -> None:
        self.departed.caught_up(self.fleet.now)

    def heartbeat(self, beat: int) -> Announcement:
        said = RouterHeartbeat(incarnation=self.key.incarnation, beat=beat, state=ROUTER_STATE_READY)
        return Announcement(router=said)

    async def second(self) -> None:
        await self.beacon.beat()
        for key in self.departed.due(self.fleet.now):
            self.beacon.put(key, None)
        await self.beacon.say()

    async def leave(self) -> None:
        await self.beacon.leave(seconds=5.0)
        self.fleet.registry.detached(self.key)


@asynccontextmanager
async def a_fleet() -> AsyncIterator[Fleet]:
    fleet = Fleet()
    fleet.spawn(fleet.gateway())
    try:
        yield fleet
    finally:
        for task in fleet.tasks:
            task.cancel()
        await asyncio.gather(*fleet.tasks, return_exceptions=True)


async def test_a_gateway_forgets_the_model_of_a_router_that_is_gone() -> None:
    async with a_fleet() as fleet:
        stays, goes = Member(fleet, RouterKey("a", 1), "kept"), Member(fleet, RouterKey("b", 2), "lost")
        await fleet.wait(2, stays, goes)
        assert {name: model.live for name, model in fleet.registry.models.items()} == {"kept": True, "lost": True}

        await goes.leave()
        await fleet.wait(5, stays)
        assert {name: model.live for name, model in fleet.registry.models.items()} == {"kept": True, "lost": False}
        await fleet.wait(2, stays)

        assert {name: model.live for name, model in fleet.registry.models.items()} == {"kept": True}


async def test_a_gateway_forgets_a_router_that_died_without_a_goodbye() -> None:
    """One that starts need not wait for it."""
    async with a_fleet() as fleet:
        stays, dies = Member(fleet, RouterKey("a", 1), "kept"), Member(fleet, RouterKey("b", 2), "lost")
        await fleet.wait(2, stays, dies)
        assert set(fleet.registry.routers) == {"a", "b"}

        await fleet.wait(7, stays)

        assert set(fleet.registry.routers) == {"a"}
        assert fleet.log.newest(router_key(POOL, "b")) is None


async def test_a_pool_without_a_router_stays_known() -> None:
    async with a_fleet() as fleet:
        members = Member(fleet, RouterKey("a", 1), "first"), Member(fleet, RouterKey("b", 2), "second")
        await fleet.wait(2, *members)
        for member in members:
            await member.leave()

        await fleet.wait(60)

        assert {name: model.live for name, model in fleet.registry.models.items()} == {"first": False, "second": False}


async def test_a_router_says_again_what_was_taken_back_while_it_came_back() -> None:
    """One whose container starts anew just when the others forget it."""
    async with a_fleet() as fleet:
        member = Member(fleet, RouterKey("a", 1), "simple")
        await fleet.wait(2, member)
        await fleet.log.announce(model_key(POOL, "a", "simple"), None)
        await fleet.log.announce(router_key(POOL, "a"), None)
        await settle()
        assert not fleet.registry.models
        assert not fleet.registry.routers

        await fleet.wait(1, member)

        assert fleet.registry.models["simple"].live
