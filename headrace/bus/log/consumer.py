"""Reading requests as a member of a group: a thread that polls, and hands whole batches to the loop."""

import asyncio
import logging
import math
import random
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future as ThreadFuture
from contextlib import suppress
from functools import partial
from typing import Self, TypeVar, cast

from confluent_kafka import OFFSET_END, OFFSET_INVALID, Consumer, KafkaError, KafkaException, Message
from confluent_kafka import TopicPartition as RdPartition

from headrace.bus.backlog import seen_again, seen_before
from headrace.bus.envelope import ENVELOPE_HEADER
from headrace.bus.log.client import client_config
from headrace.bus.protocols import IntakeEvents, LogUnavailableError, Record, SeenEnd, TopicPartition
from headrace.bus.rotation import Rotation
from headrace.bus.settings import GroupProtocol, KafkaSettings
from headrace.bus.topics import ENVELOPE_ROOM_BYTES

_log = logging.getLogger(__name__)
_T = TypeVar("_T")
_LARGEST_BATCH = 500
_POLL_SECONDS = 0.1  # how late a new subscription or a stop may be noticed on a silent topic
_PAUSED_POLL_SECONDS = 0.005  # how late a resume may be noticed, and a pause on a silent topic
_NONE_SECONDS = 10.0  # after so long without a partition there is none: two heartbeats of brokers that are not set up
_NONE_AGAIN_SECONDS = 1.0  # how soon a coordinator that did not answer is asked once more
_LEAVE_SECONDS = 5.0  # how long leaving may wait for a broker that is away; its client does for 6 or 45 s, by protocol
_CALLBACK_SECONDS = 5.0  # how long the loop may take to let go of partitions
_STARTS_SECONDS = 1.0  # how long asking where partitions begin may hold up the thread
_TURN_SECONDS = 1.0  # how long partitions that were read of late wait for those whose turn it is, on a slow broker
_WAKE_SECONDS = 0.5  # how long a resume may hold up the thread while the broker does not answer
_MEMBERSHIP: dict[GroupProtocol, dict[str, str | int]] = {
    "classic": {
        "partition.assignment.strategy": "cooperative-sticky",
        "session.timeout.ms": 6000,
        "heartbeat.interval.ms": 1000,
    },
    # How soon it is noticed that a member is gone is the brokers' affair: `group.consumer.session.timeout.ms`.
    "consumer": {"group.protocol": "consumer", "group.remote.assignor": "range"},
}
"""How members share partitions, and why: `docs/adr/0023`."""


class KafkaConsumer:
    """One member of a consumer group. A thread of its own fetches and hands whole batches to the loop.

    Everything the thread must do for the loop goes through `_commands`, pause and resume too: the client lets one
    thread at a time in, and a call on the loop's would sleep there while the other one polls, for ever if unlucky.
    """

    def __init__(
        self,
        kafka: KafkaSettings,
        *,
        client_id: str,
        group: str,
        max_message_bytes: int,
        events: IntakeEvents,
        look_seconds: float = 5.0,
    ) -> None:
        """`look_seconds` is how old the lag may be.

        Each look at a paused topic holds up the thread for a fetch of the others.
        """
        self._look_seconds = look_seconds
        self._events = events
        self._commands: list[Callable[[], None]] = []
        self._commands_lock = threading.Lock()
        self._assigned: set[TopicPartition] = set()
        self._subscribed: frozenset[str] = frozenset()
        self._paused: set[str] = set()
        self._handed = 0  # records given to the loop, counted by the thread
        self._received = 0  # records that reached the loop, counted by the loop
        self._room = (0, 0)  # (room, received when it was said): replaced whole, so the thread sees both or neither
        self._room_said = threading.Event()
        self._stopping = False
        self._starts: dict[TopicPartition, int] = {}  # where reading began, counted by the thread
        self._rotation = Rotation()
        self._withheld: dict[str, set[TopicPartition]] = {}  # not resumed yet: others of the topic go first
        self._withheld_until = 0.0
        self._heard: dict[TopicPartition, int] = {}  # where partitions ended when that was last asked
        self._lag: dict[TopicPartition, int] = {}  # replaced whole, by the thread
        self._unread: dict[TopicPartition, tuple[SeenEnd, ...]] = {}  # likewise
        self._lag_due = 0.0
        self._protocol = kafka.group_protocol
        self._shared = False  # whether the group has given this member its part, be it none
        self._none_at = math.inf
        self._config = (
            client_config(kafka, client_id)
            | _MEMBERSHIP[kafka.group_protocol]
            | {
                "group.id": group,
                "auto.offset.reset": "earliest",
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                "check.crcs": False,
                "fetch.min.bytes": 1,
                # A resumed topic is fetched when the poll that is under way for the others ends: this long at worst.
                "fetch.wait.max.ms": 50,
                "fetch.queue.backoff.ms": 1,
                "fetch.error.backoff.ms": 50,
                "topic.metadata.refresh.interval.ms": 30_000,
                "topic.metadata.refresh.fast.interval.ms": 100,
                "fetch.message.max.bytes": max_message_bytes + ENVELOPE_ROOM_BYTES,
                "fetch.max.bytes": max(max_message_bytes + ENVELOPE_ROOM_BYTES, 52_428_800),
                "receive.message.max.bytes": 2 * max(max_message_bytes + ENVELOPE_ROOM_BYTES, 52_428_800),
                "queued.max.messages.kbytes": 65_536,
            }
        )

    async def __aenter__(self) -> Self:
        self._consumer = Consumer(self._config, logger=_log)
        self._loop = asyncio.get_running_loop()
        self._done: asyncio.Future[None] = self._loop.create_future()
        threading.Thread(target=self._run, name="request-log", daemon=True).start()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Leave the group, after a last `revoked` for what this member owns; without a word where no broker answers."""
        self._stopping = True
        self._room_said.set()
        with suppress(TimeoutError):  # the broker is away, and sees by itself that this member is gone
            async with asyncio.timeout(_LEAVE_SECONDS):
                await asyncio.shield(self._done)

    async def failed(self) -> None:
        """Raise when the consumer can't go on; whoever waits may stop waiting."""
        await asyncio.shield(self._done)

    @property
    def lag(self) -> Mapping[TopicPartition, int]:
        """See RequestConsumer.lag."""
        return self._lag

    @property
    def unread(self) -> Mapping[TopicPartition, Sequence[SeenEnd]]:
        """See RequestConsumer.unread."""
        return self._unread

    def subscribe(self, topics: Collection[str]) -> None:
        """See RequestConsumer.subscribe."""
        wanted = sorted(topics)

        def change() -> None:
            self._subscribed = frozenset(wanted)
            if not wanted:
                self._shared, self._none_at = False, math.inf
            elif self._protocol == "consumer" and not self._shared and self._none_at == math.inf:
                self._none_at = time.monotonic() + _NONE_SECONDS
            if wanted:
                self._consumer.subscribe(wanted, on_assign=self._assign, on_revoke=self._revoke, on_lost=self._lose)
            else:
                self._consumer.unsubscribe()

        self._command(change)

    def pause(self, topic: str) -> None:
        """See RequestConsumer.pause."""
        self._paused.add(topic)
        self._command(lambda: self._pause(topic))

    def resume(self, topic: str) -> None:
        """See RequestConsumer.resume."""
        self._paused.discard(topic)
        self._command(lambda: self._resume(topic))

    def set_room(self, records: int) -> None:
        """See RequestConsumer.set_room."""
        self._room = (records, self._received)
        self._room_said.set()

    def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        """See RequestConsumer.commit."""
        if offsets:
            self._command(lambda: self._commit_owned(offsets))

    def _commit_owned(self, offsets: Mapping[TopicPartition, int]) -> None:
        # Asked here, in the thread that serves revocations: a commit must not overtake the one of a revocation.
        wanted = [RdPartition(*place, offset) for place, offset in offsets.items() if place in self._assigned]
        if wanted:
            self._commit(wanted, wait=False)

    def _command(self, change: Callable[[], None]) -> None:
        with self._commands_lock:
            self._commands.append(change)

    # The rest runs in the thread.

    def _run(self) -> None:
        failure: Exception | None = None
        try:
            while not self._stopping:
                said, received = self._room  # before the commands: what was paused ahead of it is obeyed ahead of it
                self._obey()
                self._measure()
                self._tell_of_none()
                self._fetch(said, received)
            self._consumer.close()
        except Exception as exc:  # noqa: BLE001  the thread's boundary: the owner of `failed` ends the process
            failure = exc
        with suppress(RuntimeError):  # the loop has ended: leaving took longer than anybody waited
            self._loop.call_soon_threadsafe(self._finish, failure)

    def _finish(self, failure: Exception | None) -> None:
        if self._done.done():
            return
        if failure is None:
            self._done.set_result(None)
        else:
            self._done.set_exception(failure)

    def _obey(self) -> None:
        with self._commands_lock:
            commands, self._commands = self._commands, []
        for change in commands:
            try:
                change()
            except KafkaException as exc:
                extra = {"event": "log_command_failed", "why": str(exc.args[0])}
                _log.warning("the broker refused a command: %s", exc.args[0], extra=extra)

    def _tell_of_none(self) -> None:
        """Say that this member is one too many: the classic protocol says so itself, the other one says nothing."""
        if time.monotonic() < self._none_at:
            return
        try:  # the coordinator answers members alone, and nobody while it is away
            self._consumer.committed([RdPartition(min(self._subscribed), 0)], timeout=_WAKE_SECONDS)
        except KafkaException:
            self._none_at = time.monotonic() + _NONE_AGAIN_SECONDS
            return
        self._shared, self._none_at = True, math.inf
        self._on_loop(lambda: self._events.assigned(()))

    def _measure(self) -> None:
        """See how far the log goes on, once in a while."""
        now = time.monotonic()
        if now < self._lag_due:
            return
        self._lag_due = now + self._look_seconds
        ours = list(self._assigned)
        self._starts = {place: self._starts[place] for place in ours if place in self._starts}
        if untold := [RdPartition(*place) for place in ours if place not in self._starts]:
            self._commit_starts(untold)
        self._rotation.keep(ours)
        ends = self._heard = self._ends(ours)
        seen_at = time.time()
        read_to = self._read_to([RdPartition(*place) for place in ends])
        lag = {place: max(0, ends[place] - position) for place, position in read_to.items()}
        behind = {place for place, records in lag.items() if records}
        came = {place: read_to[place] for place in behind - self._lag.keys()}
        known = self._unread | seen_before(came, seen_at, partial(self._ends_at, now=ends))
        self._unread = {
            place: seen_again(known.get(place, ()), SeenEnd(seen_at, ends[place]), read_to[place]) for place in behind
        }
        # What the broker did not tell in time stands as it was told last.
        silent = self._lag.keys() & set(ours) - read_to.keys()
        self._unread |= {place: tuple(known[place]) for place in silent if place in known}
        self._lag = lag | {place: self._lag[place] for place in silent}

    def _ends(self, places: list[TopicPartition]) -> dict[TopicPartition, int]:
        """Where partitions end: the client learns it with each fetch; where nothing is fetched, it is asked for."""
        cached = {place: end for place in places if (end := self._cached_end(place)) >= 0}
        paused = [RdPartition(*place) for place in places if place.topic in self._paused]
        return cached | (self._ask_ends(paused) if paused else {})

    def _ends_at(
        self, places: Collection[TopicPartition], moment: float, *, now: Mapping[TopicPartition, int]
    ) -> dict[TopicPartition, int]:
        """Where partitions ended at a moment: before the first record that is younger."""
        ends = {}
        with suppress(KafkaException):  # the broker is away: nothing is known of it
            asked = [RdPartition(*place, round(moment * 1000)) for place in places]
            for end in self._consumer.offsets_for_times(asked, timeout=_WAKE_SECONDS):
                if end.error is None:
                    place = _key(end)
                    ends[place] = now[place] if end.offset == OFFSET_END else end.offset  # none is younger
        return ends

    def _places(self, topic: str) -> list[RdPartition]:
        # Changed only while this thread waits for the loop, in a rebalance.
        return [RdPartition(*place) for place in self._assigned if place.topic == topic]

    def _pause(self, topic: str) -> None:
        self._withheld.pop(topic, None)
        self._consumer.pause(self._places(topic))

    def _resume(self, topic: str) -> None:
        places = self._places(topic)
        self._withhold(topic, places)
        self._consumer.resume([each for each in places if _key(each) not in self._withheld.get(topic, ())])
        if places and all(place.topic in self._paused for place in self._assigned if place.topic != topic):
            # Nothing was being fetched, so librdkafka's thread for the broker sleeps, for up to a second: a resume does
            # not wake it, a request does. Any that goes to the partitions' leader will do, and this one is of use.
            self._heard |= self._ask_ends(places)

    def _withhold(self, topic: str, places: list[RdPartition]) -> None:
        """Let those go first whose turn it is, where a queue is long: a topic is paused after a few records then.

        librdkafka fetches its partitions in one and the same order each time: the last ones would never be read.
        """
        behind = {}
        for key, position in self._read_to(places).items():
            end = max(self._cached_end(key), self._heard.get(key, OFFSET_INVALID))
            if end > position:
                behind[key] = end - position
        first = self._rotation.first(behind, self._room[0])
        if len(first) < len(behind):
            self._withheld[topic] = {_key(place) for place in places} - set(first)
            self._withheld_until = time.monotonic() + _TURN_SECONDS

    def _read_to(self, places: Collection[RdPartition]) -> dict[TopicPartition, int]:
        """The offset of the next record of each, where it is known."""
        found = {}
        for place in self._consumer.position([*places]):
            key = _key(place)
            position = self._starts.get(key, OFFSET_INVALID) if place.offset < 0 else place.offset
            if position >= 0:
                found[key] = position
        return found

    def _cached_end(self, place: TopicPartition) -> int:
        """Negative where the client has heard nothing of it yet."""
        try:
            end: int = self._consumer.get_watermark_offsets(RdPartition(*place), cached=True)[1]
        except KafkaException:
            return OFFSET_INVALID
        return end

    def _ask_ends(self, places: Collection[RdPartition]) -> dict[TopicPartition, int]:
        """Where partitions end, by the broker; what it does not tell is left out."""
        asked = [RdPartition(place.topic, place.partition, OFFSET_END) for place in places]
        with suppress(KafkaException):  # it is away
            answers = self._consumer.offsets_for_times(asked, timeout=_WAKE_SECONDS)
            return {_key(end): end.offset for end in answers if end.error is None and end.offset >= 0}
        return {}

    def _release(self) -> None:
        """Those whose turn it was have been heard, or have nothing."""
        for places in self._withheld.values():
            self._consumer.resume([RdPartition(*place) for place in places if place in self._assigned])
        self._withheld.clear()

    def _fetch(self, said: int, received: int) -> None:
        room = min(said - (self._handed - received), _LARGEST_BATCH)
        if room <= 0:
            # The loop is about to account for what it has: it never stays without room, it pauses topics instead.
            self._room_said.clear()
            if self._room == (said, received):
                self._room_said.wait(_POLL_SECONDS)
            return
        first = self._consumer.poll(_PAUSED_POLL_SECONDS if self._paused else _POLL_SECONDS)
        if self._withheld and (first is not None or time.monotonic() > self._withheld_until):
            self._release()
        if first is None:
            return
        messages = [first, *self._consumer.consume(room - 1, 0)] if room > 1 else [first]
        batch = [record for message in messages if (record := _record(message)) is not None]
        if batch:
            self._handed += len(batch)
            self._rotation.read(record.place for record in batch)
            self._loop.call_soon_threadsafe(self._hand_over, batch)

    def _hand_over(self, batch: list[Record]) -> None:
        self._received += len(batch)
        self._events.records([record for record in batch if record.place in self._assigned])

    def _commit(self, offsets: list[RdPartition], *, wait: bool) -> list[RdPartition]:
        """Returns those that the broker took, where that is waited for."""
        try:
            if wait:
                told = self._consumer.commit(offsets=offsets, asynchronous=False)
                return [place for place in told if place.error is None]
            self._consumer.commit(offsets=offsets, asynchronous=True)
        except KafkaException as exc:
            # Nothing is lost: the records are read again, and skipped where their callers are gone.
            extra = {"event": "commit_failed", "why": str(exc.args[0])}
            _log.warning("offsets were not committed: %s", exc.args[0], extra=extra)
        return []

    def _assign(self, consumer: Consumer, places: list[RdPartition]) -> None:
        consumer.incremental_assign(places)
        # One that left while its topic was paused is still paused when it comes back: librdkafka forgets no pause.
        consumer.resume(places)
        self._shared, self._none_at = True, math.inf
        ours = [_key(place) for place in places]
        # What was measured is of another time.
        self._lag = {place: records for place, records in self._lag.items() if place not in ours}
        self._unread = {place: ends for place, ends in self._unread.items() if place not in ours}
        for place in ours:
            self._starts.pop(place, None)
        self._on_loop(lambda: self._assigned_on_loop(ours))
        self._lag_due = 0.0  # whose turn it is depends on it

    def _assigned_on_loop(self, places: list[TopicPartition]) -> None:
        self._assigned.update(places)
        for topic in {place.topic for place in places} & self._paused:
            self.pause(topic)
        self._events.assigned(places)

    def _commit_starts(self, places: list[RdPartition]) -> None:
        """A partition has lag only once it has a committed offset: where none is, its start is committed now.

        What the brokers do not tell or take yet is left to the next look.
        """
        until = time.monotonic() + _STARTS_SECONDS
        try:
            committed = self._consumer.committed(places, timeout=_STARTS_SECONDS)
        except KafkaException:  # the coordinator is away
            return
        self._starts |= {_key(place): place.offset for place in committed if place.offset >= 0}
        missing = [_key(place) for place in committed if place.offset == OFFSET_INVALID and place.error is None]
        random.shuffle(missing)  # one without a leader may take all the time: not always that of the same ones
        starts = []
        for place in missing:
            if (left := until - time.monotonic()) > 0:
                with suppress(KafkaException):  # a new topic's partition has no leader yet
                    start, _ = self._consumer.get_watermark_offsets(RdPartition(*place), left)
                    starts.append(RdPartition(*place, start))
        if starts:
            self._starts |= {_key(place): place.offset for place in self._commit(starts, wait=True)}

    def _revoke(self, consumer: Consumer, places: list[RdPartition]) -> None:
        self._let_go(places)
        consumer.incremental_unassign(places)

    def _let_go(self, places: list[RdPartition]) -> None:
        ours = [_key(place) for place in places]
        offsets = self._on_loop(lambda: self._revoked_on_loop(ours)) or {}
        if offsets:
            self._commit([RdPartition(*place, offset) for place, offset in offsets.items()], wait=True)

    def _revoked_on_loop(self, places: list[TopicPartition]) -> Mapping[TopicPartition, int]:
        self._assigned.difference_update(places)
        return self._events.revoked(places)

    def _lose(self, consumer: Consumer, places: list[RdPartition]) -> None:
        # librdkafka also calls those lost that this member gave up itself, where it took a new topic in their place.
        if given_up := [place for place in places if place.topic not in self._subscribed]:
            self._let_go(given_up)
        if lost := [_key(each) for each in places if each.topic in self._subscribed]:
            self._on_loop(lambda: self._lost_on_loop(lost))
        consumer.incremental_unassign(places)

    def _lost_on_loop(self, places: list[TopicPartition]) -> None:
        self._assigned.difference_update(places)
        self._events.lost(places)

    def _on_loop(self, call: Callable[[], _T]) -> _T | None:
        """Run on the loop and wait for it, bounded: a rebalance must be answered in time even when the loop hangs."""
        result: ThreadFuture[_T] = ThreadFuture()

        def run() -> None:
            try:
                result.set_result(call())
            except Exception as exc:  # noqa: BLE001  handed to the waiting thread, which raises it
                result.set_exception(exc)

        self._loop.call_soon_threadsafe(run)
        try:
            return result.result(_CALLBACK_SECONDS)
        except TimeoutError:
            _log.error("the event loop did not answer a rebalance in time", extra={"event": "rebalance_unanswered"})
            return None


def _key(place: RdPartition) -> TopicPartition:
    return TopicPartition(place.topic, place.partition)


def _record(message: Message) -> Record | None:
    error = message.error()
    if error is not None and error.code() == KafkaError._FATAL:  # noqa: SLF001  librdkafka's local codes are spelled so
        # The client does nothing any more, and says so only here.
        raise LogUnavailableError(
            f"the broker does not let this router into its group: {error.str()};"
            " what may be behind it: docs/reference/topics.md, consumer group"
        )
    if error is not None:
        # A partition's trouble (its leader moves, its topic is gone) passes or ends in a rebalance.
        extra = {
            "event": "fetch_failed",
            "topic": message.topic(),
            "partition": message.partition(),
            "code": error.name(),
        }
        _log.warning("a partition could not be read: %s", error.name(), extra=extra)
        return None
    headers = cast("list[tuple[str, bytes | None]]", message.headers() or [])
    envelope = next((value for name, value in headers if name == ENVELOPE_HEADER), None)
    return Record(
        TopicPartition(message.topic() or "", message.partition() or 0),
        message.offset() or 0,
        message.key() or b"",
        envelope or b"",
        message.value() or b"",
        max(0, message.timestamp()[1]),  # -1 where there is none
    )
