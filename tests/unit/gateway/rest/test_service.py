"""REST calls on a real port of grpc.aio: what comes of the gRPC methods beneath, as a body and headers."""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
import orjson
import pytest
from google.api.httpbody_pb2 import HttpBody
from google.protobuf.message import Message
from tritonclient.grpc import service_pb2 as oip

from gateway.audit import Audit
from gateway.callers import Callers
from gateway.edge import CallHandlers, edge_server, open_port
from gateway.errors import GatewayFull, ModelUnknown, RateLimited, Refusal
from gateway.failures import Failures, Slowed
from gateway.identity import Caller
from gateway.infer import Answer, Translation
from gateway.rest import service
from gateway.rest.context import SERVICE
from gateway.rest.infer import request_of
from gateway.settings import GrpcSettings
from gateway.status import Context, abort, rate_metadata, unary
from headrace.v1 import rest_pb2 as rest

LIMIT = 1 << 20
JSON_LIMIT = 10_000
LEFT = (10, 9, 1)
ECHO = b'{"inputs":[{"name":"X","datatype":"INT32","shape":[2],"data":[1,2]}]'


@dataclass
class Beneath:
    """The gRPC methods, as far as these tests need them."""

    ready: bool = True
    refusal: Refusal | None = None
    asked: list[Message] = field(default_factory=list)

    def methods(self) -> dict[str, Any]:
        answers: dict[str, tuple[type[Message], Message]] = {
            "ServerLive": (oip.ServerLiveRequest, oip.ServerLiveResponse(live=True)),
            "ServerMetadata": (oip.ServerMetadataRequest, oip.ServerMetadataResponse(name="triton", version="2.51.0")),
            "ModelMetadata": (oip.ModelMetadataRequest, oip.ModelMetadataResponse(name="m", versions=["1"])),
            "ModelConfig": (oip.ModelConfigRequest, oip.ModelConfigResponse()),
            "ModelStatistics": (oip.ModelStatisticsRequest, oip.ModelStatisticsResponse()),
            "RepositoryIndex": (oip.RepositoryIndexRequest, oip.RepositoryIndexResponse()),
            "RepositoryModelLoad": (oip.RepositoryModelLoadRequest, oip.RepositoryModelLoadResponse()),
            "RepositoryModelUnload": (oip.RepositoryModelUnloadRequest, oip.RepositoryModelUnloadResponse()),
        }
        made = {name: unary(name, request, self._answering(answer)) for name, (request, answer) in answers.items()}
        made["ServerReady"] = unary("ServerReady", oip.ServerReadyRequest, self._server_ready)
        made["ModelReady"] = unary("ModelReady", oip.ModelReadyRequest, self._model_ready)
        return made

    def _answering(self, answer: Message) -> Callable[[Message, Context], Awaitable[Message]]:
        async def respond(request: Message, context: Context) -> Message:
            self.asked.append(request)
            if self.refusal is not None:
                raise self.refusal
            context.set_trailing_metadata(rate_metadata(LEFT))
            return answer

        return respond

    async def _server_ready(self, _: oip.ServerReadyRequest, __: Context) -> oip.ServerReadyResponse:
        return oip.ServerReadyResponse(ready=self.ready)

    async def _model_ready(self, _: oip.ModelReadyRequest, __: Context) -> oip.ModelReadyResponse:
        return oip.ModelReadyResponse(ready=self.ready)

    def infer(self, _: Caller, __: object) -> Answer:
        async def respond(request: bytes, context: Context, translation: Translation | None = None) -> bytes:
            assert request
            if self.refusal is not None:  # before anything is read
                await abort(context, self.refusal)
            assert translation is not None
            try:
                asked = oip.ModelInferRequest.FromString(await translation.read())
            except Refusal as refusal:
                await abort(context, refusal)
            self.asked.append(asked)
            context.set_trailing_metadata(rate_metadata(LEFT))
            answer = oip.ModelInferResponse(model_name=asked.model_name, model_version="1", id=asked.id)
            for tensor, raw in zip(asked.inputs, asked.raw_input_contents, strict=True):
                answer.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
                answer.raw_output_contents.append(raw)
            return await translation.write(answer.SerializeToString())

        return respond


@dataclass
class Rest:
    """Envoy's side of it."""

    beneath: Beneath
    full: asyncio.Event
    channel: grpc.aio.Channel

    async def call(
        self, name: str, request: Message | bytes, metadata: tuple[tuple[str, str], ...] = (), key: str = "k"
    ) -> tuple[HttpBody, dict[str, str]]:
        """The body, and the headers ahead of it. Raises AioRpcError."""
        sent = request if isinstance(request, bytes) else request.SerializeToString()
        method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = self.channel.unary_unary(f"/{SERVICE}/{name}")
        call = method(sent, metadata=(("x-api-key", key), *metadata), timeout=30)
        body = HttpBody.FromString(await call)
        return body, {name: str(value) for name, value in await call.initial_metadata()}


@pytest.fixture
async def served() -> AsyncIterator[Rest]:
    beneath, full = Beneath(), asyncio.Event()
    verify: Callable[[str], Caller | None] = {"k": Caller("acme", "k")}.get
    callers = Callers([verify])
    handlers = CallHandlers(
        callers,
        {service.INFER: service.infer(beneath.infer, LIMIT, JSON_LIMIT)},
        service.handlers(beneath.methods(), callers, LIMIT, JSON_LIMIT),
        audit=Audit(lambda: 0.0),
        slowed=Slowed(Failures()),
        full=full.is_set,
        count=lambda _: None,
    )
    server = edge_server(LIMIT, [handlers])
    port = open_port(server, GrpcSettings(host="127.0.0.1", port=0), None)
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield Rest(beneath, full, channel)
    finally:
        await server.stop(None)


def infer_request(body: bytes, model: str = "m", version: str = "") -> rest.ModelInferRequest:
    return rest.ModelInferRequest(
        model_name=model, model_version=version, body=HttpBody(content_type="application/json", data=body)
    )


async def refused(call: Awaitable[object]) -> tuple[grpc.StatusCode, str, dict[str, str]]:
    """Code, text, and what the refusal tells in headers."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    error = caught.value
    trailing = {name: value for name, value in error.trailing_metadata() or () if isinstance(value, str)}
    return error.code(), error.details() or "", trailing


async def test_json_is_answered_with_json_and_what_is_left_goes_ahead(served: Rest) -> None:
    body, headers = await served.call("ModelInfer", infer_request(ECHO + b',"id":"7"}', version="3"))

    assert body.content_type == "application/json"
    assert orjson.loads(body.data) == {
        "id": "7",
        "model_name": "m",
        "model_version": "1",
        "outputs": [{"name": "X", "datatype": "INT32", "shape": [2], "data": [1, 2]}],
    }
    assert {name: headers[name] for name in headers if name.startswith("x-ratelimit")} == dict(rate_metadata(LEFT))
    [asked] = served.beneath.asked
    assert isinstance(asked, oip.ModelInferRequest)
    assert (asked.model_name, asked.model_version) == ("m", "3")


async def test_binary_tensors_come_back_binary_with_the_length_of_their_json(served: Rest) -> None:
    head = b'{"inputs":[{"name":"X","datatype":"INT32","shape":[1],"parameters":{"binary_data_size":4}}],'
    head += b'"parameters":{"binary_data_output":true}}'

    body, headers = await served.call(
        "ModelInfer",
        infer_request(head + b"\x05\x00\x00\x00"),
        metadata=(("inference-header-content-length", str(len(head))),),
    )

    json_bytes = int(headers["inference-header-content-length"])
    assert body.content_type == "application/octet-stream"
    assert orjson.loads(body.data[:json_bytes])["outputs"][0]["parameters"] == {"binary_data_size": 4}
    assert body.data[json_bytes:] == b"\x05\x00\x00\x00"


@pytest.mark.parametrize("stated", [("",), ("x",), ("-1",), ("1.5",), ("9" * 30,), ("5", "5")])
async def test_a_length_that_is_none_is_refused(served: Rest, stated: tuple[str, ...]) -> None:
    metadata = tuple(("inference-header-content-length", each) for each in stated)

    code, text, told = await refused(served.call("ModelInfer", infer_request(ECHO + b"}"), metadata=metadata))

    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert "Inference-Header-Content-Length" in text
    assert told["x-headrace-reason"] == "REST_REQUEST_INVALID"
    assert not served.beneath.asked


async def test_a_body_that_envoy_did_not_unpack_is_refused_with_a_word_on_it(served: Rest) -> None:
    code, text, _ = await refused(
        served.call("ModelInfer", infer_request(b"\x78\x9c..."), metadata=(("content-encoding", "deflate"),))
    )

    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert "deflate" in text


async def test_json_beyond_its_limit_is_refused_and_what_is_no_message_as_well(served: Rest) -> None:
    code, _, told = await refused(served.call("ModelInfer", infer_request(b" " * (JSON_LIMIT + 1))))
    assert (code, told["x-headrace-reason"]) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "REQUEST_TOO_LARGE")

    code, _, told = await refused(served.call("ModelInfer", b"\xff\xff"))
    assert (code, told["x-headrace-reason"]) == (grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_MALFORMED")


@pytest.mark.parametrize("method", ["ModelInfer", "ModelMetadata"])
async def test_a_refusal_tells_its_reason_and_when_to_come_back(served: Rest, method: str) -> None:
    served.beneath.refusal = RateLimited(retry_after_seconds=1.2, scope="tenant acme", limit="1", left=LEFT)
    request = infer_request(ECHO + b"}") if method == "ModelInfer" else rest.ModelMetadataRequest(model_name="m")

    code, text, told = await refused(served.call(method, request))

    assert code == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "tenant acme" in text
    assert told["retry-after"] == "2"
    assert told["x-headrace-reason"] == "RATE_LIMITED"
    assert told["x-ratelimit-remaining"] == "9"


async def test_a_body_is_read_only_for_who_may_call(served: Rest) -> None:
    served.beneath.refusal = RateLimited(retry_after_seconds=1.0, scope="tenant acme", limit="1")

    _, _, told = await refused(served.call("ModelInfer", infer_request(b"{")))

    assert told["x-headrace-reason"] == "RATE_LIMITED"


async def test_strangers_and_a_full_gateway_are_told_the_same_way(served: Rest) -> None:
    code, _, told = await refused(served.call("ModelInfer", infer_request(ECHO + b"}"), key="wrong"))
    assert (code, told["x-headrace-reason"]) == (grpc.StatusCode.UNAUTHENTICATED, "KEY_INVALID")

    served.full.set()
    code, _, told = await refused(served.call("ModelInfer", infer_request(ECHO + b"}")))
    assert (code, told["x-headrace-reason"]) == (grpc.StatusCode.RESOURCE_EXHAUSTED, GatewayFull.reason)


@pytest.mark.parametrize(
    ("method", "request_", "told"),
    [
        ("ServerReady", rest.ServerReadyRequest(), {"ready": True}),
        ("ModelReady", rest.ModelReadyRequest(model_name="m"), {"name": "m", "ready": True}),
    ],
)
async def test_what_is_not_ready_is_a_failure(served: Rest, method: str, request_: Message, told: object) -> None:
    body, _ = await served.call(method, request_)
    assert orjson.loads(body.data) == told

    served.beneath.ready = False
    assert (await refused(served.call(method, request_)))[0] == grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize(
    ("method", "request_", "asked", "answer"),
    [
        ("ServerMetadata", rest.ServerMetadataRequest(), oip.ServerMetadataRequest(), {"name": "triton"}),
        (
            "ModelMetadata",
            rest.ModelMetadataRequest(model_name="m", model_version="2"),
            oip.ModelMetadataRequest(name="m", version="2"),
            {"name": "m", "versions": ["1"]},
        ),
        (
            "ModelConfig",
            rest.ModelConfigRequest(model_name="m", model_version="2"),
            oip.ModelConfigRequest(name="m", version="2"),
            {},
        ),
        (
            "ModelStatistics",
            rest.ModelStatisticsRequest(model_name="m", model_version="2"),
            oip.ModelStatisticsRequest(name="m", version="2"),
            {"model_stats": []},
        ),
        (
            "RepositoryIndex",
            rest.RepositoryIndexRequest(body=HttpBody(data=b'{"ready": true}')),
            oip.RepositoryIndexRequest(ready=True),
            [],
        ),
    ],
)
async def test_what_is_asked_and_answered_is_the_protocols_own(
    served: Rest, method: str, request_: Message, asked: Message, answer: object
) -> None:
    body, headers = await served.call(method, request_)

    told = orjson.loads(body.data)
    assert served.beneath.asked == [asked]
    if isinstance(answer, dict):
        assert {name: told[name] for name in answer} == answer
    else:
        assert told == answer
    assert headers["x-ratelimit-limit"] == "10"


async def test_an_unknown_model_is_told_as_such(served: Rest) -> None:
    served.beneath.refusal = ModelUnknown(model="nosuch")

    code, text, told = await refused(served.call("ModelMetadata", rest.ModelMetadataRequest(model_name="nosuch")))

    assert code == grpc.StatusCode.NOT_FOUND
    assert "nosuch" in text
    assert told["x-headrace-reason"] == "MODEL_UNKNOWN"
    assert "retry-after" not in told


async def test_nothing_is_made_of_what_a_user_sends_to_load(served: Rest) -> None:
    """The method beneath refuses it, with its own word and audit."""
    body = HttpBody(data=b'{"parameters":{"config":"{}"}}')

    await served.call("RepositoryModelLoad", rest.RepositoryModelLoadRequest(model_name="m", body=body))

    assert served.beneath.asked == [oip.RepositoryModelLoadRequest(model_name="m")]


async def test_a_large_body_is_read_beside_the_loop(served: Rest, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[bool] = []

    def watched(*args: Any, **kwargs: Any) -> Any:
        threads.append(threading.current_thread() is threading.main_thread())
        return request_of(*args, **kwargs)

    monkeypatch.setattr("gateway.rest.service.request_of", watched)
    head = b'{"inputs":[{"name":"X","datatype":"UINT8","shape":[100000],"parameters":{"binary_data_size":100000}}]}'
    metadata = (("inference-header-content-length", str(len(head))),)

    await served.call("ModelInfer", infer_request(head + bytes(100_000)), metadata=metadata)
    await served.call("ModelInfer", infer_request(ECHO + b"}"))

    assert threads == [False, True]


def test_every_method_of_the_service_is_answered() -> None:
    declared = {method.name for method in rest.DESCRIPTOR.services_by_name["RestService"].methods}

    made = service.handlers(Beneath().methods(), Callers([]), LIMIT, JSON_LIMIT)
    assert {*made, service.INFER} == {f"/{SERVICE}/{name}" for name in declared}
