"""The intake under any order of events: a state machine against what must always hold."""

import asyncio
from collections import Counter
from collections.abc import Coroutine, Sequence
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from headrace.bus.memory.requests import MemoryConsumer
from headrace.bus.protocols import Failure, Outcome, Record, TopicPartition
from tests.unit.router.rig import AN_HOUR, GATEWAY, GROUP, INCARNATION, Answers, OtherMember, Rig, micros, settle

TOPICS = ("a", "b")
PARTITIONS = 2
SECOND = ("127.0.0.1:8", 80)
DEAD = (GATEWAY, INCARNATION + 1)


class IntakeAtLarge(RuleBasedStateMachine):
    """Calls come, end, expire and are cancelled, while windows, gateways and the group's members change."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.number = 0
        self.windows = dict.fromkeys(TOPICS, 2)
        self.widest = dict.fromkeys(TOPICS, 2)
        self.expired: set[bytes] = set()
        self.cancelled: set[bytes] = set()
        self.for_the_dead: set[bytes] = set()
        self.gateway_of: dict[bytes, tuple[str, int]] = {}
        self.place_of: dict[bytes, tuple[TopicPartition, int]] = {}
        self.outcome_of: dict[bytes, Outcome] = {}
        self.handed: Counter[bytes] = Counter()
        self.violations: list[str] = []
        self.lost_once = False
        self.other: MemoryConsumer | None = None

    def do(self, work: Coroutine[Any, Any, object]) -> None:
        async def and_settle() -> None:
            await work
            await settle()

        self.loop.run_until_complete(and_settle())

    @initialize()
    def begin(self) -> None:
        self.do(self._begin())

    async def _begin(self) -> None:
        self.rig = Rig(partitions=PARTITIONS, topics=TOPICS, max_waiting_bytes=400)
        self.rig.server.on_begin = self._begins
        self.rig.on_records = self._fetched
        self.rig.links.unacknowledged_bytes = 60
        self.heard = {(GATEWAY, INCARNATION): self.rig.answers, SECOND: Answers()}
        self.second = self.rig.gateway(*SECOND, self.heard[SECOND])
        self.hubs = {(GATEWAY, INCARNATION): self.rig.hub, SECOND: self.second}
        await self.second.__aenter__()
        await self.rig.start(self.windows)

    def _fetched(self, batch: Sequence[Record]) -> None:
        self.handed.update(record.call_id for record in batch)

    def _begins(self, call_id: bytes) -> None:
        topic = self.place_of[call_id][0].topic
        running = sum(self.place_of[other][0].topic == topic for other in self.rig.server.running)
        verdicts = {
            "more run than the window": running >= self.windows[topic],
            "an expired call was run": call_id in self.expired,
            "a cancelled call was run": call_id in self.cancelled,
            "a call was run for nobody": call_id in self.for_the_dead,
            "a call was run beside itself": call_id in self.rig.server.running,
            "a call was run twice without a fault": self.rig.server.begun[call_id] and not self.lost_once,
        }
        # Told by an invariant: the intake takes what is raised here for a fault of the model server.
        self.violations += [f"{call_id!r}: {verdict}" for verdict, true in verdicts.items() if true]

    # Calls.

    @rule(
        topic=st.sampled_from(TOPICS),
        partition=st.integers(0, PARTITIONS - 1),
        count=st.integers(1, 9),
        size=st.sampled_from([0, 0, 0, 150]),
        fate=st.sampled_from(["runs", "runs", "runs", "expired", "cancelled", "dead"]),
        gateway=st.sampled_from([(GATEWAY, INCARNATION), SECOND]),
    )
    def publish(  # noqa: PLR0917  Hypothesis draws them
        self, topic: str, partition: int, count: int, size: int, fate: str, gateway: tuple[str, int]
    ) -> None:
        async def work() -> None:
            for _ in range(count):
                self.number += 1
                call_id = b"c%d" % self.number
                home = DEAD if fate == "dead" else gateway
                self.gateway_of[call_id] = home
                if fate == "cancelled":
                    self.cancelled.add(call_id)
                    self.rig.intake.cancelled(call_id, 1, micros(AN_HOUR))
                elif fate == "expired":
                    self.expired.add(call_id)
                elif fate == "dead":
                    self.for_the_dead.add(call_id)
                self.place_of[call_id] = self.rig.publish(
                    call_id,
                    topic=topic,
                    partition=partition,
                    seconds=-1 if fate == "expired" else AN_HOUR,
                    gateway=home,
                    payload=call_id.ljust(size, b"."),
                )

        self.do(work())

    @precondition(lambda self: self.rig.server.running)
    @rule(data=st.data(), outcome=st.sampled_from([b"x", bytes(40), Failure.TRITON_LOST, Failure.EXPIRED]))
    def some_end(self, data: st.DataObject, outcome: Outcome) -> None:
        chosen = data.draw(st.lists(st.sampled_from(sorted(self.rig.server.running)), min_size=1, unique=True))

        async def work() -> None:
            for call_id in chosen:
                self.outcome_of[call_id] = outcome
                self.rig.server.finish(call_id, outcome)

        self.do(work())

    @precondition(lambda self: self.number)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        call_id = b"c%d" % data.draw(st.integers(1, self.number))

        async def work() -> None:
            self.cancelled.add(call_id)
            self.hubs[(GATEWAY, INCARNATION)].cancel(call_id, 1, micros(AN_HOUR))
            self.rig.intake.cancelled(call_id, 1, micros(AN_HOUR))

        self.do(work())

    @precondition(lambda self: self.rig.server.running)
    @rule(data=st.data())
    def time_runs_out_for_all_that_wait_while_all_that_runs_ends(self, data: st.DataObject) -> None:
        running = sorted(self.rig.server.running)
        waiting = [call_id for call_id, count in self.handed.items() if count and call_id not in self.rig.server.begun]
        doomed = data.draw(st.lists(st.sampled_from(waiting), unique=True)) if waiting else []

        async def work() -> None:
            for call_id in doomed:
                self.cancelled.add(call_id)
                self.rig.intake.cancelled(call_id, 1, micros(AN_HOUR))
            for call_id in running:
                self.outcome_of[call_id] = b"x"
                self.rig.server.finish(call_id, b"x")

        self.do(work())

    # Neighbours.

    @rule(topic=st.sampled_from(TOPICS), window=st.integers(1, 4))
    def window_changes(self, topic: str, window: int) -> None:
        async def work() -> None:
            self.windows[topic] = window
            self.widest[topic] = max(self.widest[topic], window)
            self.rig.intake.set_windows(self.windows)

        self.do(work())

    @rule(gateway=st.sampled_from([(GATEWAY, INCARNATION), SECOND]), acknowledging=st.booleans())
    def gateway_acknowledges_or_not(self, gateway: tuple[str, int], acknowledging: bool) -> None:
        async def work() -> None:
            self.hubs[gateway].acknowledging = acknowledging
            self.rig.network.retry(gateway[0])

        self.do(work())

    @rule(gateway=st.sampled_from([(GATEWAY, INCARNATION), SECOND]))
    def streams_break(self, gateway: tuple[str, int]) -> None:
        async def work() -> None:
            self.rig.network.cut(gateway[0])

        self.do(work())

    @rule()
    def another_member_joins_or_leaves(self) -> None:
        self.do(self._join_or_leave())

    async def _join_or_leave(self) -> None:
        if self.other is None:
            self.other = MemoryConsumer(self.rig.log, group=GROUP, events=OtherMember())
            await self.other.__aenter__()
            self.other.subscribe(TOPICS)
        else:
            await self.other.__aexit__()
            self.other = None

    @rule()
    def the_group_takes_the_router_for_dead(self) -> None:
        async def work() -> None:
            self.lost_once = True
            self.rig.consumer.lose()

        self.do(work())

    @rule()
    def commit(self) -> None:
        async def work() -> None:
            await self.rig.commit()

        self.do(work())

    # What always holds.

    @invariant()
    def calls_began_as_they_may(self) -> None:
        assert not self.violations

    @invariant()
    def no_more_waits_than_one_window(self) -> None:
        for topic, lane in self.rig.intake._lanes.items():
            assert lane.backlog <= 2 * self.widest[topic] - lane.running, f"{topic} holds too much"

    @invariant()
    def nothing_is_committed_before_it_began_or_ended(self) -> None:
        for call_id, (place, offset) in self.place_of.items():
            if self.rig.log.committed[GROUP].get(place, 0) > offset:
                gone = self.cancelled | self.expired | self.for_the_dead | self.refused()
                assert call_id in gone or self.rig.server.begun[call_id], f"{call_id!r} was committed and never ran"

    @invariant()
    def waiting_bytes_are_counted_right(self) -> None:
        intake = self.rig.intake
        waiting = [each for lane in intake._lanes.values() for each in lane.waiting]
        waiting += [each for aside in intake._aside.values() for each in aside]
        assert intake._waiting_bytes == sum(len(each.record.payload) for each in waiting)
        assert intake.waiting == len(waiting)

    def teardown(self) -> None:
        if not hasattr(self, "rig"):
            return
        self.do(self._all_ends_well())
        self.do(self.rig.stop())
        self.loop.close()

    async def _all_ends_well(self) -> None:
        """With everybody back and willing, every call is answered, or was skipped for a reason."""
        for gateway, hub in self.hubs.items():
            hub.acknowledging = True
            self.rig.network.retry(gateway[0])
        if self.other is not None:
            await self._join_or_leave()
        await settle()
        for _ in range(self.number + 1):
            for call_id in list(self.rig.server.running):
                self.outcome_of[call_id] = b"x"
                self.rig.server.finish(call_id, b"x")
            await settle()
        skipped = self.cancelled | self.expired | self.for_the_dead
        for call_id in self.place_of:
            answers = [outcome for answered, _, outcome in self.heard_by(call_id) if answered == call_id]
            if call_id not in skipped:
                assert answers, f"{call_id!r} was never answered"
                assert self.outcome_of.get(call_id, Failure.GATEWAY_FULL) in answers
        await self.rig.commit()
        for place, records in self.rig.log.records.items():
            assert self.rig.log.committed[GROUP][place] == len(records), "something is left uncommitted"

    def refused(self) -> set[bytes]:
        """Calls that did not run because their gateway took no answers."""
        heard = [answer for answers in self.heard.values() for answer in answers.heard]
        return {call_id for call_id, _, outcome in heard if outcome is Failure.GATEWAY_FULL}

    def heard_by(self, call_id: bytes) -> list[tuple[bytes, int, Outcome]]:
        heard = self.heard.get(self.gateway_of[call_id])
        return [] if heard is None else heard.heard


TestIntakeAtLarge = IntakeAtLarge.TestCase
TestIntakeAtLarge.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
