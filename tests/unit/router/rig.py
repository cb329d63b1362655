"""An intake between the twins of its neighbours: the log in front, the gateways behind, a model server that waits."""

import asyncio
import math
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from headrace.bus.envelope import SCHEMA_VERSION
from headrace.bus.memory.answers import MemoryAnswerHub, MemoryAnswerLinks, MemoryNetwork
from headrace.bus.memory.requests import MemoryConsumer, MemoryRequestLog
from headrace.bus.protocols import Failure, Link, Outcome, Record, RouterKey, TopicPartition
from headrace.bus.v1.envelope_pb2 import METHOD_MODEL_INFER, Envelope, Metadatum, Method, TraceContext
from router.intake import Intake
from router.traces import RecordTraces

POOL, GROUP, GATEWAY, INCARNATION = "default", "routers", "127.0.0.1:7", 70
AN_HOUR = 3600.0


async def settle() -> None:
    """Let everything that is due in the loop happen, and what follows from it."""
    for _ in range(60):
        await asyncio.sleep(0)


def micros(seconds_from_now: float) -> int:
    return time.time_ns() // 1000 + int(seconds_from_now * 1e6)


@dataclass
class Began:
    """A call that the model server runs."""

    call_id: bytes
    seconds: float
    metadata: Sequence[Metadatum]
    outcome: asyncio.Future[Outcome]


class WaitingServer:
    """A model server whose calls end when the test says so. The payload of a call is its id."""

    def __init__(self) -> None:
        self.running: dict[bytes, Began] = {}
        self.begun: Counter[bytes] = Counter()
        self.cancelled: Counter[bytes] = Counter()
        self.on_begin: Callable[[bytes], None] = lambda _: None

    async def infer(self, request: bytes, metadata: Sequence[Metadatum], seconds: float) -> Outcome:
        call_id = request.rstrip(b".")
        self.on_begin(call_id)
        self.begun[call_id] += 1
        began = Began(call_id, seconds, metadata, asyncio.get_running_loop().create_future())
        self.running[call_id] = began
        try:
            return await began.outcome
        except asyncio.CancelledError:
            self.cancelled[call_id] += 1
            raise
        finally:
            del self.running[call_id]

    def finish(self, call_id: bytes, outcome: Outcome | Exception = b"answer") -> None:
        future = self.running[call_id].outcome
        if isinstance(outcome, Exception):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)


@dataclass
class Answers:
    """What one gateway heard."""

    heard: list[tuple[bytes, int, Outcome]] = field(default_factory=list)
    attached_routers: list[RouterKey] = field(default_factory=list)

    def answered(self, call_id: bytes, attempt: int, outcome: Outcome) -> None:
        self.heard.append((call_id, attempt, outcome))

    def attached(self, router: RouterKey) -> None:
        self.attached_routers.append(router)

    def left(self, router: RouterKey) -> None: ...

    def detached(self, router: RouterKey) -> None:
        self.attached_routers.remove(router)

    @property
    def ids(self) -> list[bytes]:
        return [call_id for call_id, _, _ in self.heard]


class Rig:
    """One router's intake, connected. Enter it inside a running loop."""

    def __init__(
        self,
        *,
        partitions: int = 2,
        max_waiting_bytes: int = 1 << 20,
        longest_seconds: float = math.inf,
        topics: Sequence[str] = ("t",),
        traces: RecordTraces | None = None,
    ) -> None:
        self.log = MemoryRequestLog()
        self.network = MemoryNetwork()
        self.server = WaitingServer()
        self.now = 0.0
        """The intake's clock."""
        self.used: list[tuple[str, str, float]] = []
        """Tenant, topic and seconds of calls that were with the model server."""
        self.intake = Intake(
            triton=self.server,
            max_waiting_bytes=max_waiting_bytes,
            longest_seconds=longest_seconds,
            triton_lost=self._look_after_triton,
            used=lambda *used: self.used.append(used),
            traces=traces,
            clock=lambda: self.now,
        )
        self.consumer = MemoryConsumer(self.log, group=GROUP, events=self)
        self.links = MemoryAnswerLinks(self.network, router=RouterKey("r", 1), pool=POOL, events=self)
        self.answers = Answers()
        self.on_records: Callable[[Sequence[Record]], None] = lambda _: None
        self.hub = self.gateway(GATEWAY, INCARNATION, self.answers)
        for topic in topics:
            self.log.create(topic, partitions)

    def _look_after_triton(self) -> None:
        """The model server is found there again at the next look."""
        asyncio.get_running_loop().call_soon(self.intake.release)

    def gateway(self, address: str, incarnation: int, heard: Answers) -> MemoryAnswerHub:
        return MemoryAnswerHub(self.network, address=address, incarnation=incarnation, pool=POOL, events=heard)

    async def start(self, windows: Mapping[str, int]) -> None:
        await self.hub.__aenter__()
        await self.consumer.__aenter__()
        self.intake.connect(self.consumer, self.links)
        self.intake.set_windows(windows)
        self.consumer.subscribe(windows)
        await settle()

    async def stop(self) -> None:
        """Leave nothing behind, whatever a test left running."""
        await self.consumer.__aexit__()
        await self.intake.cancel_running()
        await self.links.__aexit__()

    def publish(
        self,
        call_id: bytes,
        *,
        topic: str = "t",
        partition: int = 0,
        seconds: float = AN_HOUR,
        attempt: int = 1,
        gateway: tuple[str, int] = (GATEWAY, INCARNATION),
        payload: bytes | None = None,
        method: Method = METHOD_MODEL_INFER,
        schema_version: int = SCHEMA_VERSION,
        metadata: Sequence[Metadatum] = (),
        tenant: str = "acme",
        trace_context: TraceContext | None = None,
    ) -> tuple[TopicPartition, int]:
        """Put a call into the log. Returns where it stands."""
        place = TopicPartition(topic, partition)
        envelope = Envelope(
            schema_version=schema_version,
            call_id=call_id,
            method=method,
            reply_address=gateway[0],
            reply_incarnation=gateway[1],
            expire_time_unix_micros=micros(seconds),
            attempt=attempt,
            tenant=tenant,
            metadata=metadata,
            trace_context=trace_context,
        )
        offset = self.log.append(place, call_id, envelope.SerializeToString(), call_id if payload is None else payload)
        return place, offset

    async def commit(self) -> None:
        self.consumer.commit(self.intake.committable())
        await settle()

    def committed(self, topic: str = "t", partition: int = 0) -> int:
        return self.log.committed[GROUP][TopicPartition(topic, partition)]

    # IntakeEvents and LinkEvents, as the composition root passes them on.

    def records(self, batch: Sequence[Record]) -> None:
        self.on_records(batch)
        self.intake.records(batch)

    def assigned(self, places: Collection[TopicPartition]) -> None:
        self.intake.assigned(places)

    def revoked(self, places: Collection[TopicPartition]) -> Mapping[TopicPartition, int]:
        return self.intake.revoked(places)

    def lost(self, places: Collection[TopicPartition]) -> None:
        self.intake.lost(places)

    def cancelled(self, call_id: bytes, attempt: int, expire_time_unix_micros: int) -> None:
        self.intake.cancelled(call_id, attempt, expire_time_unix_micros)

    def link_changed(self, link: Link) -> None:
        self.intake.link_changed(link)

    async def administer(self, method: str, request: bytes, expire_time_unix_micros: int) -> Outcome:
        del method, request, expire_time_unix_micros
        return Failure.INTERNAL


class OtherMember:
    """Another router of the pool that takes its share of the partitions and begins nothing."""

    def records(self, batch: Sequence[Record]) -> None: ...

    def assigned(self, places: Collection[TopicPartition]) -> None: ...

    def revoked(self, places: Collection[TopicPartition]) -> Mapping[TopicPartition, int]:
        del places
        return {}

    def lost(self, places: Collection[TopicPartition]) -> None: ...
