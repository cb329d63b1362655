"""Both request logs behind one set of levers, so that one suite drives them: in memory, and on a real broker."""

import asyncio
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Protocol

from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from headrace.bus.log import KafkaConsumer, KafkaPublisher
from headrace.bus.memory.requests import MemoryConsumer, MemoryPublisher, MemoryRequestLog
from headrace.bus.protocols import LogError, Record, RequestConsumer, RequestPublisher, TopicPartition
from headrace.bus.settings import GroupProtocol, KafkaSettings
from headrace.bus.turns import Turns

PATIENCE_SECONDS = 45.0
MAX_MESSAGE_BYTES = 1 << 20
LOOK_SECONDS = 0.5


class Grown:
    """Tells whoever waits that something was heard, by anybody."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def tell(self) -> None:
        self._event.set()

    async def until(self, enough: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not enough():
                self._event.clear()
                await self._event.wait()


class Taker:
    """One member of a group: see IntakeEvents. It begins what it is handed at once."""

    def __init__(self, grown: Grown, *, room: int | None) -> None:
        self.consumer: RequestConsumer
        self.records_of: dict[TopicPartition, list[Record]] = {}
        self.owned: set[TopicPartition] = set()
        self.batches: list[int] = []
        self.trespassers: list[Record] = []
        """Records of partitions that were not this member's when they were handed over."""
        self.told: list[tuple[str, frozenset[TopicPartition]]] = []
        self.commits_when_revoked = True
        self._room = room
        self._grown = grown
        self.until = grown.until

    def records(self, batch: Sequence[Record]) -> None:
        self.batches.append(len(batch))
        for record in batch:
            self.records_of.setdefault(record.place, []).append(record)
            if record.place not in self.owned:
                self.trespassers.append(record)
        if self._room is not None:
            self.consumer.set_room(self._room)
        self._grown.tell()

    def assigned(self, places: Collection[TopicPartition]) -> None:
        self.told.append(("assigned", frozenset(places)))
        self.owned.update(places)
        self._grown.tell()

    def revoked(self, places: Collection[TopicPartition]) -> Mapping[TopicPartition, int]:
        self.told.append(("revoked", frozenset(places)))
        self.owned.difference_update(places)
        self._grown.tell()
        if not self.commits_when_revoked:
            return {}
        return {place: self.next_offset(place) for place in places if place in self.records_of}

    def lost(self, places: Collection[TopicPartition]) -> None:
        self.told.append(("lost", frozenset(places)))
        self.owned.difference_update(places)
        self._grown.tell()

    def next_offset(self, place: TopicPartition) -> int:
        return self.records_of[place][-1].offset + 1

    @property
    def ids(self) -> list[bytes]:
        return [record.call_id for place in sorted(self.records_of) for record in self.records_of[place]]


class Failures:
    """What a publisher was told."""

    def __init__(self) -> None:
        self.told: list[tuple[bytes, type[LogError]]] = []
        self.attempts: list[int] = []
        self._grown = asyncio.Event()

    def __call__(self, call_id: bytes, attempt: int, error: LogError) -> None:
        self.told.append((call_id, type(error)))
        self.attempts.append(attempt)
        self._grown.set()

    async def until(self, count: int) -> None:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while len(self.told) < count:
                self._grown.clear()
                await self._grown.wait()


class LogCarrier(Protocol):
    """What the suite does to a request log."""

    async def topic(self, partitions: int) -> str:
        """Make a topic of a fresh name."""
        ...

    async def publisher(self, failures: Failures, *, one_by_one: bool = False) -> RequestPublisher:
        """Start a publisher; with `one_by_one` a record waits until the one before it has been taken."""
        ...

    async def taker(self, group: str, topics: Collection[str], *, room: int | None = 500) -> Taker:
        """Start a member; with a room it is said again after every batch, with None the test says it."""
        ...

    async def leave(self, taker: Taker) -> None:
        """End a member."""
        ...

    async def committed(self, group: str, topic: str) -> dict[int, int]:
        """The offsets that a group has committed, by partition."""
        ...


class MemoryCarrier:
    """The twin."""

    def __init__(self, owned: AsyncExitStack) -> None:
        self._owned = owned
        self.log = MemoryRequestLog(max_message_bytes=MAX_MESSAGE_BYTES)
        self._grown = Grown()

    async def topic(self, partitions: int) -> str:
        name = uuid.uuid4().hex
        self.log.create(name, partitions)
        return name

    async def publisher(self, failures: Failures, *, one_by_one: bool = False) -> RequestPublisher:
        del one_by_one  # here none is on its way before the next turn of the loop
        return await self._owned.enter_async_context(MemoryPublisher(self.log, on_failure=failures))

    async def taker(self, group: str, topics: Collection[str], *, room: int | None = 500) -> Taker:
        taker = Taker(self._grown, room=room)
        taker.consumer = consumer = MemoryConsumer(self.log, group=group, events=taker)
        await consumer.__aenter__()
        if room is not None:
            consumer.set_room(room)
        consumer.subscribe(topics)
        return taker

    async def leave(self, taker: Taker) -> None:
        assert isinstance(taker.consumer, MemoryConsumer)
        await taker.consumer.__aexit__()

    async def committed(self, group: str, topic: str) -> dict[int, int]:
        offsets = self.log.committed.get(group, {})
        return {place.partition: offset for place, offset in offsets.items() if place.topic == topic}


class KafkaCarrier:
    """Apache Kafka."""

    def __init__(self, owned: AsyncExitStack, address: str, group_protocol: GroupProtocol = "consumer") -> None:
        self._owned = owned
        self.kafka = KafkaSettings(bootstrap_servers=address, group_protocol=group_protocol)
        self._consumers: dict[int, KafkaConsumer] = {}
        self._grown = Grown()

    async def topic(self, partitions: int, **config: str) -> str:
        name = f"contract-{uuid.uuid4().hex}"
        admin = AIOKafkaAdminClient(bootstrap_servers=self.kafka.bootstrap_servers)
        try:
            await admin.start()
            await admin.create_topics([NewTopic(name, partitions, 1, topic_configs=config)])
        finally:
            await admin.close()
        return name

    async def publisher(
        self, failures: Failures, *, one_by_one: bool = False, delivery_seconds: float = 10
    ) -> RequestPublisher:
        return await self._owned.enter_async_context(
            KafkaPublisher(
                self.kafka,
                client_id="test",
                max_message_bytes=MAX_MESSAGE_BYTES,
                delivery_seconds=delivery_seconds,
                on_failure=failures,
                turns=Turns(most_bytes=1, share_bytes=1, small_bytes=-1) if one_by_one else None,
            )
        )

    async def taker(self, group: str, topics: Collection[str], *, room: int | None = 500) -> Taker:
        taker = Taker(self._grown, room=room)
        taker.consumer = consumer = KafkaConsumer(
            self.kafka,
            client_id="test",
            group=group,
            max_message_bytes=MAX_MESSAGE_BYTES,
            events=taker,
            look_seconds=LOOK_SECONDS,
        )
        await consumer.__aenter__()
        self._consumers[id(taker)] = consumer
        self._owned.push_async_callback(self.leave, taker)
        if room is not None:
            consumer.set_room(room)
        consumer.subscribe(topics)
        return taker

    async def leave(self, taker: Taker) -> None:
        consumer = self._consumers.pop(id(taker), None)
        if consumer is not None:
            async with asyncio.timeout(PATIENCE_SECONDS):
                await consumer.__aexit__()

    async def failed(self, taker: Taker) -> None:
        """Raise what ended the member, which has no leave to take then."""
        try:
            await self._consumers[id(taker)].failed()
        finally:
            del self._consumers[id(taker)]

    async def committed(self, group: str, topic: str) -> dict[int, int]:
        admin = AIOKafkaAdminClient(bootstrap_servers=self.kafka.bootstrap_servers)
        try:
            await admin.start()
            offsets = await admin.list_consumer_group_offsets(group)
        finally:
            await admin.close()
        return {place.partition: said.offset for place, said in offsets.items() if place.topic == topic}
