"""The request log in memory: topics, partitions, consumer groups that rebalance cooperatively."""

import asyncio
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Self

from headrace.bus.protocols import (
    IntakeEvents,
    LogError,
    LogUnavailableError,
    PublishFailed,
    Record,
    RecordTooLargeError,
    SeenEnd,
    TopicPartition,
)
from headrace.bus.rotation import Rotation


class MemoryRequestLog:
    """The broker: what is published, who reads it, and how far."""

    def __init__(self, *, max_message_bytes: int = 1 << 20) -> None:
        self.max_message_bytes = max_message_bytes
        self.records: dict[TopicPartition, list[Record]] = {}
        self.committed: dict[str, dict[TopicPartition, int]] = {}
        """Committed offsets by group."""
        self.refuse_at_once: LogError | None = None
        """What `publish` raises, while set."""
        self.refuse_later: LogError | None = None
        """What records fail with after `publish` took them, while set."""
        self._members: list[MemoryConsumer] = []
        self._rebalance_due = False

    def create(self, topic: str, partitions: int) -> None:
        """Make a topic, or give it more partitions."""
        for number in range(partitions):
            self.records.setdefault(TopicPartition(topic, number), [])
        self.rebalance_soon()

    def append(self, place: TopicPartition, call_id: bytes, envelope: bytes, payload: bytes) -> int:
        """Put a record into the log. Returns its offset."""
        stored = self.records[place]
        now = time.time_ns() // 1_000_000
        stored.append(Record(place, len(stored), call_id, envelope, payload, timestamp_millis=now))
        for member in self._members:
            member.fetch_soon()
        return len(stored) - 1

    def join(self, member: "MemoryConsumer") -> None:
        """A consumer takes part."""
        self._members.append(member)
        self.rebalance_soon()

    def leave(self, member: "MemoryConsumer") -> None:
        """A consumer takes part no more."""
        self._members.remove(member)
        self.rebalance_soon()

    def rebalance_soon(self) -> None:
        """Partitions move in the next turn of the loop."""
        if not self._rebalance_due:
            self._rebalance_due = True
            asyncio.get_running_loop().call_soon(self._rebalance)

    def _rebalance(self) -> None:
        self._rebalance_due = False
        for group in {member.group for member in self._members}:
            members = [member for member in self._members if member.group == group]
            wanted = self._spread(members)
            # Everyone lets go first: a partition is never two members' at once.
            for member in members:
                member.let_go(member.owned - wanted[member])
            for member in members:
                member.take(wanted[member] - member.owned)

    def _spread(self, members: list["MemoryConsumer"]) -> dict["MemoryConsumer", set[TopicPartition]]:
        """As even as can be, topic by topic, with as few moves as that allows."""
        wanted: dict[MemoryConsumer, set[TopicPartition]] = {member: set() for member in members}
        for topic in sorted({place.topic for place in self.records}):
            takers = [member for member in members if topic in member.topics]
            free = sorted(place for place in self.records if place.topic == topic)
            share = -(-len(free) // len(takers)) if takers else 0
            for member in takers:
                kept = sorted(member.owned & set(free))[:share]
                wanted[member].update(kept)
                free = [place for place in free if place not in kept]
            while free and takers:
                least = min(takers, key=lambda member: len(wanted[member]))
                wanted[least].add(free.pop(0))
        return wanted


class MemoryPublisher:
    """See RequestPublisher."""

    def __init__(self, log: MemoryRequestLog, *, on_failure: PublishFailed) -> None:
        self._log = log
        self._on_failure = on_failure
        self._unsent: dict[bytes, asyncio.Handle] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None: ...

    def publish(
        self, place: TopicPartition, call_id: bytes, envelope: bytes, payload: bytes, *, attempt: int = 1
    ) -> None:
        """See RequestPublisher.publish."""
        if self._log.refuse_at_once is not None:
            raise self._log.refuse_at_once
        if len(payload) > self._log.max_message_bytes:
            raise RecordTooLargeError("the request is larger than the log takes")
        loop = asyncio.get_running_loop()
        self._unsent[call_id] = loop.call_soon(self._deliver, place, call_id, attempt, envelope, payload)

    def withdraw(self, call_id: bytes) -> bool:
        """See RequestPublisher.withdraw."""
        unsent = self._unsent.pop(call_id, None)
        if unsent is not None:
            unsent.cancel()
        return unsent is not None

    def _deliver(self, place: TopicPartition, call_id: bytes, attempt: int, envelope: bytes, payload: bytes) -> None:
        self._unsent.pop(call_id, None)
        if self._log.refuse_later is not None:
            self._on_failure(call_id, attempt, self._log.refuse_later)
        elif place not in self._log.records:
            self._on_failure(call_id, attempt, LogUnavailableError("there is no such partition"))
        else:
            self._log.append(place, call_id, envelope, payload)


class MemoryConsumer:
    """See RequestConsumer."""

    def __init__(self, log: MemoryRequestLog, *, group: str, events: IntakeEvents, batch: int = 500) -> None:
        self.group = group
        self.topics: set[str] = set()
        self.owned: set[TopicPartition] = set()
        self.paused: set[str] = set()
        self.room = 0
        self._log = log
        self._events = events
        self._batch = batch
        self._positions: dict[TopicPartition, int] = {}
        self._rotation = Rotation()
        self._fetch_due = False

    async def __aenter__(self) -> Self:
        self._log.join(self)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.let_go(set(self.owned))
        self._log.leave(self)

    @property
    def lag(self) -> Mapping[TopicPartition, int]:
        """See RequestConsumer.lag."""
        return {place: len(self._log.records[place]) - self._positions[place] for place in self.owned}

    @property
    def unread(self) -> Mapping[TopicPartition, Sequence[SeenEnd]]:
        """See RequestConsumer.unread."""
        told = {}
        for place in self.owned:
            if records := self._log.records[place][self._positions[place] :]:
                told[place] = [SeenEnd(record.timestamp_millis / 1000, record.offset + 1) for record in records]
        return told

    def subscribe(self, topics: Collection[str]) -> None:
        """See RequestConsumer.subscribe."""
        self.topics = set(topics)
        self._log.rebalance_soon()

    def pause(self, topic: str) -> None:
        """See RequestConsumer.pause."""
        self.paused.add(topic)

    def resume(self, topic: str) -> None:
        """See RequestConsumer.resume."""
        self.paused.discard(topic)
        self.fetch_soon()

    def set_room(self, records: int) -> None:
        """See RequestConsumer.set_room."""
        self.room = records
        self.fetch_soon()

    def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        """See RequestConsumer.commit."""
        # In the background: what is not this member's any more by then is not committed.
        asyncio.get_running_loop().call_soon(self._commit, dict(offsets))

    def _commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        mine = {place: offset for place, offset in offsets.items() if place in self.owned}
        self._log.committed.setdefault(self.group, {}).update(mine)

    def lose(self) -> None:
        """Have the broker take this member for dead: it hears of it too late to commit, and joins again."""
        lost, self.owned = self.owned, set()
        self._positions.clear()
        self._events.lost(sorted(lost))
        self._log.rebalance_soon()

    # What the log does with it.

    def let_go(self, places: set[TopicPartition]) -> None:
        """The group gives these to others."""
        if not places:
            return
        offsets = self._events.revoked(sorted(places))
        self._commit({place: offset for place, offset in offsets.items() if place in places})
        self.owned -= places
        for place in places:
            del self._positions[place]

    def take(self, places: set[TopicPartition]) -> None:
        """The group gives these to this member."""
        if not places:
            return
        committed = self._log.committed.setdefault(self.group, {})
        for place in places:
            self._positions[place] = committed.setdefault(place, 0)
        self.owned |= places
        self._events.assigned(sorted(places))
        self.fetch_soon()

    def fetch_soon(self) -> None:
        """Hand records over in the next turn of the loop, where there are any and there is room."""
        if not self._fetch_due:
            self._fetch_due = True
            asyncio.get_running_loop().call_soon(self._fetch)

    def _fetch(self) -> None:
        self._fetch_due = False
        batch: list[Record] = []
        for record in self._unread():
            if len(batch) >= min(self.room, self._batch):
                break
            batch.append(record)
            self._positions[record.place] = record.offset + 1
        if batch:
            self._rotation.read(record.place for record in batch)
            self.room -= len(batch)
            self._events.records(batch)
            self.fetch_soon()

    def _unread(self) -> Iterable[Record]:
        for place in self._rotation.sort(self.owned):
            if place.topic not in self.paused:
                yield from self._log.records[place][self._positions[place] :]
