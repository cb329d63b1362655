"""ModelInfer between the twins of its neighbours: a caller on a real connection, the log and the routers behind."""

import asyncio
import gzip
import time
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
import pytest
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status
from grpc import StatusCode
from tritonclient.grpc import service_pb2 as oip

from gateway.admission import Admission
from gateway.calls import WaitingCalls
from gateway.delivery import Delivery, DeliveryTerms
from gateway.identity import Caller
from gateway.infer import METHOD, CallTerms, ModelInfer, random_ids
from gateway.quotas import Accounts
from gateway.registry import Registry
from gateway.status import Handler
from gateway.traces import CallTraces
from headrace.bus.envelope import read_envelope
from headrace.bus.memory.answers import MemoryAnswerHub, MemoryAnswerLinks, MemoryLink, MemoryNetwork
from headrace.bus.memory.requests import MemoryConsumer, MemoryPublisher, MemoryRequestLog
from headrace.bus.protocols import (
    Failure,
    Link,
    LogError,
    LogFullError,
    LogUnavailableError,
    Outcome,
    Record,
    RecordTooLargeError,
    RequestPublisher,
    RouterKey,
    TopicPartition,
)
from headrace.bus.topics import request_topic
from headrace.bus.usage import UsageMeter
from headrace.bus.v1.envelope_pb2 import METHOD_MODEL_INFER, Metadatum
from headrace.bus.v1.reply_pb2 import ModelServerStatus
from tests.unit.gateway.admitting import admitting
from tests.unit.gateway.announcing import INCARNATION, POOL, description, heartbeat, registry, statistics, version
from tests.unit.gateway.wire import field

A, B = RouterKey("a", 1), RouterKey("b", 2)
REPLY_ADDRESS = "127.0.0.1:7777"
TENANT = "billing"
TOPIC = request_topic(POOL, "interactive", "simple")
PATIENCE_SECONDS = 30.0
DEFAULT_SECONDS, MAXIMUM_SECONDS = 60.0, 120.0
LIMIT = 1 << 20
Metadata = Sequence[tuple[str, str | bytes]]


def request_for(model: str = "simple", content: bytes = b"\x00\xff") -> bytes:
    """A request that no library would write so: its name comes last, and a field that nobody knows comes first."""
    return field(99, b"unknown") + field(7, content) + field(1, model.encode())


REQUEST = request_for()


class Routers:
    """The routers' end of the log and of the way home: all that they hear, to be waited for."""

    def __init__(self) -> None:
        self.heard: asyncio.Queue[Record] = asyncio.Queue()
        self.cancellations: asyncio.Queue[tuple[bytes, int, int]] = asyncio.Queue()

    def records(self, batch: Sequence[Record]) -> None:
        for record in batch:
            self.heard.put_nowait(record)

    def assigned(self, places: Collection[TopicPartition]) -> None: ...

    def revoked(self, _places: Collection[TopicPartition]) -> Mapping[TopicPartition, int]:
        return {}

    def lost(self, places: Collection[TopicPartition]) -> None: ...

    def cancelled(self, call_id: bytes, attempt: int, expire_time_unix_micros: int) -> None:
        self.cancellations.put_nowait((call_id, attempt, expire_time_unix_micros))

    def link_changed(self, link: Link) -> None: ...

    async def administer(self, _method: str, _request: bytes, _expire_time_unix_micros: int) -> Outcome:
        return Failure.INTERNAL


class Hub:
    """What the gateway hears from routers."""

    def __init__(self) -> None:
        self.delivery: Delivery | None = None
        self.is_attached = asyncio.Event()

    def answered(self, call_id: bytes, attempt: int, outcome: Outcome) -> None:
        assert self.delivery is not None
        self.delivery.answered(call_id, attempt, outcome)

    def publish_failed(self, call_id: bytes, attempt: int, error: LogError) -> None:
        assert self.delivery is not None
        self.delivery.publish_failed(call_id, attempt, error)

    def attached(self, _router: RouterKey) -> None:
        self.is_attached.set()

    def left(self, router: RouterKey) -> None: ...

    def detached(self, router: RouterKey) -> None: ...


@dataclass(frozen=True)
class Rig:
    """A running gateway's call path, and everything around it."""

    infer: ModelInfer
    delivery: Delivery
    calls: WaitingCalls
    log: MemoryRequestLog
    routers: Routers
    link: MemoryLink
    channel: grpc.aio.Channel

    def call(
        self, request: bytes = REQUEST, *, metadata: Metadata = (), seconds: float | None = None
    ) -> "grpc.aio.UnaryUnaryCall[bytes, bytes]":
        """A caller's call."""
        method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = self.channel.unary_unary(METHOD)
        return method(request, metadata=tuple(metadata), timeout=seconds)

    async def record(self) -> Record:
        """The next record that a router reads."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            return await self.routers.heard.get()

    async def cancellation(self) -> tuple[bytes, int, int]:
        """The next cancellation that a router hears."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            return await self.routers.cancellations.get()

    async def answer(self, outcome: Outcome) -> Record:
        """Answer the next record."""
        record = await self.record()
        self.link.send(record.call_id, read_envelope(record.envelope).attempt, outcome)
        return record

    async def assert_nothing_is_left(self) -> None:
        """No call waits, and none is counted as waiting."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            await self.calls.drained()
        assert (len(self.calls), self.calls.request_bytes, self.calls.outstanding) == (0, 0, {})


def one_router(*, complete: bool = True) -> Registry:
    known = registry(heartbeat(A), description(A), attached=(A,))
    known.complete = complete
    return known


def nobody_alive() -> Registry:
    return registry(heartbeat(A), description(A))


def nothing_loaded() -> Registry:
    known = registry(heartbeat(A), description(A, versions=(version(state="UNAVAILABLE"),)), attached=(A,))
    known.complete = True
    return known


def nobody_owns() -> Registry:
    return registry(heartbeat(A), description(A, partitions=()), attached=(A,))


@asynccontextmanager
async def started(
    known: Registry | None = None,
    *,
    max_calls: int = 100,
    max_bytes: int = 2 * LIMIT,
    publisher: RequestPublisher | None = None,
    admission: Admission | None = None,
    usage: UsageMeter | None = None,
    traces: CallTraces | None = None,
    pool_may_sleep: bool = False,
    turn: int = 0,
    attempts: int = 1,
    owner_wait_seconds: float = 60.0,
    **terms: Any,
) -> AsyncIterator[Rig]:
    """The call path on a port of its own, and a router that is attached and reads the log."""
    calls = WaitingCalls(max_calls=max_calls, max_bytes=max_bytes)
    network, log, routers, events = MemoryNetwork(), MemoryRequestLog(), Routers(), Hub()
    log.create(TOPIC, 8)
    async with (
        MemoryAnswerHub(network, address=REPLY_ADDRESS, incarnation=INCARNATION, pool=POOL, events=events) as hub,
        MemoryAnswerLinks(network, router=A, pool=POOL, events=routers) as links,
        MemoryConsumer(log, group="routers", events=routers) as consumer,
    ):
        consumer.subscribe([TOPIC])
        consumer.set_room(1000)
        link = links.link(REPLY_ADDRESS, INCARNATION)
        assert link is not None
        await events.is_attached.wait()
        agreed: dict[str, Any] = {
            "reply_address": REPLY_ADDRESS,
            "incarnation": INCARNATION,
            "default_deadline_seconds": DEFAULT_SECONDS,
            "maximum_deadline_seconds": MAXIMUM_SECONDS,
            "max_message_bytes": LIMIT,
        }
        known = one_router() if known is None else known
        delivery = events.delivery = Delivery(
            terms=DeliveryTerms(
                pool=POOL, pool_may_sleep=pool_may_sleep, attempts=attempts, owner_wait_seconds=owner_wait_seconds
            ),
            registry=known,
            calls=calls,
            publisher=publisher or MemoryPublisher(log, on_failure=events.publish_failed),
            hub=hub,
            clock=asyncio.get_running_loop().time,
            turn=turn,
        )
        infer = ModelInfer(
            terms=CallTerms(**agreed | terms),
            registry=known,
            calls=calls,
            delivery=delivery,
            admission=admission or admitting(),
            usage=usage or UsageMeter("gateway/a/1"),
            traces=traces,
        )
        server = grpc.aio.server()
        service, method = METHOD.strip("/").split("/")
        handler: Handler = grpc.unary_unary_rpc_method_handler(infer.handler(Caller(TENANT, "key-1")))
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
        address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        try:
            async with grpc.aio.insecure_channel(address) as channel:
                yield Rig(infer, delivery, calls, log, routers, link, channel)
        finally:
            await server.stop(None)


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    async with started() as made:
        yield made


async def failed(call: "grpc.aio.UnaryUnaryCall[bytes, bytes]") -> grpc.aio.AioRpcError:
    """How a call ends that has to fail."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async with asyncio.timeout(PATIENCE_SECONDS):
            await call
    return caught.value


async def refused(call: "grpc.aio.UnaryUnaryCall[bytes, bytes]") -> tuple[StatusCode, str]:
    """Code and reason of a call that has to be refused, by the gateway itself."""
    error = await failed(call)
    [details] = [value for key, value in error.trailing_metadata() if key == "grpc-status-details-bin"]
    assert isinstance(details, bytes)
    status, info = Status.FromString(details), ErrorInfo()
    assert (status.code, status.message) == (error.code().value[0], error.details())
    assert status.details[0].Unpack(info)
    assert info.domain == "headrace"
    return error.code(), info.reason


ONE_AT_A_TIME = f"tenants: {{{TENANT}: {{models: ['*'], limits: {{concurrency: 1}}}}}}"


def taking(seconds: float) -> Registry:
    """A model whose calls have taken so long on average; one of its routers has counted nothing yet."""
    counted = oip.ModelStatistics(name="simple", version="1")
    counted.inference_stats.success.count = 4
    counted.inference_stats.success.ns = round(4e9 * seconds)
    known = registry(
        *(heartbeat(A), description(A), statistics(A, counted)),
        *(heartbeat(B), description(B), statistics(B)),
        attached=(A, B),
    )
    known.complete = True
    return known


@pytest.mark.parametrize("how", ["hangs up", "brings a short deadline"])
async def test_a_caller_who_leaves_keeps_its_slot_for_as_long_as_the_model_runs_on(how: str) -> None:
    async with started(taking(3600), admission=admitting(ONE_AT_A_TIME)) as rig:
        call = rig.call(seconds=1.0 if how == "brings a short deadline" else None)
        await rig.record()
        if how == "hangs up":
            call.cancel()
        await rig.cancellation()
        await rig.assert_nothing_is_left()

        assert await refused(rig.call()) == (StatusCode.RESOURCE_EXHAUSTED, "CONCURRENCY_LIMITED")


async def published(rig: Rig) -> bool:
    """Whether a call comes in: it is refused, or a router reads it."""
    call = rig.call()
    done = asyncio.create_task(call.code())
    await asyncio.wait({done, heard := asyncio.create_task(rig.routers.heard.get())}, return_when="FIRST_COMPLETED")
    if done.done():
        heard.cancel()
        assert done.result() is StatusCode.RESOURCE_EXHAUSTED
        return False
    rig.link.send(heard.result().call_id, 1, b"answer")
    assert await call == b"answer"
    return True


async def test_the_slot_of_a_caller_who_left_is_free_after_the_models_mean_time() -> None:
    async with started(taking(0.05), admission=admitting(ONE_AT_A_TIME)) as rig:
        call = rig.call()
        await rig.record()
        call.cancel()
        await rig.cancellation()

        async with asyncio.timeout(PATIENCE_SECONDS):
            while not await published(rig):
                pass


async def test_a_call_that_no_router_had_frees_its_slot_at_once() -> None:
    class Kept(MemoryPublisher):
        """Holds every record back, so that it can still be withdrawn."""

        def publish(self, *_: object, **__: object) -> None:
            kept.set()

        def withdraw(self, _call_id: bytes) -> bool:
            return True

    kept = asyncio.Event()
    publisher = Kept(MemoryRequestLog(), on_failure=lambda *_: None)
    async with started(taking(3600), admission=admitting(ONE_AT_A_TIME), publisher=publisher) as rig:
        for _ in range(2):
            call = rig.call()
            async with asyncio.timeout(PATIENCE_SECONDS):
                await kept.wait()
            kept.clear()
            call.cancel()
            await rig.assert_nothing_is_left()


def sorted_by_key(metadata: Iterable[tuple[str, str | bytes]]) -> list[tuple[str, str | bytes]]:
    """HTTP keeps the order of entries of one key, and promises no other."""
    return sorted(metadata, key=lambda entry: entry[0])


def micros() -> int:
    return time.time_ns() // 1000


# What goes, and what comes back.


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress])
async def test_a_compressed_request_is_the_same_call(rig: Rig, pack: Callable[[bytes], bytes]) -> None:
    """As gRPC hands it over, which is told to leave it packed."""
    call = rig.call(pack(REQUEST))

    assert (await rig.answer(b"done")).payload == REQUEST
    assert await call == b"done"


async def test_what_is_too_large_inside_is_refused_like_any_other(rig: Rig) -> None:
    large = request_for(content=bytes(LIMIT))

    assert await refused(rig.call(gzip.compress(large))) == (StatusCode.RESOURCE_EXHAUSTED, "REQUEST_TOO_LARGE")
    assert await refused(rig.call(gzip.compress(REQUEST)[:-1])) == (StatusCode.INVALID_ARGUMENT, "REQUEST_MALFORMED")
    assert rig.infer.ended == Counter(REQUEST_TOO_LARGE=1, REQUEST_MALFORMED=1)
    await rig.assert_nothing_is_left()


async def test_bytes_pass_as_they_are_both_ways(rig: Rig) -> None:
    call = rig.call()
    answer = b"\x00 no message at all \xff"

    record = await rig.answer(answer)

    assert record.payload == REQUEST
    assert await call == answer
    assert rig.infer.ended == Counter(OK=1)
    await rig.assert_nothing_is_left()


async def test_what_is_answered_is_counted_and_what_is_not_is_not() -> None:
    meter = UsageMeter("gateway/a/1")
    async with started(usage=meter) as rig:
        for outcome in (b"12345", ModelServerStatus(code=3, message="no")):
            call = rig.call()
            await rig.answer(outcome)
            with suppress(grpc.aio.AioRpcError):
                await call
        call = rig.call()
        await rig.answer(Failure.TRITON_LOST)
        await failed(call)
        [used] = meter.close()[0].entries

    assert (used.tenant, used.key_id, used.model) == (TENANT, "key-1", "simple")
    assert (used.calls, used.request_bytes, used.response_bytes) == (2, 2 * len(REQUEST), 5)


async def test_a_call_that_nobody_answered_takes_nothing_of_a_quota() -> None:
    accounts = Accounts(None)
    policy = f"tenants: {{{TENANT}: {{models: ['*'], quotas: {{calls_per_day: 2}}}}}}"
    async with started(admission=admitting(policy, accounts=accounts)) as rig:
        for outcome, remaining in ((Failure.TRITON_LOST, 2), (b"", 1), (b"", 0)):
            call = rig.call()
            await rig.answer(outcome)
            with suppress(grpc.aio.AioRpcError):
                await call
                told = dict(await call.trailing_metadata())
                assert str(told["x-quota"]).startswith(f"calls_per_day;limit=2;remaining={remaining};reset=")
        assert await refused(rig.call()) == (StatusCode.RESOURCE_EXHAUSTED, "QUOTA_EXHAUSTED")


async def test_the_envelope_tells_all_that_a_router_must_know(rig: Rig) -> None:
    metadata = (("my-id", "2"), ("authorization", "Bearer hr_k_s"), ("my-trace-bin", b"\x00\xff"), ("my-id", "1"))
    before = micros()
    call = rig.call(metadata=metadata)

    record = await rig.answer(b"")
    await call

    envelope = read_envelope(record.envelope)
    assert len(envelope.call_id) == 16
    assert (envelope.call_id, envelope.method) == (record.call_id, METHOD_MODEL_INFER)
    assert (envelope.reply_address, envelope.reply_incarnation) == (REPLY_ADDRESS, INCARNATION)
    assert (envelope.attempt, envelope.tenant) == (1, TENANT)
    assert sorted_by_key([(each.key, each.value) for each in envelope.metadata]) == [
        ("my-id", b"2"),
        ("my-id", b"1"),
        ("my-trace-bin", b"\x00\xff"),
    ]
    assert before <= envelope.expire_time_unix_micros - DEFAULT_SECONDS * 1e6 <= micros()


@pytest.mark.parametrize(("asked", "granted"), [(30.0, 30.0), (MAXIMUM_SECONDS + 500, MAXIMUM_SECONDS)])
async def test_a_callers_deadline_is_kept_and_cut_to_the_maximum(rig: Rig, asked: float, granted: float) -> None:
    before = micros()
    call = rig.call(seconds=asked)

    record = await rig.answer(b"")
    await call

    expire = read_envelope(record.envelope).expire_time_unix_micros
    rounding_micros = 100_000  # how a deadline travels in a header
    assert before - rounding_micros <= expire - granted * 1e6 <= micros() + rounding_micros


async def test_every_call_has_an_id_of_its_own(rig: Rig) -> None:
    calls = [rig.call() for _ in range(20)]
    records = [await rig.record() for _ in calls]
    for record in reversed(records):
        rig.link.send(record.call_id, 1, record.call_id)

    assert sorted([await call for call in calls]) == sorted({record.call_id for record in records})
    assert len({record.call_id for record in records}) == 20


def test_ids_are_not_repeated_from_one_draw_to_the_next() -> None:
    next_id, other = random_ids(), random_ids()

    drawn = {make() for _ in range(1000) for make in (next_id, other)}

    assert len(drawn) == 2000
    assert {len(each) for each in drawn} == {16}


async def test_the_first_answer_counts_and_others_are_strays(rig: Rig) -> None:
    call = rig.call()
    record = await rig.record()
    rig.link.send(record.call_id, 2, b"first")
    rig.link.send(record.call_id, 1, b"second")

    assert await call == b"first"
    assert rig.calls.strays == 1


async def test_a_call_goes_where_least_is_waiting() -> None:
    known = registry(
        heartbeat(A),
        description(A, partitions=(0,), window=2),
        heartbeat(B),
        description(B, partitions=(5,), window=4),
        attached=(A, B),
    )
    async with started(known) as rig:
        places, waiting = [], []
        for _ in range(3):
            waiting.append(rig.call())
            places.append((await rig.record()).place)

        assert Counter(places) == {TopicPartition(TOPIC, 0): 1, TopicPartition(TOPIC, 5): 2}
        assert rig.calls.outstanding == {A: 1, B: 2}


async def test_gateways_with_one_call_each_do_not_all_choose_the_same_router() -> None:
    known = registry(
        heartbeat(A), description(A, partitions=(0,)), heartbeat(B), description(B, partitions=(5,)), attached=(A, B)
    )
    chosen = set()
    for turn in range(4):
        async with started(known, turn=turn) as rig:
            call = rig.call()
            chosen.add((await rig.record()).place.partition)
            call.cancel()

    assert chosen == {0, 5}


# What Triton itself says.


async def test_tritons_own_errors_pass_unchanged(rig: Rig) -> None:
    call = rig.call()
    sent = [("my-id", b"2"), ("my-trace-bin", b"\x00\xff"), ("my-id", b"1"), ("grpc-status-details-bin", b"\x08\x03")]
    status = ModelServerStatus(
        code=StatusCode.INVALID_ARGUMENT.value[0],
        message="[request id: ü] unexpected shape\nfor input '%'",
        trailing_metadata=[Metadatum(key=key, value=value) for key, value in sent],
    )

    await rig.answer(status)

    error = await failed(call)
    assert (error.code(), error.details()) == (StatusCode.INVALID_ARGUMENT, status.message)
    assert sorted_by_key(error.trailing_metadata()) == sorted_by_key(
        (key, value if key.endswith("-bin") else value.decode()) for key, value in sent
    )
    assert rig.infer.ended == Counter(TRITON=1)
    await rig.assert_nothing_is_left()


async def test_a_code_that_grpc_does_not_know_is_unknown(rig: Rig) -> None:
    call = rig.call()

    await rig.answer(ModelServerStatus(code=77, message="odd"))

    error = await failed(call)
    assert (error.code(), error.details()) == (StatusCode.UNKNOWN, "odd")


async def test_metadata_that_is_no_text_does_not_hide_tritons_error(rig: Rig) -> None:
    call = rig.call()
    entry = Metadatum(key="my-text", value="ü".encode())

    await rig.answer(ModelServerStatus(code=3, message="wrong shape", trailing_metadata=[entry]))

    error = await failed(call)
    assert (error.code(), error.details()) == (StatusCode.INVALID_ARGUMENT, "wrong shape")


# What the gateway refuses.

FAILURES = {
    Failure.EXPIRED: (StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED"),
    Failure.TRITON_LOST: (StatusCode.UNAVAILABLE, "TRITON_LOST"),
    Failure.ANSWER_TOO_LARGE: (StatusCode.RESOURCE_EXHAUSTED, "ANSWER_TOO_LARGE"),
    Failure.BAD_RECORD: (StatusCode.INTERNAL, "INTERNAL"),
    Failure.INTERNAL: (StatusCode.INTERNAL, "INTERNAL"),
    Failure.ROUTER_LEFT: (StatusCode.UNAVAILABLE, "ROUTER_LOST"),
    Failure.GATEWAY_FULL: (StatusCode.RESOURCE_EXHAUSTED, "GATEWAY_FULL"),
}


@pytest.mark.parametrize("failure", Failure)
async def test_what_a_router_could_not_bring_has_a_reason(rig: Rig, failure: Failure) -> None:
    call = rig.call()

    record = await rig.answer(failure)

    assert await refused(call) == FAILURES[failure]
    assert rig.infer.ended == Counter([FAILURES[failure][1]])
    named = record.call_id.hex() in await call.details()
    assert named == (FAILURES[failure][1] == "INTERNAL")
    await rig.assert_nothing_is_left()


LOG_ERRORS = [
    (LogFullError, (StatusCode.RESOURCE_EXHAUSTED, "LOG_FULL")),
    (LogUnavailableError, (StatusCode.UNAVAILABLE, "LOG_UNAVAILABLE")),
    (RecordTooLargeError, (StatusCode.RESOURCE_EXHAUSTED, "REQUEST_TOO_LARGE")),
]


@pytest.mark.parametrize(("error", "refusal"), LOG_ERRORS)
@pytest.mark.parametrize("when", ["refuse_at_once", "refuse_later"])
async def test_a_log_that_does_not_take_a_call_ends_it(
    rig: Rig, when: str, error: type[LogError], refusal: tuple[StatusCode, str]
) -> None:
    setattr(rig.log, when, error("a broker's own words"))
    call = rig.call()

    assert await refused(call) == refusal
    assert "broker's own words" not in await call.details()
    assert rig.infer.ended == Counter([refusal[1]])
    await rig.assert_nothing_is_left()


async def test_a_delivery_that_failed_in_time_may_have_happened_so_routers_are_told(rig: Rig) -> None:
    rig.log.refuse_later = LogUnavailableError()

    await refused(rig.call())

    assert (await rig.cancellation())[1] == 1


@pytest.mark.parametrize("bounds", [{"max_calls": 1}, {"max_bytes": 2 * len(REQUEST) - 1}])
async def test_a_full_gateway_refuses_at_once_and_takes_the_next_when_there_is_room(bounds: dict[str, Any]) -> None:
    async with started(**bounds) as rig:
        first = rig.call()
        record = await rig.record()

        assert await refused(rig.call()) == (StatusCode.RESOURCE_EXHAUSTED, "GATEWAY_FULL")
        rig.link.send(record.call_id, 1, b"")
        await first
        third = rig.call()
        await rig.answer(b"room")

        assert await third == b"room"
        assert rig.infer.ended == Counter(OK=2, GATEWAY_FULL=1)


async def test_a_request_over_the_limit_is_refused_and_one_at_the_limit_is_not() -> None:
    async with started(max_message_bytes=len(REQUEST)) as rig:
        assert await refused(rig.call(REQUEST + b"\x10\x00")) == (StatusCode.RESOURCE_EXHAUSTED, "REQUEST_TOO_LARGE")

        taken = rig.call()
        await rig.answer(b"")
        assert await taken == b""


@pytest.mark.parametrize(
    ("known", "request_bytes", "refusal"),
    [
        (one_router(), request_for("nothing"), (StatusCode.NOT_FOUND, "MODEL_UNKNOWN")),
        (one_router(complete=False), request_for("nothing"), (StatusCode.UNAVAILABLE, "GATEWAY_STARTING")),
        (one_router(), request_for(""), (StatusCode.INVALID_ARGUMENT, "MODEL_NAME_INVALID")),
        (one_router(), b"\xff", (StatusCode.INVALID_ARGUMENT, "REQUEST_MALFORMED")),
        (nobody_alive(), REQUEST, (StatusCode.UNAVAILABLE, "NO_LIVE_ROUTER")),
        (nothing_loaded(), REQUEST, (StatusCode.UNAVAILABLE, "MODEL_NOT_READY")),
    ],
    ids=["unknown", "not known yet", "no name", "malformed", "no live router", "not ready"],
)
async def test_what_nobody_can_run_is_refused_with_a_reason(
    known: Registry, request_bytes: bytes, refusal: tuple[StatusCode, str]
) -> None:
    async with started(known) as rig:
        assert await refused(rig.call(request_bytes)) == refusal

        assert not any(rig.log.records.values())
        assert rig.infer.ended == Counter([refusal[1]])


@pytest.mark.parametrize(
    ("known", "pool_may_sleep"), [(nobody_alive(), True), (nobody_owns(), False)], ids=["asleep", "moving"]
)
async def test_a_call_waits_in_the_log_while_the_pool_sleeps_or_its_partitions_move(
    known: Registry, *, pool_may_sleep: bool
) -> None:
    async with started(known, pool_may_sleep=pool_may_sleep) as rig:
        call = rig.call()
        record = await rig.record()

        assert record.place.topic == TOPIC
        assert (len(rig.calls), rig.calls.outstanding) == (1, {})
        rig.link.send(record.call_id, 1, b"awake")
        assert await call == b"awake"


async def test_a_pool_that_is_awake_without_the_model_is_not_asleep() -> None:
    async with started(nothing_loaded(), pool_may_sleep=True) as rig:
        assert await refused(rig.call()) == (StatusCode.UNAVAILABLE, "MODEL_NOT_READY")
        assert await refused(rig.call(request_for("nothing"))) == (StatusCode.NOT_FOUND, "MODEL_UNKNOWN")


class Broken:
    """A publisher that fails in a way that it does not promise."""

    def publish(
        self, place: TopicPartition, call_id: bytes, envelope: bytes, payload: bytes, *, attempt: int = 1
    ) -> None:
        del place, call_id, envelope, payload, attempt
        raise LookupError("host db-7 is lost")

    def withdraw(self, call_id: bytes) -> bool:
        raise AssertionError(f"{call_id!r} was never published")


async def test_what_nobody_foresaw_is_internal_and_tells_no_internals(caplog: pytest.LogCaptureFixture) -> None:
    async with started(publisher=Broken()) as rig:
        call = rig.call()

        assert await refused(call) == (StatusCode.INTERNAL, "INTERNAL")
        [line] = [line for line in caplog.records if getattr(line, "event", "") == "call_failed_unforeseen"]
        assert vars(line)["call_id"] in await call.details()
        assert "db-7" not in f"{await call.details()} {await call.trailing_metadata()}"
        assert rig.infer.ended == Counter(INTERNAL=1)
        await rig.assert_nothing_is_left()


# Who leaves, and what takes too long.


async def test_a_caller_who_leaves_takes_the_call_along(rig: Rig) -> None:
    call = rig.call()
    record = await rig.record()

    call.cancel()

    expire = read_envelope(record.envelope).expire_time_unix_micros
    assert await rig.cancellation() == (record.call_id, 1, expire)
    await rig.assert_nothing_is_left()
    assert rig.infer.ended == Counter(CANCELLED=1)
    rig.link.send(record.call_id, 1, b"late")
    other = rig.call()
    await rig.answer(b"")
    await other
    assert rig.calls.strays == 1


async def test_a_caller_who_leaves_frees_its_place_at_once() -> None:
    """And no call that a limit refused took one."""
    policy = f"tenants: {{{TENANT}: {{models: [simple], limits: {{concurrency: 1}}}}}}"
    async with started(admission=admitting(policy)) as rig:
        for _ in range(3):
            call = rig.call()
            record = await rig.record()
            assert await refused(rig.call()) == (StatusCode.RESOURCE_EXHAUSTED, "CONCURRENCY_LIMITED")
            call.cancel()
            assert (await rig.cancellation())[0] == record.call_id

        last = rig.call()
        await rig.answer(b"done")
        assert await last == b"done"


class Queueing:
    """A publisher in which records wait for their turn, which never comes."""

    def __init__(self) -> None:
        self.waiting: set[bytes] = set()
        self.changed = asyncio.Event()

    def publish(
        self, place: TopicPartition, call_id: bytes, envelope: bytes, payload: bytes, *, attempt: int = 1
    ) -> None:
        del place, envelope, payload, attempt
        self.waiting.add(call_id)
        self.changed.set()

    def withdraw(self, call_id: bytes) -> bool:
        self.waiting.remove(call_id)
        self.changed.set()
        return True


async def test_a_call_that_ends_before_its_record_was_sent_leaves_none_behind() -> None:
    publisher = Queueing()
    async with started(publisher=publisher) as rig, asyncio.timeout(PATIENCE_SECONDS):
        call = rig.call()
        await publisher.changed.wait()
        publisher.changed.clear()

        call.cancel()
        await publisher.changed.wait()

        assert not publisher.waiting
        assert rig.routers.cancellations.empty(), "no router has it"


async def test_a_callers_own_deadline_ends_the_call_everywhere(rig: Rig) -> None:
    call = rig.call(seconds=1.0)
    record = await rig.record()
    # Until the deadline has passed for the gateway too, which begins to count it a little after the caller does.
    time.sleep(1.05)  # noqa: ASYNC251  so that it hears only then that the caller has gone

    assert (await failed(call)).code() is StatusCode.DEADLINE_EXCEEDED
    assert (await rig.cancellation())[:2] == (record.call_id, 1)
    await rig.assert_nothing_is_left()
    assert rig.infer.ended == Counter(DEADLINE_EXCEEDED=1)


@pytest.mark.parametrize(
    ("terms", "asked"), [({"default_deadline_seconds": 0.05}, None), ({"maximum_deadline_seconds": 0.05}, 30.0)]
)
async def test_a_deadline_of_the_gateways_own_ends_the_call_with_a_reason(
    terms: dict[str, Any], asked: float | None
) -> None:
    async with started(**terms) as rig:
        call = rig.call(seconds=asked)
        record = await rig.record()

        assert await refused(call) == (StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED")
        assert (await rig.cancellation())[:2] == (record.call_id, 1)
        assert rig.infer.ended == Counter(DEADLINE_EXCEEDED=1)
        await rig.assert_nothing_is_left()


async def test_a_lost_router_ends_its_calls_and_routers_hear_of_it(rig: Rig) -> None:
    call = rig.call()
    record = await rig.record()

    rig.delivery.router_lost(A)

    assert await refused(call) == (StatusCode.UNAVAILABLE, "ROUTER_LOST")
    assert (await rig.cancellation())[:2] == (record.call_id, 1)
    await rig.assert_nothing_is_left()


# What is published again.


def two_routers() -> Registry:
    return registry(
        heartbeat(A), description(A, partitions=(0,)), heartbeat(B), description(B, partitions=(5,)), attached=(A, B)
    )


async def test_a_lost_call_is_published_again_as_it_was() -> None:
    async with started(two_routers(), attempts=3) as rig:
        call = rig.call(metadata=[("my-id", "1")])
        first = await rig.record()
        lost_by = A if first.place.partition == 0 else B

        rig.delivery.router_lost(lost_by)
        second = await rig.answer(b"done")

        assert await call == b"done"
        assert (await rig.cancellation())[:2] == (first.call_id, 1)
        told, again = read_envelope(first.envelope), read_envelope(second.envelope)
        assert (told.attempt, again.attempt) == (1, 2)
        again.attempt = 1
        assert again == told
        assert (second.call_id, second.payload) == (first.call_id, first.payload)
        assert {first.place.partition, second.place.partition} == {0, 5}
        assert rig.infer.ended == Counter(OK=1)
        assert rig.delivery.republished == Counter(ROUTER_LOST=1)
        await rig.assert_nothing_is_left()


async def test_a_call_that_is_published_again_is_used_once_and_keeps_its_slot() -> None:
    meter = UsageMeter("gateway/a/1")
    async with started(two_routers(), attempts=3, usage=meter, admission=admitting(ONE_AT_A_TIME)) as rig:
        call = rig.call()
        await rig.answer(Failure.TRITON_LOST)
        second = await rig.record()

        assert await refused(rig.call()) == (StatusCode.RESOURCE_EXHAUSTED, "CONCURRENCY_LIMITED")
        rig.link.send(second.call_id, 2, b"12345")
        await call
        next_one = rig.call()
        await rig.answer(b"")
        await next_one
        [used] = meter.close()[0].entries

    assert (used.calls, used.request_bytes, used.response_bytes) == (2, 2 * len(REQUEST), 5)


async def test_a_caller_who_leaves_while_its_call_is_tried_again_takes_every_attempt_along() -> None:
    async with started(two_routers(), attempts=3) as rig:
        call = rig.call()
        first = await rig.answer(Failure.TRITON_LOST)
        await rig.record()
        assert (await rig.cancellation())[:2] == (first.call_id, 1)

        call.cancel()

        assert (await rig.cancellation())[:2] == (first.call_id, 2)
        await rig.assert_nothing_is_left()


async def test_a_deadline_ends_a_call_that_waits_for_a_router() -> None:
    known = one_router()
    async with started(known, attempts=3, default_deadline_seconds=0.2) as rig:
        call = rig.call()
        await rig.record()
        known.detached(A)
        rig.delivery.router_lost(A)

        assert await refused(call) == (StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED")
        await rig.assert_nothing_is_left()


async def test_a_call_of_a_sequence_that_is_lost_is_aborted() -> None:
    request = oip.ModelInferRequest(model_name="simple")
    request.parameters["sequence_id"].int64_param = 7
    async with started(two_routers(), attempts=3) as rig:
        call = rig.call(request.SerializeToString())
        await rig.answer(Failure.TRITON_LOST)

        assert await refused(call) == (StatusCode.ABORTED, "SEQUENCE_LOST")
        assert rig.infer.ended == Counter(SEQUENCE_LOST=1)


async def test_a_whole_message_of_the_protocol_arrives(rig: Rig) -> None:
    request = oip.ModelInferRequest(model_name="simple", id="ü", raw_input_contents=[b"\x00" * 64])
    call = rig.call(request.SerializeToString())

    record = await rig.answer(oip.ModelInferResponse(id="ü").SerializeToString())

    assert oip.ModelInferRequest.FromString(record.payload) == request
    assert oip.ModelInferResponse.FromString(await call).id == "ü"
