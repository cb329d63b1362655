"""What a gateway knows of its pool."""

import asyncio
from itertools import count
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2 as oip

from gateway.registry import NO_LIVE_ROUTER_TEXT, Registry
from headrace.bus.announcements import gateway_key, router_key
from headrace.bus.protocols import RouterKey
from headrace.bus.v1.announcement_pb2 import (
    ROUTER_STATE_LEAVING,
    ROUTER_STATE_SERVER_AWAY,
    Announcement,
    GatewayHeartbeat,
    RouterState,
)
from tests.unit.gateway.announcing import (
    GATEWAY,
    INCARNATION,
    POOL,
    description,
    heartbeat,
    own_heartbeat,
    registry,
    statistics,
    version,
)

A, B = RouterKey("a", 1), RouterKey("b", 2)
A_RESTARTED = RouterKey("a", 9)

Said = tuple[str, Announcement | None]


def owners(known: Registry, model: str = "simple") -> list[RouterKey]:
    return [owner.router for owner in known.models[model].owners]


def test_a_router_that_announces_and_is_attached_owns_its_partitions() -> None:
    known = registry(heartbeat(A), description(A, partitions=(3, 1), window=4), attached=(A,))

    model = known.models["simple"]
    [owner] = model.owners
    assert (owner.router, owner.partitions, owner.window) == (A, (1, 3), 4)
    assert (model.ready, model.live, model.partition_count) == (True, True, 8)


@pytest.mark.parametrize(
    "known",
    [
        registry(heartbeat(A), description(A)),
        registry(description(A), attached=(A,)),
        registry(heartbeat(A), description(A), attached=(A_RESTARTED,)),
        registry(heartbeat(A_RESTARTED), description(A), attached=(A, A_RESTARTED)),
        registry(heartbeat(A, state=ROUTER_STATE_LEAVING), description(A), attached=(A,)),
        registry(heartbeat(A, state=ROUTER_STATE_SERVER_AWAY), description(A), attached=(A,)),
        registry(heartbeat(A), description(A), (router_key(POOL, "a"), None), attached=(A,)),
        registry(heartbeat(A, pool="other"), description(A), attached=(A,)),
    ],
    ids=[
        "not attached",
        "never announced",
        "another run is attached",
        "described before a restart",
        "leaving",
        "its Triton is away",
        "it left",
        "another pool's router",
    ],
)
def test_a_model_without_a_live_router_stays_known_as_not_ready(known: Registry) -> None:
    model = known.models["simple"]

    assert (model.owners, model.ready, model.live) == ((), False, False)
    assert [(each.version, each.state, each.reason) for each in model.versions] == [
        ("1", "UNAVAILABLE", NO_LIVE_ROUTER_TEXT)
    ]
    assert model.versions[0].metadata


def test_a_live_router_without_partitions_or_without_a_ready_version_takes_no_calls() -> None:
    unassigned = registry(heartbeat(A), description(A, partitions=()), attached=(A,))
    unloaded = registry(
        heartbeat(A), description(A, versions=(version(state="UNAVAILABLE", reason="unloaded"),)), attached=(A,)
    )

    assert [(known.models["simple"].live, owners(known)) for known in (unassigned, unloaded)] == [(True, [])] * 2
    assert unloaded.models["simple"].versions[0].reason == "unloaded"


def test_a_router_that_is_ready_is_unattached_until_its_stream_stands() -> None:
    known = registry(heartbeat(A), heartbeat(B))
    assert known.unattached() == [A, B]

    known.attached(A)
    assert known.unattached() == [B]
    known.detached(A)
    assert known.unattached() == [A, B]


@pytest.mark.parametrize("state", [ROUTER_STATE_LEAVING, ROUTER_STATE_SERVER_AWAY])
def test_a_router_that_takes_no_calls_is_not_counted_as_unattached(state: RouterState) -> None:
    assert registry(heartbeat(A, state=state)).unattached() == []


def test_a_router_whose_former_run_is_attached_is_unattached() -> None:
    assert registry(heartbeat(A), attached=(RouterKey("a", 99),)).unattached() == [A]


def test_models_of_another_pool_are_not_ours() -> None:
    assert not registry(heartbeat(A), description(A, pool="other"), attached=(A,)).models


def test_a_broken_stream_counts_at_once_and_mends() -> None:
    known = registry(heartbeat(A), description(A), attached=(A,))

    known.detached(A)
    assert owners(known) == []
    known.attached(A)
    assert owners(known) == [A]


def test_a_restarted_router_replaces_its_former_run() -> None:
    known = registry(heartbeat(A, beat=50), description(A, partitions=(0,)), attached=(A,))

    for said in (heartbeat(A_RESTARTED, beat=1), description(A_RESTARTED, partitions=(1,))):
        known.apply(*said, 1.0)
    known.attached(A_RESTARTED)
    known.detached(A)

    assert owners(known) == [A_RESTARTED]


def test_versions_are_merged_over_live_routers() -> None:
    known = registry(
        heartbeat(A),
        heartbeat(B),
        description(A, versions=(version("2", "LOADING"), version("10"), version("9", "UNAVAILABLE", "broken"))),
        description(B, versions=(version("2"), version("9", "UNAVAILABLE", "no memory"), version("", ""))),
        attached=(A, B),
    )

    merged = [(each.version, each.state, each.reason) for each in known.models["simple"].versions]

    assert merged == [("2", "READY", ""), ("9", "UNAVAILABLE", "broken"), ("10", "READY", "")]
    assert owners(known) == [A, B]


def test_a_model_is_forgotten_when_the_last_description_is_taken_back() -> None:
    known = registry(heartbeat(A), description(A), attached=(A,))

    known.apply(description(A)[0], None, 1.0)

    assert not known.models


def test_keys_of_a_later_version_are_passed_over() -> None:
    known = registry(heartbeat(A), description(A), attached=(A,))

    known.apply("weather/default/a", Announcement(), 1.0)

    assert owners(known) == [A]


def test_statistics_are_those_of_live_routers() -> None:
    one, two = (oip.ModelStatistics(name="simple", version="1", inference_count=count) for count in (1, 2))
    known = registry(heartbeat(A), heartbeat(B), description(A), statistics(A, one), statistics(B, two), attached=(A,))

    assert [counted.router_incarnation for counted in known.statistics("simple")] == [A.incarnation]
    assert known.statistics("nothing") == []


# Who is alive.


class Clock:
    """A pool in which everyone who is not silenced announces once a second."""

    def __init__(self, *routers: RouterKey) -> None:
        self.known = registry(*(description(router) for router in routers), attached=routers)
        self.speaking = {*routers}
        self.log_works = True
        self.now = 100.0
        self.beat = 0
        self.run(seconds=1)

    def run(self, seconds: float) -> None:
        """Pass the time in tenths of a second."""
        for _ in range(round(seconds * 10)):
            self.now = round(self.now + 0.1, 3)
            if self.log_works and self.now % 1 == 0:
                self.beat += 1
                self.known.apply(*own_heartbeat(self.beat), self.now)
                for router in sorted(self.speaking):
                    self.known.apply(*heartbeat(router, self.beat), self.now)
            self.known.advance(self.now)

    def live(self) -> set[str]:
        """The ids of those who take calls."""
        return {router.key.id for router in self.known.live_routers()}


def test_a_silent_router_is_dead_after_three_seconds() -> None:
    clock = Clock(A, B)

    clock.speaking.discard(B)
    clock.run(seconds=2.9)
    assert clock.live() == {"a", "b"}
    clock.run(seconds=0.3)
    assert clock.live() == {"a"}
    assert owners(clock.known) == [A]


def test_a_router_of_which_only_old_words_are_left_is_unattached_until_it_is_silent() -> None:
    """It died without a goodbye, perhaps long ago; the topic keeps its last heartbeat."""
    clock = Clock()
    clock.known.apply(*heartbeat(A), clock.now)

    clock.run(seconds=2.9)
    assert clock.known.unattached() == [A]
    clock.run(seconds=0.3)
    assert clock.known.unattached() == []


def test_a_router_whose_answers_come_is_alive_without_a_heartbeat() -> None:
    """Under load its heartbeats may wait longer in the log than its answers do on their stream."""
    clock = Clock(A, B)
    clock.speaking.clear()

    for _ in range(6):
        clock.known.heard(A, clock.now)
        clock.known.heard(RouterKey(B.id, B.incarnation + 1), clock.now)  # of another run of it
        clock.run(seconds=1)

    assert clock.live() == {"a"}
    clock.run(seconds=3)
    assert clock.live() == set()
    clock.known.heard(A, clock.now)
    assert clock.live() == {"a"}
    assert owners(clock.known) == [A]


def test_answers_make_up_for_heartbeats_for_a_while_only() -> None:
    """Its group has given its partitions to others, and nobody hears from it what it still has."""
    clock = Clock(A)
    clock.speaking.clear()

    for _ in range(20):
        clock.known.heard(A, clock.now)
        clock.run(seconds=0.5)
    assert clock.live() == {"a"}
    for _ in range(3):
        clock.known.heard(A, clock.now)
        clock.run(seconds=0.5)
    assert clock.live() == set()

    clock.speaking.add(A)
    clock.run(seconds=1)
    assert clock.live() == {"a"}


def test_a_router_that_speaks_again_is_alive_again() -> None:
    clock = Clock(A)
    clock.speaking.clear()
    clock.run(seconds=5)
    assert clock.live() == set()

    clock.speaking.add(A)
    clock.run(seconds=1)

    assert clock.live() == {"a"}


def test_while_the_log_is_away_the_last_view_stands() -> None:
    clock = Clock(A, B)

    clock.log_works = False
    clock.run(seconds=600)

    assert clock.live() == {"a", "b"}


def test_when_the_log_is_back_everyone_has_time_to_be_heard() -> None:
    clock = Clock(A, B)
    clock.log_works = False
    clock.run(seconds=60)

    clock.speaking.discard(B)
    clock.log_works = True
    clock.run(seconds=3)
    assert clock.live() == {"a", "b"}
    clock.run(seconds=1.2)
    assert clock.live() == {"a"}


def test_a_broken_stream_tells_of_a_death_while_the_log_is_away() -> None:
    clock = Clock(A, B)
    clock.log_works = False
    clock.run(seconds=60)

    clock.known.detached(A)

    assert clock.live() == {"b"}


def test_heartbeats_of_a_former_run_of_this_gateway_prove_nothing() -> None:
    known = registry(heartbeat(A), description(A), attached=(A,))

    for second in range(10):
        known.apply(*own_heartbeat(second, incarnation=INCARNATION - 1), float(second))
        known.advance(float(second))

    assert owners(known) == [A]


def test_a_heartbeat_that_is_read_again_is_no_sign_of_life() -> None:
    known = registry(heartbeat(A, beat=5), description(A), attached=(A,))

    for second in range(10):
        known.apply(*own_heartbeat(second), float(second))
        known.apply(*heartbeat(A, beat=5), float(second))
        known.advance(float(second))

    assert owners(known) == []


def test_gateways_that_announce_themselves_are_counted() -> None:
    known = registry()

    def second(now: float, *others: str) -> int:
        known.apply(*own_heartbeat(int(now)), now)
        for other in others:
            known.apply(gateway_key(other), Announcement(gateway=GatewayHeartbeat(incarnation=5, beat=int(now))), now)
        known.advance(now)
        return known.gateways

    assert known.gateways == 1
    assert [second(1.0), second(2.0, "b"), second(3.0, "b", "c")] == [1, 2, 3]
    assert [second(4.0, "b"), second(5.0, "b"), second(6.0, "b"), second(7.0, "b")] == [3, 3, 3, 2]
    known.apply(gateway_key("b"), None, 7.5)
    assert second(8.0) == 1


def test_the_number_of_gateways_stands_while_the_log_is_away() -> None:
    known = registry()
    known.apply(*own_heartbeat(1), 1.0)
    known.apply(gateway_key("b"), Announcement(gateway=GatewayHeartbeat(incarnation=5, beat=1)), 1.0)
    known.advance(1.0)

    known.advance(60.0)

    assert known.gateways == 2


# Who is told.


def test_subscribers_are_told_what_changed_and_nothing_else() -> None:
    known = registry(heartbeat(A), description(A), description(A, model="other"), attached=(A,))
    told: list[frozenset[str]] = []
    unsubscribe = known.subscribe(told.append)

    known.apply(*heartbeat(A, beat=2), 1.0)
    known.apply(*description(A), 1.0)
    known.apply(*statistics(A, oip.ModelStatistics(name="simple")), 1.0)
    assert told == []
    known.apply(*description(A, window=5), 1.0)
    known.detached(A)
    unsubscribe()
    known.attached(A)

    assert told == [{"simple"}, {"simple", "other"}]


def test_a_subscriber_sees_the_new_state() -> None:
    known = registry(heartbeat(A), description(A))
    seen: list[bool] = []
    known.subscribe(lambda _: seen.append(known.models["simple"].ready))

    known.attached(A)

    assert seen == [True]


def test_revisions_grow_with_every_change() -> None:
    known = registry(heartbeat(A), description(A))
    before = known.models["simple"]

    known.attached(A)
    after = known.models["simple"]
    known.apply(*heartbeat(A, beat=2), 1.0)

    assert after.revision > before.revision
    assert known.models["simple"] is after


async def test_waiting_ends_with_the_change_that_is_waited_for() -> None:
    known = registry(heartbeat(A), description(A))
    waiting = asyncio.ensure_future(known.wait_for(lambda: known.models["simple"].ready))
    await asyncio.wait({waiting}, timeout=0)

    known.apply(*description(A, window=2), 1.0)
    assert not waiting.done()
    known.attached(A)

    await waiting


async def test_waiting_for_what_is_so_does_not_wait() -> None:
    await registry().wait_for(lambda: True)


async def test_a_predicate_that_fails_fails_the_one_who_waits() -> None:
    known = registry(heartbeat(A), description(A))
    waiting = asyncio.ensure_future(known.wait_for(lambda: known.models["gone"].ready or bool(1 / 0)))

    with pytest.raises(KeyError):
        await waiting
    known.attached(A)

    assert owners(known) == [A]


async def test_who_stops_waiting_is_forgotten() -> None:
    known = registry(heartbeat(A), description(A))
    asked = []

    def ask() -> bool:
        asked.append(True)
        return False

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await known.wait_for(ask)
    before = len(asked)
    known.attached(A)

    assert len(asked) == before
    assert not known._waiters


# Whatever comes, in whatever order.

ROUTERS = [RouterKey(name, incarnation) for name in "ab" for incarnation in (1, 2)]
STATES: list[RouterState] = [1, 2, 3]  # type: ignore[list-item]  # the enum's numbers


def announcements(beat: int) -> st.SearchStrategy[list[Said]]:
    """At most one record of every key: something said, or taken back."""
    routers = st.sampled_from(ROUTERS)
    heartbeats = st.builds(lambda router, state: heartbeat(router, beat, state), routers, st.sampled_from(STATES))
    descriptions = st.builds(
        lambda router, model, partitions: description(router, model=model, partitions=partitions),
        routers,
        st.sampled_from(["m", "n"]),
        st.sampled_from([(), (0,), (1, 2)]),
    )
    said = heartbeats | descriptions
    return st.lists(said | said.map(lambda each: (each[0], None)), unique_by=lambda each: each[0])


attachments = st.sets(st.sampled_from(ROUTERS))


def state_of(known: Registry) -> object:
    return dict(known.models), {name: (router.key, router.live) for name, router in known.routers.items()}


@given(announcements(1), attachments, st.randoms())
def test_the_order_of_different_keys_makes_no_difference(
    said: list[Said], attached: set[RouterKey], random: Random
) -> None:
    steps: list[Said | RouterKey] = [*said, *attached]
    shuffled = [*steps]
    random.shuffle(shuffled)

    assert state_of(replayed(steps)) == state_of(replayed(shuffled))


@settings(max_examples=200)
@given(announcements(1), announcements(2), attachments)
def test_only_the_newest_record_of_a_key_counts(old: list[Said], new: list[Said], attached: set[RouterKey]) -> None:
    """Compaction may or may not have removed the older ones."""
    newest = {key: (key, said) for key, said in [*old, *new]}

    assert state_of(replayed([*old, *new, *attached])) == state_of(replayed([*newest.values(), *attached]))


@given(st.lists(announcements(1) | attachments))
def test_no_owner_is_ever_without_stream_or_announcement(steps: list[list[Said] | set[RouterKey]]) -> None:
    known = registry()
    attached: set[RouterKey] = set()
    newest: dict[str, Announcement | None] = {}
    beats = count(1)
    for step in steps:
        if isinstance(step, set):
            for router in attached ^ step:
                (known.attached if router in step else known.detached)(router)
            attached = step
        for key, said in step if isinstance(step, list) else ():
            if said is not None and said.HasField("router"):
                said.router.beat = next(beats)
            known.apply(key, said, 0.0)
            newest[key] = said
        for model in known.models.values():
            for owner in model.owners:
                announced = newest[router_key(POOL, owner.router.id)]
                assert owner.router in attached
                assert announced is not None
                assert (announced.router.incarnation, announced.router.state) == (owner.router.incarnation, 1)
                assert owner.partitions


def replayed(steps: list[Said | RouterKey]) -> Registry:
    known = Registry(pool=POOL, gateway_id=GATEWAY, incarnation=INCARNATION)
    for step in steps:
        if isinstance(step, RouterKey):
            known.attached(step)
        else:
            known.apply(*step, 0.0)
    return known
