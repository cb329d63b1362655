"""The callers' port: who is let in, before anything is read."""

import asyncio
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc import StatusCode

from gateway.audit import Audit
from gateway.callers import Callers, WhoCalls
from gateway.edge import CallHandlers, edge_server, open_port
from gateway.errors import (
    CertificateUnknown,
    GatewayFull,
    KeyInvalid,
    KeyMissing,
    Refusal,
    RequestMalformed,
    ShuttingDown,
)
from gateway.failures import Failures, Slowed
from gateway.identity import Caller
from gateway.infer import METHOD as MODEL_INFER
from gateway.infer import Proof
from gateway.settings import GrpcSettings
from gateway.status import Context, abort, code_of
from gateway.traces import CallTraces
from headrace.runtime.lifecycle import Unstartable

OTHER = "/inference.GRPCInferenceService/Other"
STREAM = "/inference.GRPCInferenceService/Stream"
NOT_OURS = "/grpc.health.v1.Health/Check"
KEY = (("x-api-key", "billing"),)
PATIENCE_SECONDS = 30.0
HOUR = 3600.0
WRONG = {"wrong"}
MOVED: dict[str, str] = {}
"""Keys that were given to another tenant."""
LIMIT = 4096
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""How a connection of HTTP/2 begins, and no settings."""
SETTINGS, HEADER_TABLE_SIZE = 4, 1
"""A kind of frame, and what is set in it."""


def verify(key: str) -> Caller | None:
    """A key is its tenant's name."""
    return None if key in WRONG else Caller(MOVED.get(key, key), key)


def certificate(context: Context) -> Caller:
    """Stands for a certificate, of which gRPC tells methods only."""
    for name, value in context.invocation_metadata() or ():
        if name == "certificate" and isinstance(value, str) and value not in WRONG:
            return Caller(value, f"certificate:{value}")
    raise CertificateUnknown


class Fallback(grpc.GenericRpcHandler):
    """The next handler of the port: takes whatever falls through to it."""

    def service(self, _handler_call_details: grpc.HandlerCallDetails) -> Any:
        async def answer(_request: bytes, _context: Context) -> bytes:
            return b"fell through"

        return grpc.unary_unary_rpc_method_handler(answer)


@dataclass(frozen=True)
class Edge:
    """An open port, and whom ModelInfer was made for."""

    handlers: CallHandlers
    slowed: Slowed
    made_for: list[Caller]
    made: "asyncio.Queue[Caller]"
    full: asyncio.Event
    channel: grpc.aio.Channel
    counted: list[str]
    """Reasons of what was refused at the port."""
    port: int

    def call(
        self, method: str = MODEL_INFER, request: bytes = b"", metadata: tuple[tuple[str, str], ...] = KEY
    ) -> "grpc.aio.UnaryUnaryCall[bytes, bytes]":
        """A caller's call."""
        made: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = self.channel.unary_unary(method)
        return made(request, metadata=metadata, timeout=PATIENCE_SECONDS)

    def headers_only(
        self, method: str, metadata: tuple[tuple[str, str], ...]
    ) -> "grpc.aio.StreamUnaryCall[bytes, bytes]":
        """A caller who sends headers, and never a body."""
        made: grpc.aio.StreamUnaryMultiCallable[bytes, bytes] = self.channel.stream_unary(method)
        return made(metadata=metadata, timeout=PATIENCE_SECONDS)


@asynccontextmanager
async def opened(asked_first: WhoCalls | None = None, traces: CallTraces | None = None) -> AsyncIterator[Edge]:
    made_for: list[Caller] = []
    made: asyncio.Queue[Caller] = asyncio.Queue()
    full = asyncio.Event()
    counted: list[str] = []

    def infer(caller: Caller, prove: Proof) -> Callable[[bytes, Context], Any]:
        made_for.append(caller)
        made.put_nowait(caller)

        async def answer(request: bytes, context: Context) -> bytes:
            try:
                prove(context)
            except Refusal as refusal:
                await abort(context, refusal)
            return f"{caller.tenant} sent {len(request)}".encode()

        return answer

    async def other(request: bytes, _context: Context) -> bytes:
        return b"other" + request

    async def stream(requests: AsyncIterator[bytes], context: Context) -> None:
        async for request in requests:
            await context.write(b"streamed" + request)

    slowed = Slowed(Failures(burst=3, delay_seconds=HOUR))
    handlers = CallHandlers(
        Callers([], asked_first, [verify]),
        {MODEL_INFER: infer},
        {
            OTHER: grpc.unary_unary_rpc_method_handler(other),
            STREAM: grpc.stream_stream_rpc_method_handler(stream),
        },
        audit=Audit(lambda: 0.0),
        slowed=slowed,
        full=full.is_set,
        count=counted.append,
        traces=traces,
    )
    server = edge_server(LIMIT, [handlers, Fallback()])
    port = open_port(server, GrpcSettings(host="127.0.0.1", port=0), None)
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield Edge(handlers, slowed, made_for, made, full, channel, counted, port)
    finally:
        await server.stop(None)


@pytest.fixture
async def edge() -> AsyncIterator[Edge]:
    async with opened() as made:
        yield made


@pytest.fixture
async def certified() -> AsyncIterator[Edge]:
    """A port that asks for certificates, which count before keys do."""
    async with opened(certificate) as made:
        yield made


async def ended(
    call: "grpc.aio.UnaryUnaryCall[bytes, bytes] | grpc.aio.StreamUnaryCall[bytes, bytes]",
) -> tuple[StatusCode, str | None]:
    """Code and text of a call that has to fail."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details()


def as_told(refusal: Refusal) -> tuple[StatusCode, str]:
    return code_of(refusal), refusal.message


async def test_every_caller_has_a_model_infer_of_its_own(edge: Edge) -> None:
    for tenant in ("billing", "search", "billing"):
        assert await edge.call(request=b"xyz", metadata=(("x-api-key", tenant),)) == f"{tenant} sent 3".encode()

    assert [caller.tenant for caller in edge.made_for] == ["billing", "search"]


@pytest.mark.parametrize("method", [MODEL_INFER, OTHER])
@pytest.mark.parametrize(("metadata", "refusal"), [((), KeyMissing()), ((("x-api-key", "wrong"),), KeyInvalid())])
async def test_without_a_key_no_body_is_waited_for(
    edge: Edge, method: str, metadata: tuple[tuple[str, str], ...], refusal: Refusal
) -> None:
    assert await ended(edge.headers_only(method, metadata)) == as_told(refusal)
    assert await ended(edge.call(method, bytes(LIMIT), metadata)) == as_told(refusal)
    assert edge.made_for == []


async def test_a_key_that_is_taken_away_while_the_body_is_read_runs_nothing(
    edge: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And one that stays needs not be shown again."""
    infer: grpc.aio.StreamUnaryMultiCallable[bytes, bytes] = edge.channel.stream_unary(MODEL_INFER)
    early = [infer(metadata=(("x-api-key", key),), timeout=PATIENCE_SECONDS) for key in ("revoked", "kept")]
    async with asyncio.timeout(PATIENCE_SECONDS):
        await edge.made.get()  # the server has seen the headers of one
        await edge.made.get()

    monkeypatch.setitem(globals(), "WRONG", {"revoked"})
    edge.handlers.identities_changed()
    for call in early:
        await call.write(b"body")
        await call.done_writing()

    assert await ended(early[0]) == as_told(KeyInvalid())
    assert await early[1] == b"kept sent 4"
    assert await ended(edge.call(metadata=(("x-api-key", "revoked"),))) == as_told(KeyInvalid())


async def test_a_key_that_becomes_anothers_while_the_body_is_read_runs_nothing_for_the_former(
    edge: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    infer: grpc.aio.StreamUnaryMultiCallable[bytes, bytes] = edge.channel.stream_unary(MODEL_INFER)
    early = infer(metadata=(("x-api-key", "mover"),), timeout=PATIENCE_SECONDS)
    async with asyncio.timeout(PATIENCE_SECONDS):
        await edge.made.get()

    monkeypatch.setitem(MOVED, "mover", "others")
    edge.handlers.identities_changed()
    await early.write(b"body")
    await early.done_writing()

    assert await ended(early) == as_told(KeyInvalid())
    assert await edge.call(request=b"xyz", metadata=(("x-api-key", "mover"),)) == b"others sent 3"


@pytest.mark.parametrize("method", [MODEL_INFER, OTHER])
async def test_who_fails_again_and_again_is_told_late_and_the_same(edge: Edge, method: str) -> None:
    """And a good key from the same place is not slowed."""
    wrong = (("x-api-key", "wrong"),)
    for _ in range(3):
        assert await ended(edge.call(method, metadata=wrong)) == as_told(KeyInvalid())
    late = [edge.call(method, metadata=metadata) for metadata in (wrong, ())]
    async with asyncio.timeout(PATIENCE_SECONDS):
        while edge.slowed.waiting < len(late):
            assert await edge.call(method)

    assert not any(call.done() for call in late)
    edge.slowed.release()

    assert [await ended(call) for call in late] == [as_told(KeyInvalid()), as_told(KeyMissing())]


async def test_who_leaves_while_its_refusal_is_kept_back_is_forgotten(edge: Edge) -> None:
    calls = [edge.call(metadata=()) for _ in range(5)]
    async with asyncio.timeout(PATIENCE_SECONDS):
        while edge.slowed.waiting < 2:
            assert await edge.call()

        for call in calls:
            call.cancel()
        while edge.slowed.waiting:
            assert await edge.call()


async def test_with_a_key_the_other_methods_answer(edge: Edge) -> None:
    assert await edge.call(OTHER) == b"other"


@pytest.mark.parametrize("method", [MODEL_INFER, OTHER])
async def test_a_closing_port_refuses_new_calls_without_reading_them(edge: Edge, method: str) -> None:
    edge.handlers.closing = True

    assert await ended(edge.headers_only(method, KEY)) == as_told(ShuttingDown())


async def test_a_full_gateway_reads_no_body_that_it_would_refuse(edge: Edge) -> None:
    edge.full.set()

    assert await ended(edge.headers_only(MODEL_INFER, KEY)) == as_told(GatewayFull())
    assert await ended(edge.headers_only(MODEL_INFER, ())) == as_told(KeyMissing())
    assert await edge.call(OTHER) == b"other"


async def test_what_is_refused_at_the_port_is_counted_where_it_would_have_run_a_model(edge: Edge) -> None:
    edge.full.set()
    await ended(edge.headers_only(MODEL_INFER, KEY))
    await ended(edge.headers_only(MODEL_INFER, ()))
    await ended(edge.headers_only(OTHER, ()))
    edge.handlers.closing = True
    await ended(edge.headers_only(MODEL_INFER, KEY))

    assert edge.counted == [GatewayFull.reason, KeyMissing.reason, ShuttingDown.reason]


@pytest.mark.parametrize("method", [NOT_OURS, "/inference.GRPCInferenceService/Unknown", "/"])
async def test_what_is_not_of_the_service_is_left_to_the_next_handler(edge: Edge, method: str) -> None:
    assert await edge.call(method, metadata=()) == b"fell through"
    edge.handlers.closing = True
    assert await edge.call(method) == b"fell through"


# Callers whose certificate has the word.


SHOWN = (("certificate", "billing"),)


async def test_a_certificate_makes_a_caller_of_every_method(certified: Edge) -> None:
    for tenant in ("billing", "search", "billing"):
        shown = (("certificate", tenant),)
        assert await certified.call(request=b"xyz", metadata=shown) == f"{tenant} sent 3".encode()
    assert await certified.call(OTHER, b"wise", metadata=SHOWN) == b"otherwise"
    stream: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = certified.channel.stream_stream(STREAM)
    assert [each async for each in stream(iter([b"1", b"2"]), metadata=SHOWN)] == [b"streamed1", b"streamed2"]

    assert [caller.tenant for caller in certified.made_for] == ["billing", "search"]


@pytest.mark.parametrize("method", [MODEL_INFER, OTHER, STREAM])
@pytest.mark.parametrize(
    ("metadata", "refusal"),
    [
        ((), CertificateUnknown()),
        ((("certificate", "wrong"),), CertificateUnknown()),
        ((*SHOWN, ("x-api-key", "wrong")), KeyInvalid()),
    ],
)
async def test_a_certificate_is_judged_before_any_body(
    certified: Edge, method: str, metadata: tuple[tuple[str, str], ...], refusal: Refusal
) -> None:
    assert await ended(certified.headers_only(method, metadata)) == as_told(refusal)
    assert certified.made_for == []


@pytest.mark.parametrize("metadata", [KEY, (*KEY, ("certificate", "wrong"))])
async def test_a_good_key_counts_where_the_certificate_says_nothing(
    certified: Edge, metadata: tuple[tuple[str, str], ...]
) -> None:
    assert await certified.call(request=b"xyz", metadata=metadata) == b"billing sent 3"
    assert await certified.call(OTHER, metadata=metadata) == b"other"


async def test_a_full_gateway_reads_no_body_of_a_certified_caller_either(certified: Edge) -> None:
    certified.full.set()

    assert await ended(certified.headers_only(MODEL_INFER, SHOWN)) == as_told(GatewayFull())
    assert await ended(certified.headers_only(MODEL_INFER, ())) == as_told(CertificateUnknown())
    assert await certified.call(OTHER, metadata=SHOWN) == b"other"


async def test_a_certificate_that_is_refused_while_the_body_is_read_runs_nothing(
    certified: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    infer: grpc.aio.StreamUnaryMultiCallable[bytes, bytes] = certified.channel.stream_unary(MODEL_INFER)
    early = [infer(metadata=(("certificate", name),), timeout=PATIENCE_SECONDS) for name in ("revoked", "kept")]
    async with asyncio.timeout(PATIENCE_SECONDS):
        await certified.made.get()
        await certified.made.get()

    monkeypatch.setitem(globals(), "WRONG", {"revoked"})
    certified.handlers.identities_changed()
    for call in early:
        await call.write(b"body")
        await call.done_writing()

    assert await ended(early[0]) == as_told(CertificateUnknown())
    assert await early[1] == b"kept sent 4"


async def test_a_certified_caller_who_sends_no_request_hears_so(certified: Edge) -> None:
    for method in (MODEL_INFER, OTHER):
        call = certified.headers_only(method, SHOWN)
        await call.done_writing()
        assert await ended(call) == as_told(RequestMalformed())


async def test_certificates_that_stand_for_nobody_are_failures_too(certified: Edge) -> None:
    for _ in range(3):
        assert await ended(certified.call(metadata=())) == as_told(CertificateUnknown())
    late = certified.call(metadata=())
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not certified.slowed.waiting:
            assert await certified.call(metadata=SHOWN)

    certified.slowed.release()
    assert await ended(late) == as_told(CertificateUnknown())


async def test_a_message_somewhat_over_the_limit_is_read_so_that_its_refusal_has_a_reason(edge: Edge) -> None:
    assert await edge.call(request=bytes(LIMIT + 1)) == f"billing sent {LIMIT + 1}".encode()
    assert (await ended(edge.call(request=bytes(2 * LIMIT))))[0] is StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
async def test_grpc_unpacks_nothing(edge: Edge, compression: grpc.Compression) -> None:
    """It would do so without a bound; whoever gets the message does it."""
    infer: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = edge.channel.unary_unary(MODEL_INFER)

    said = await infer(bytes(100_000), metadata=KEY, timeout=PATIENCE_SECONDS, compression=compression)

    assert int(said.rpartition(b" ")[2]) < 1000


async def test_a_proxy_may_index_no_headers(edge: Edge) -> None:
    """What gRPC can't read of one would fail all that name the same index, whoever's calls they are."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        reader, writer = await asyncio.open_connection("127.0.0.1", edge.port)
        writer.write(PREFACE)
        head = await reader.readexactly(9)
        said = dict(struct.iter_unpack(">HI", await reader.readexactly(int.from_bytes(head[:3]))))
        writer.close()

    assert head[3] == SETTINGS
    assert said[HEADER_TABLE_SIZE] == 0


async def test_a_port_in_use_is_told_with_its_address() -> None:
    first, second = edge_server(LIMIT, []), edge_server(LIMIT, [])
    port = open_port(first, GrpcSettings(host="127.0.0.1", port=0), None)
    try:
        with pytest.raises(Unstartable, match=rf"127\.0\.0\.1:{port} .*in use"):
            open_port(second, GrpcSettings(host="127.0.0.1", port=port), None)
    finally:
        await asyncio.gather(first.stop(None), second.stop(None))
