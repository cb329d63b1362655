"""From the log to Triton and home: takes records with room only, runs them within each model's window, answers.

Interactive records are committed when they begin: their gateway holds the call and publishes it again if need be, not
the log. What is fetched and not begun goes back to the log by not being committed.
"""

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from typing import Protocol

from headrace.bus.envelope import EnvelopeError, read_envelope
from headrace.bus.offsets import Watermark
from headrace.bus.protocols import (
    AnswerLinks,
    Failure,
    Link,
    LinkState,
    Outcome,
    Record,
    RequestConsumer,
    SeenEnd,
    TopicPartition,
)
from headrace.bus.v1.envelope_pb2 import METHOD_MODEL_INFER, Envelope, Metadatum
from headrace.runtime.telemetry import Bounded
from router.cancellations import Cancellations
from router.traces import RecordTrace, RecordTraces
from router.window import Lane, Times, Waiting

COMMIT_SECONDS = 0.5
OUTCOMES = (
    "answered",
    "expired",
    "cancelled",
    "gateway_gone",
    "gateway_full",
    "double",
    "unreadable",
    "method_unknown",
    "cut_off",
)
_LARGEST_ROOM = 500
_AMPLE_ROOM = 64
"""With so much room said, the log is not waiting for more: every batch says it anew anyway."""
_log = logging.getLogger(__name__)

Used = Callable[[str, str, float], None]
"""Told of every call that was with the model server: the tenant, the topic, and for how many seconds.

For one that ended before its answer, at least as many as a model's calls usually take.
"""


class RunsCalls(Protocol):
    """What the intake asks of the model server."""

    async def infer(self, request: bytes, metadata: Sequence[Metadatum], seconds: float) -> Outcome:
        """Run one call, within the time given. Cancelling this cancels the call there."""
        ...


class Intake:
    """Everything between the request log and Triton; see IntakeEvents for what it hears of the log."""

    def __init__(
        self,
        *,
        triton: RunsCalls,
        max_waiting_bytes: int,
        longest_seconds: float,
        triton_lost: Callable[[], None],
        used: Used,
        traces: RecordTraces | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`triton_lost` is told that a call did not reach the model server; `release` is awaited from then on.

        No call waits for longer than `longest_seconds`: all that is known before any has come, and why what came
        longer ago says nothing of those that wait.
        """
        self._triton_lost = triton_lost
        self._loop = asyncio.get_running_loop()  # asked once: on Python 3.11 each question is a system call
        self._triton = triton
        self._used = used
        self._traces = traces
        self._clock = clock
        self._max_waiting_bytes = max_waiting_bytes
        self._longest_seconds = longest_seconds
        self._lanes: dict[str, Lane] = {}
        self._offered: set[str] = set()
        self._busy: set[Lane] = set()
        self._aside: dict[Link, deque[Waiting]] = {}
        self._watermarks: dict[TopicPartition, Watermark] = {}
        self._running: dict[tuple[bytes, int], tuple[asyncio.Task[None], Lane, Link]] = {}
        self._cancellations = Cancellations()
        self._waiting_bytes = 0
        self._holding_back = False
        self._held = False
        self._cut_off = False
        self._room_due = False
        self._room = _LARGEST_ROOM
        self._quiet = asyncio.Event()
        self._quiet.set()
        self.ended: Counter[str] = Counter(dict.fromkeys(OUTCOMES, 0))
        """How records ended: `answered`, or why they were skipped."""
        self.rebalances: Counter[str] = Counter(assigned=0, revoked=0, lost=0)
        """How often partitions came and went."""
        self.times: Bounded[Times] = Bounded(Times)
        """How long calls took, by topic."""

    def connect(self, consumer: RequestConsumer, links: AnswerLinks) -> None:
        """Say where records come from and where answers go, once, before anything else."""
        self._consumer = consumer
        self._links = links
        self._consumer.set_room(_LARGEST_ROOM)

    @property
    def running(self) -> int:
        """Calls that Triton runs now."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Records that are fetched and not begun."""
        return sum(lane.backlog for lane in self._lanes.values())

    @property
    def lanes(self) -> Mapping[str, Lane]:
        """What this router serves, by topic."""
        return self._lanes

    @property
    def waiting_bytes(self) -> int:
        """Bytes of the requests that are fetched and not begun."""
        return self._waiting_bytes

    def partitions(self) -> Counter[str]:
        """How many partitions of each topic are this router's."""
        return Counter(place.topic for place in self._watermarks)

    def oldest_waits(self, unread: Mapping[TopicPartition, Sequence[SeenEnd]]) -> dict[str, float]:
        """For how many seconds the oldest record of each topic has waited that may still begin; 0 where none waits.

        Fetched ones say it themselves; for what is not fetched yet see RequestConsumer.unread. Whether that has expired
        is not known before it is read: it counts for as long as a call of its topic may wait, by those of late.
        """
        now = time.time()
        since = dict.fromkeys(self._lanes, now)
        for each in chain(*(lane.waiting for lane in self._lanes.values()), *self._aside.values()):
            published_at = each.record.timestamp_millis / 1000
            if published_at and each.envelope.expire_time_unix_micros > now * 1e6:
                since[each.lane.topic] = min(since.get(each.lane.topic, now), published_at)
        for place, ends in unread.items():
            if place in self._watermarks:
                read_to = self._watermarks[place].read_to or 0
                longest = self._lanes[place.topic].longest_seconds or self._longest_seconds
                there = (end.at for end in ends if end.offset > read_to and end.at > now - longest)
                since[place.topic] = min(since[place.topic], next(there, now))
        return {topic: now - moment for topic, moment in since.items()}

    def assigned_partitions(self, topic: str) -> list[int]:
        """The partitions of a topic that are this router's."""
        return sorted(place.partition for place in self._watermarks if place.topic == topic)

    def set_windows(self, windows: Mapping[str, int]) -> None:
        """Run these topics within these windows, and forget all others."""
        for topic, window in windows.items():
            if topic in self._lanes:
                self._lanes[topic].window = window
            else:
                self._open_lane(topic, window)
        self._offered = set(windows)
        self._forget_lanes()
        for lane in list(self._busy):
            self._pump(lane)
        self._say_room()

    def _open_lane(self, topic: str, window: int) -> None:
        lane = self._lanes[topic] = Lane(topic, window, self.times[topic])
        lane.held = self._held

    def _forget_lanes(self) -> None:
        """A model that is not offered any more keeps its lane while its partitions are ours: their records may come."""
        owned = {place.topic for place in self._watermarks}
        for topic in self._lanes.keys() - self._offered - owned:
            lane = self._lanes[topic]
            if not lane.running and not lane.backlog:
                self._busy.discard(self._lanes.pop(topic))
                if lane.paused:
                    self._consumer.resume(topic)

    def hold(self) -> None:
        """Begin nothing: the model server is away. What is fetched waits, up to its bound, and the rest in the log."""
        self._held = True
        for lane in self._lanes.values():
            lane.held = True
        self._busy |= set(self._lanes.values())
        self._room_changed()

    def release(self) -> None:
        """Begin again."""
        self._held = False
        for lane in self._lanes.values():
            lane.held = False
        for lane in list(self._busy):
            self._pump(lane)
        self._room_changed()

    @property
    def has_partitions(self) -> bool:
        """Whether any partition is this router's."""
        return bool(self._watermarks)

    async def quiet(self) -> None:
        """Return when nothing runs. The caller brings the deadline."""
        await self._quiet.wait()

    def committable(self) -> dict[TopicPartition, int]:
        """The offsets that moved since this was last asked."""
        return {place: offset for place, mark in self._watermarks.items() if (offset := mark.to_commit()) is not None}

    # What the log says: IntakeEvents.

    def records(self, batch: Sequence[Record]) -> None:
        """See IntakeEvents.records."""
        touched: set[Lane] = set()
        for record in batch:
            self._watermarks[record.place].fetched(record.offset)
            lane = self._lanes[record.place.topic]
            try:
                envelope = read_envelope(record.envelope)
            except EnvelopeError as exc:
                extra = {
                    "event": "record_unreadable",
                    "topic": record.place.topic,
                    "partition": record.place.partition,
                    "offset": record.offset,
                    "why": str(exc),
                }
                _log.warning("a record was skipped: %s", exc, extra=extra)
                self._end(record, "unreadable")
                continue
            if record.timestamp_millis:
                longest = envelope.expire_time_unix_micros / 1e6 - record.timestamp_millis / 1e3
                lane.may_wait(longest, self._clock(), self._longest_seconds)
            lane.waiting.append(Waiting(record, envelope, lane))
            self._waiting_bytes += len(record.payload)
            touched.add(lane)
        self._busy |= touched
        for lane in touched:
            self._pump(lane)
        self._say_room()

    def assigned(self, places: Collection[TopicPartition]) -> None:
        """See IntakeEvents.assigned."""
        self.rebalances["assigned"] += 1
        for place in places:
            self._watermarks[place] = Watermark()
            if place.topic not in self._lanes:
                self._open_lane(place.topic, window=1)  # the model has just gone: see _forget_lanes

    def revoked(self, places: Collection[TopicPartition]) -> Mapping[TopicPartition, int]:
        """See IntakeEvents.revoked: what has not begun is dropped here, and read by the next owner."""
        self.rebalances["revoked"] += 1
        # Also what was given out to be committed before: whether that came to pass is not known.
        offsets = {
            place: offset
            for place in places
            if place in self._watermarks and (offset := self._watermarks[place].position) is not None
        }
        self._drop(places)
        return offsets

    def lost(self, places: Collection[TopicPartition]) -> None:
        """See IntakeEvents.lost."""
        self.rebalances["lost"] += 1
        self._drop(places)

    def _drop(self, places: Collection[TopicPartition]) -> None:
        gone = set(places)
        for lane in self._lanes.values():
            lane.waiting = self._kept(lane.waiting, gone)
        for link, waiting in self._aside.items():
            kept = self._kept(waiting, gone)
            for dropped in waiting:
                dropped.lane.aside -= dropped.record.place in gone
            self._aside[link] = kept
        for place in gone:
            self._watermarks.pop(place, None)
        self._forget_lanes()
        self._room_changed()

    def _kept(self, waiting: deque[Waiting], gone: set[TopicPartition]) -> deque[Waiting]:
        kept = deque(each for each in waiting if each.record.place not in gone)
        if len(kept) != len(waiting):
            self._waiting_bytes -= sum(len(each.record.payload) for each in waiting if each.record.place in gone)
        return kept

    # What gateways say: the rest of LinkEvents is the router's composition root's.

    def cancelled(self, call_id: bytes, attempt: int, expire_time_unix_micros: int) -> None:
        """See LinkEvents.cancelled."""
        self._cancellations.add(call_id, attempt, expire_time_unix_micros, time.time_ns() // 1000)
        for number in range(1, attempt + 1):
            self._cancel((call_id, number))

    def _cancel(self, key: tuple[bytes, int]) -> None:
        running = self._running.get(key)
        if running is not None:
            task, lane, _ = running
            task.cancel()
            # One that has not taken its first step never comes to its own `finally`.
            task.add_done_callback(lambda _: self._free(lane, key))

    def link_changed(self, link: Link) -> None:
        """See LinkEvents.link_changed: the gateway's records wait no longer aside, and one that is gone needs none."""
        if link.state is LinkState.GONE:
            for key in [key for key, (_, _, home) in self._running.items() if home is link]:
                self._cancel(key)
        waiting = self._aside.pop(link, None)
        if not waiting:
            return
        for each in reversed(waiting):
            each.lane.aside -= 1
            each.lane.waiting.appendleft(each)
        for lane in {each.lane for each in waiting}:
            self._pump(lane)
        self._room_changed()

    # Running.

    def _pump(self, lane: Lane) -> None:
        """Begin what may begin."""
        waiting = lane.waiting
        while waiting and lane.running < lane.window and not self._held:
            each = waiting.popleft()
            self._consider(each)
        if not waiting and not lane.running and not lane.aside and not lane.paused:
            self._busy.discard(lane)

    def _consider(self, each: Waiting) -> None:
        record, envelope = each.record, each.envelope
        seconds = envelope.expire_time_unix_micros / 1e6 - time.time()
        if seconds <= 0:
            self._skip(each, "expired")
            return
        if self._cancellations.cover(envelope.call_id, envelope.attempt):
            self._skip(each, "cancelled")
            return
        if (envelope.call_id, envelope.attempt) in self._running:
            self._skip(each, "double")  # read again, because the log took this router for dead
            return
        link = self._links.link(envelope.reply_address, envelope.reply_incarnation)
        state = LinkState.GONE if link is None else link.state
        if link is None or state is LinkState.GONE or state is LinkState.UNREACHABLE:
            self._skip(each, "gateway_gone")
        elif envelope.method != METHOD_MODEL_INFER:
            link.send(envelope.call_id, envelope.attempt, Failure.BAD_RECORD)
            self._skip(each, "method_unknown")
        elif state is LinkState.ATTACHED and link.has_room:
            self._waiting_bytes -= len(record.payload)
            self._watermarks[record.place].done(record.offset)
            self._begin(each.lane, record, envelope, link, seconds)
        elif state is LinkState.ATTACHED and each.lane.aside and 2 * each.lane.aside >= each.lane.window:
            # It takes answers more slowly than it asks: its calls may not fill the room that others need.
            link.send(envelope.call_id, envelope.attempt, Failure.GATEWAY_FULL)
            self._skip(each, "gateway_full")
        else:
            each.lane.aside += 1
            self._aside.setdefault(link, deque()).append(each)

    def _begin(self, lane: Lane, record: Record, envelope: Envelope, link: Link, seconds: float) -> None:
        lane.running += 1
        if record.timestamp_millis:
            lane.times.in_log.observe(max(0.0, time.time() - record.timestamp_millis / 1000))
        key = (envelope.call_id, envelope.attempt)
        task = self._loop.create_task(self._run(lane, record, envelope, link, seconds))
        self._running[key] = (task, lane, link)
        self._quiet.clear()

    async def _run(self, lane: Lane, record: Record, envelope: Envelope, link: Link, seconds: float) -> None:
        began = self._clock()
        least = 0.0
        trace: RecordTrace | None = None
        try:
            metadata: Sequence[Metadatum] = envelope.metadata
            if self._traces is not None:
                trace = self._traces.begin(record, envelope)
                metadata = metadata if trace is None else trace.forwarded(metadata)
            outcome: Outcome = await self._triton.infer(record.payload, metadata, seconds)
            if outcome is Failure.EXPIRED:
                least = lane.usual_seconds
            elif isinstance(outcome, bytes):
                lane.took(self._clock() - began)
            if outcome is Failure.TRITON_LOST:
                self.hold()  # before the slot is free: the next call would be lost as well
                self._triton_lost()
        except asyncio.CancelledError:
            if self._cut_off:
                link.send(envelope.call_id, envelope.attempt, Failure.ROUTER_LEFT)
            else:
                least = lane.usual_seconds
            self.ended["cut_off" if self._cut_off else "cancelled"] += 1
            if trace is not None:
                trace.cancelled(Failure.ROUTER_LEFT.name if self._cut_off else "")
            raise
        except Exception:  # noqa: BLE001  the boundary of one call: the others go on
            extra = {"event": "call_failed_unforeseen", "topic": lane.topic, "call_id": envelope.call_id.hex()}
            _log.exception("a call failed in a way that nobody foresaw", extra=extra)
            outcome = Failure.INTERNAL
        finally:
            # Most models run on when nobody waits any more: hanging up, or a short deadline, makes nothing cheaper.
            self._used(envelope.tenant, lane.topic, max(least, self._clock() - began))
            self._free(lane, (envelope.call_id, envelope.attempt))
        link.send(envelope.call_id, envelope.attempt, outcome)
        self.ended["answered"] += 1
        if trace is not None:
            trace.answered(outcome)

    def _free(self, lane: Lane, key: tuple[bytes, int]) -> None:
        if self._running.pop(key, None) is None:
            return
        lane.running -= 1
        self._pump(lane)
        if not self._running:
            self._quiet.set()
        if lane.paused or self._room < _AMPLE_ROOM:
            self._room_changed()

    def _skip(self, each: Waiting, why: str) -> None:
        self._waiting_bytes -= len(each.record.payload)
        if self._traces is not None:
            self._traces.skipped(each.record, each.envelope, why)
        self._end(each.record, why)

    def _end(self, record: Record, why: str) -> None:
        self._watermarks[record.place].done(record.offset)
        self.ended[why] += 1

    # Room.

    def _room_changed(self) -> None:
        """Say the room once per turn of the loop, however many calls end in it."""
        if not self._room_due:
            self._room_due = True
            self._loop.call_soon(self._say_room)

    def _say_room(self) -> None:
        self._room_due = False
        self._hold_back()
        for lane in self._busy:
            if lane.wants_pause():
                lane.paused = True
                self._consumer.pause(lane.topic)
            elif not self._holding_back and lane.wants_resume():
                lane.paused = False
                self._consumer.resume(lane.topic)
        room = min((lane.room for lane in self._lanes.values() if not lane.paused), default=_LARGEST_ROOM)
        self._room = max(1, min(room, _LARGEST_ROOM))
        self._consumer.set_room(self._room)

    def _hold_back(self) -> None:
        """All topics pause while too many bytes wait, and go on when half of them are gone."""
        if not self._holding_back and self._waiting_bytes > self._max_waiting_bytes:
            self._holding_back = True
            for lane in self._lanes.values():
                if not lane.paused:
                    lane.paused = True
                    self._consumer.pause(lane.topic)
            self._busy |= set(self._lanes.values())
        elif self._holding_back and 2 * self._waiting_bytes < self._max_waiting_bytes:
            self._holding_back = False

    async def cancel_running(self) -> None:
        """Cancel what still runs, tell its callers, and begin nothing more."""
        self._cut_off = True
        for lane in self._lanes.values():
            lane.window = 0
        tasks = [task for task, _, _ in self._running.values()]
        for key in list(self._running):
            self._cancel(key)
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task
