"""The gateway's own services on a real server and port, over a registry that was told what to know."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import grpc
import grpc.aio
import pytest
import tritonclient.grpc.aio as triton
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest, ServerReflectionResponse
from tritonclient.grpc import service_pb2 as oip
from tritonclient.utils import InferenceServerException

from gateway.audit import Audit
from gateway.catalog import NOT_OFFERED, SERVICE, Catalog, handlers
from gateway.edge import edge_server
from gateway.errors import KeyInvalid, KeyMissing
from gateway.failures import Failures, Slowed
from gateway.health import SERVICE as HEALTH_SERVICE
from gateway.health import Health
from gateway.identity import Caller, presented_key
from gateway.reflection import V1, V1_ALPHA, Reflection
from gateway.registry import Registry
from gateway.status import Context, UnknownMethods
from headrace.bus.protocols import RouterKey
from tests.unit.gateway.admitting import admitting
from tests.unit.gateway.announcing import description, heartbeat, registry

A = RouterKey("a", 1)
KEY = (("x-api-key", "hr_test_key"),)
BEARER = {"authorization": "Bearer hr_test_key"}
Sent = tuple[tuple[str, str], ...]
PATIENCE_SECONDS = 30.0
CHECK, WATCH = f"/{HEALTH_SERVICE}/Check", f"/{HEALTH_SERVICE}/Watch"


def who(context: Context) -> Caller:
    if presented_key(context.invocation_metadata() or ()) != "hr_test_key":
        raise KeyInvalid
    return Caller("t", "test")


@dataclass(frozen=True)
class Edge:
    """A running server, and what it knows."""

    address: str
    known: Registry
    health: Health
    channel: grpc.aio.Channel

    def call(self, path: str, request: bytes = b"", metadata: Sent = ()) -> "grpc.aio.UnaryUnaryCall[bytes, bytes]":
        """A unary call of bytes."""
        method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = self.channel.unary_unary(path)
        return method(request, metadata=metadata, timeout=PATIENCE_SECONDS)

    async def check(self, name: str = "", metadata: Sent = ()) -> int:
        """The health of a name."""
        request = HealthCheckRequest(service=name).SerializeToString()
        return HealthCheckResponse.FromString(await self.call(CHECK, request, metadata)).status

    def watch(self, name: str = "", metadata: Sent = ()) -> "Watching":
        """Follow the health of a name."""
        method: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = self.channel.unary_stream(WATCH)
        request = HealthCheckRequest(service=name).SerializeToString()
        return Watching(method(request, metadata=metadata, timeout=PATIENCE_SECONDS))


@dataclass(frozen=True)
class Watching:
    """A client that follows a health."""

    stream: "grpc.aio.UnaryStreamCall[bytes, bytes]"

    async def told(self) -> int:
        """The next word."""
        said = await self.stream.read()
        assert isinstance(said, bytes)
        return HealthCheckResponse.FromString(said).status


@pytest.fixture
async def edge() -> AsyncIterator[Edge]:
    known = registry(heartbeat(A), description(A), attached=(A,))
    health = Health(known, who, admitting(), Audit(lambda: 0.0), Slowed(Failures()))
    health.serve()
    server = edge_server(
        1 << 20,
        [
            grpc.method_handlers_generic_handler(SERVICE, handlers(Catalog(known), who, admitting())),
            grpc.method_handlers_generic_handler(HEALTH_SERVICE, health.handlers()),
            *Reflection([SERVICE, HEALTH_SERVICE]).generic_handlers(),
            UnknownMethods(),
        ],
    )
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    async with grpc.aio.insecure_channel(address) as channel:
        yield Edge(address, known, health, channel)
    health.close()
    await server.stop(PATIENCE_SECONDS)


def info_of(error: grpc.RpcError) -> ErrorInfo:
    """The ErrorInfo of a refusal."""
    assert isinstance(error, grpc.aio.AioRpcError)
    trailing = error.trailing_metadata()
    found = [value for key, value in trailing if key == "grpc-status-details-bin"]
    assert len(found) == 1, (error, trailing)
    [details] = found
    assert isinstance(details, bytes)
    status = Status.FromString(details)
    assert (status.code, status.message) == (error.code().value[0], error.details())
    info = ErrorInfo()
    assert status.details[0].Unpack(info)
    assert info.domain == "headrace"
    return info


async def refused(call: "grpc.aio.UnaryUnaryCall[bytes, bytes]") -> tuple[grpc.StatusCode, str]:
    """Code and reason of a call that has to be refused."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), info_of(caught.value).reason


async def test_a_stock_client_finds_its_way(edge: Edge) -> None:
    async with triton.InferenceServerClient(edge.address) as client:
        assert await client.is_server_live(headers=BEARER)
        assert await client.is_server_ready(headers=BEARER)
        assert await client.is_model_ready("simple", "1", headers=BEARER)
        assert not await client.is_model_ready("nothing", headers=BEARER)
        assert (await client.get_server_metadata(headers=BEARER)).name == "triton"
        assert (await client.get_model_metadata("simple", headers=BEARER)).versions == ["1"]
        assert (await client.get_model_config("simple", headers=BEARER)).config.max_batch_size == 8
        assert (await client.get_inference_statistics("simple", headers=BEARER)).model_stats == []
        assert [each.state for each in (await client.get_model_repository_index(headers=BEARER)).models] == ["READY"]


async def test_a_stock_client_reads_the_reason_from_what_it_was_made_from(edge: Edge) -> None:
    """As docs/reference/errors.md says."""
    async with triton.InferenceServerClient(edge.address) as client:
        with pytest.raises(InferenceServerException, match="unknown model: 'nothing' is not found") as caught:
            await client.get_model_config("nothing", headers=BEARER)

    assert caught.value.status() == "StatusCode.NOT_FOUND"
    cause = caught.value.__context__
    assert isinstance(cause, grpc.RpcError)
    info = info_of(cause)
    assert (info.reason, dict(info.metadata)) == ("MODEL_UNKNOWN", {"model": "nothing", "retriable": "false"})


async def test_every_method_asks_for_a_key(edge: Edge) -> None:
    known = handlers(Catalog(edge.known), who, admitting())

    for method in known:
        path = f"/{SERVICE}/{method}"
        assert await refused(edge.call(path)) == (grpc.StatusCode.UNAUTHENTICATED, KeyMissing.reason)
        assert await refused(edge.call(path, metadata=(("x-api-key", "other"),))) == (
            grpc.StatusCode.UNAUTHENTICATED,
            KeyInvalid.reason,
        )


async def test_a_question_beyond_a_limit_is_refused_as_a_call_is() -> None:
    admission = admitting("tenants: {t: {models: [], limits: {calls_per_second: 0.001, burst: 2}}}")
    server = edge_server(
        1 << 20,
        [grpc.method_handlers_generic_handler(SERVICE, handlers(Catalog(registry()), who, admission))],
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(f"/{SERVICE}/ServerLive")
        answered = [method(b"", metadata=KEY, timeout=PATIENCE_SECONDS) for _ in range(2)]
        left = [dict(await each.trailing_metadata())["x-ratelimit-remaining"] for each in answered]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await method(b"", metadata=KEY, timeout=PATIENCE_SECONDS)
    await server.stop(None)

    assert sorted(left) == ["0", "1"]
    assert info_of(caught.value).reason == "RATE_LIMITED"
    told = dict(caught.value.trailing_metadata())
    assert (told["x-ratelimit-limit"], told["x-ratelimit-remaining"]) == ("2", "0")


async def test_what_is_not_offered_says_why(edge: Edge) -> None:
    for method, refusal in NOT_OFFERED.items():
        path = f"/{SERVICE}/{method}"
        assert await refused(edge.call(path, metadata=KEY)) == (grpc.StatusCode.UNIMPLEMENTED, refusal.reason)


@pytest.mark.parametrize("requests", [[], [b""], [b""] * 20])
async def test_a_stream_of_inference_ends_with_the_reason(edge: Edge, requests: list[bytes]) -> None:
    """However much the client had to say."""
    path = f"/{SERVICE}/ModelStreamInfer"
    method: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = edge.channel.stream_stream(path)
    stream = method(iter(requests), metadata=KEY, timeout=PATIENCE_SECONDS)

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stream.read()

    assert info_of(caught.value).reason == "STREAMING_UNSUPPORTED"


async def test_a_stream_that_is_never_closed_is_refused_all_the_same(edge: Edge) -> None:
    path = f"/{SERVICE}/ModelStreamInfer"
    method: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = edge.channel.stream_stream(path)
    stream = method(metadata=KEY, timeout=PATIENCE_SECONDS)
    await stream.write(b"")

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stream.read()

    assert info_of(caught.value).reason == "STREAMING_UNSUPPORTED"


@pytest.mark.parametrize("request_", [b"\xff\xff\xff", b"\x0a\x05ab", b"\x0a\x02\xff\xfe"])
async def test_bytes_that_are_no_request_are_invalid(edge: Edge, request_: bytes) -> None:
    malformed = (grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_MALFORMED")

    assert await refused(edge.call(f"/{SERVICE}/ModelMetadata", request_, KEY)) == malformed
    assert await refused(edge.call(CHECK, request_)) == malformed


@pytest.mark.parametrize("method", [f"/{SERVICE}/ModelInferr", "/inference.Nothing/ModelInfer", "/x"])
async def test_an_unknown_method_has_a_reason(edge: Edge, method: str) -> None:
    assert await refused(edge.call(method)) == (grpc.StatusCode.UNIMPLEMENTED, "METHOD_UNKNOWN")


async def test_a_name_of_any_length_and_script_is_told_back(edge: Edge) -> None:
    for name in ("m" * 500_000, "modèle \N{SNOWMAN}", "{model}\n\x00"):
        request = oip.ModelMetadataRequest(name=name).SerializeToString()
        call = edge.call(f"/{SERVICE}/ModelMetadata", request, KEY)
        assert await refused(call) == (grpc.StatusCode.NOT_FOUND, "MODEL_UNKNOWN")


async def test_what_nobody_foresaw_tells_no_internals(edge: Edge, caplog: pytest.LogCaptureFixture) -> None:
    key, said = description(A)
    assert said.model.versions
    said.model.versions[0].config = b"\xff\xff no config at all"
    edge.known.apply(key, said, 1.0)
    request = oip.ModelConfigRequest(name="simple").SerializeToString()

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await edge.call(f"/{SERVICE}/ModelConfig", request, KEY)

    [line] = [record for record in caplog.records if record.levelname == "ERROR"]
    info = info_of(caught.value)
    assert (caught.value.code(), info.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")
    assert info.metadata["call_id"] == vars(line)["call_id"]
    assert "DecodeError" not in str(caught.value.details())


async def left(edge: Edge, watchers: int) -> None:
    """Return when so many watchers are left; every question is a turn of the server."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while edge.health.watchers != watchers:
            await edge.check()


async def test_health_of_the_gateway_and_of_models(edge: Edge) -> None:
    assert await edge.check("") == HealthCheckResponse.SERVING
    assert await edge.check(SERVICE) == HealthCheckResponse.SERVING
    assert await edge.check("simple", KEY) == HealthCheckResponse.SERVING
    nothing = HealthCheckRequest(service="nothing").SerializeToString()
    simple = HealthCheckRequest(service="simple").SerializeToString()
    unknown = (grpc.StatusCode.NOT_FOUND, "SERVICE_UNKNOWN")
    assert await refused(edge.call(CHECK, nothing)) == unknown
    assert await refused(edge.call(CHECK, nothing, KEY)) == unknown
    assert await refused(edge.call(CHECK, simple)) == unknown


async def test_many_watchers_hear_every_change_whoever_leaves(edge: Edge) -> None:
    watchers = [edge.watch() for _ in range(50)]
    models = [edge.watch("simple", KEY) for _ in range(50)]
    for each in [*watchers, *models]:
        assert await each.told() == HealthCheckResponse.SERVING
    for each in [*watchers[::2], *models[::2]]:
        each.stream.cancel()
    staying = [*watchers[1::2], *models[1::2]]

    edge.known.detached(A)
    for each in models[1::2]:
        assert await each.told() == HealthCheckResponse.NOT_SERVING
    edge.known.attached(A)
    for each in models[1::2]:
        assert await each.told() == HealthCheckResponse.SERVING
    edge.health.drain()
    for each in staying:
        assert await each.told() == HealthCheckResponse.NOT_SERVING

    await left(edge, len(staying))
    edge.health.close()
    for each in staying:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await each.told()
        assert info_of(caught.value).reason == "SHUTTING_DOWN"
    await left(edge, 0)


async def test_a_watcher_who_leaves_without_reading_is_forgotten(edge: Edge) -> None:
    watching = edge.watch()
    await watching.told()
    watching.stream.cancel()

    await left(edge, 0)


async def test_a_watched_model_appears_and_goes(edge: Edge) -> None:
    watching = edge.watch("new", KEY)
    assert await watching.told() == HealthCheckResponse.SERVICE_UNKNOWN

    key, said = description(A, model="new")
    edge.known.apply(key, said, 1.0)
    assert await watching.told() == HealthCheckResponse.SERVING
    edge.known.apply(key, None, 2.0)
    assert await watching.told() == HealthCheckResponse.SERVICE_UNKNOWN
    watching.stream.cancel()


async def reason_of(stream: "grpc.aio.StreamStreamCall[bytes, bytes]") -> str:
    """Why a stream ends."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stream.read()
    return info_of(caught.value).reason


def sending(edge: Edge, path: str) -> "grpc.aio.StreamStreamCall[bytes, bytes]":
    """A caller who sends as it likes."""
    method: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = edge.channel.stream_stream(path)
    return method(timeout=PATIENCE_SECONDS)


REFLECTION = f"/{V1}/ServerReflectionInfo"


@pytest.mark.parametrize("path", [CHECK, WATCH, REFLECTION])
async def test_who_begins_and_sends_nothing_is_waited_for_no_longer_than_a_moment(edge: Edge, path: str) -> None:
    slow = [sending(edge, path) for _ in range(100)]

    assert await edge.check() == HealthCheckResponse.SERVING, "others are heard meanwhile"
    assert {await reason_of(each) for each in slow} == {"REQUEST_SLOW"}


@pytest.mark.parametrize("path", [CHECK, WATCH])
async def test_who_does_not_say_that_it_has_said_all_is_not_answered(edge: Edge, path: str) -> None:
    """Else more could be sent, and held, for as long as a watch stands."""
    unending, twice = sending(edge, path), sending(edge, path)
    await unending.write(b"")
    for _ in range(2):
        await twice.write(b"")

    assert await reason_of(unending) == "REQUEST_SLOW"
    assert await reason_of(twice) == "REQUEST_MALFORMED"


@pytest.mark.parametrize("path", [CHECK, WATCH, REFLECTION])
@pytest.mark.parametrize("compression", list(grpc.Compression))
async def test_strangers_send_little_however_it_travels(edge: Edge, path: str, compression: grpc.Compression) -> None:
    large = HealthCheckRequest(service="x" * 70_000).SerializeToString()
    options = [("grpc.default_compression_algorithm", compression.value)]
    async with grpc.aio.insecure_channel(edge.address, options=options) as channel:
        stream: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(path)
        call = stream(iter([large]), timeout=PATIENCE_SECONDS)
        assert await reason_of(call) == "REQUEST_TOO_LARGE"


@pytest.mark.parametrize("compression", list(grpc.Compression))
async def test_a_question_may_be_compressed(edge: Edge, compression: grpc.Compression) -> None:
    request = oip.ModelMetadataRequest(name="x" * 1000).SerializeToString()
    method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = edge.channel.unary_unary(f"/{SERVICE}/ModelMetadata")

    call = method(request, metadata=KEY, timeout=PATIENCE_SECONDS, compression=compression)

    assert await refused(call) == (grpc.StatusCode.NOT_FOUND, "MODEL_UNKNOWN")


async def test_a_reflection_stream_that_has_nothing_more_to_ask_ends_well(edge: Edge) -> None:
    stream = sending(edge, REFLECTION)
    await stream.write(ServerReflectionRequest(list_services="").SerializeToString())
    assert isinstance(await stream.read(), bytes)

    assert await stream.read() is grpc.aio.EOF
    assert await stream.code() is grpc.StatusCode.OK


@pytest.mark.parametrize("version", [V1, V1_ALPHA])
async def test_reflection_answers_in_both_versions_on_one_stream(edge: Edge, version: str) -> None:
    stream = edge.channel.stream_stream(
        f"/{version}/ServerReflectionInfo",
        request_serializer=ServerReflectionRequest.SerializeToString,
        response_deserializer=ServerReflectionResponse.FromString,
    )()

    await stream.write(ServerReflectionRequest(list_services=""))
    listed = await stream.read()
    await stream.write(ServerReflectionRequest(file_containing_symbol="inference.ModelInferRequest"))
    described = await stream.read()
    await stream.done_writing()

    assert isinstance(listed, ServerReflectionResponse)
    assert isinstance(described, ServerReflectionResponse)
    assert [each.name for each in listed.list_services_response.service] == [HEALTH_SERVICE, V1, V1_ALPHA, SERVICE]
    assert len(described.file_descriptor_response.file_descriptor_proto) == 2
    assert await stream.read() is grpc.aio.EOF
