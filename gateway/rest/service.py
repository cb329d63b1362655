"""REST calls, as Envoy hands them on: what each asks for in the protocol's own messages, and its answer as a body.

Each is answered by the gRPC method that has its name, so that identity, policy, limits and delivery are the same.
"""

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import grpc
import orjson
from google.api.httpbody_pb2 import HttpBody
from google.protobuf.message import DecodeError, Message
from tritonclient.grpc import service_pb2 as oip

from gateway.compression import unpacked
from gateway.errors import ModelNotReady, NoLiveRouter, RequestMalformed, RestRequestInvalid
from gateway.identity import Caller
from gateway.infer import Proof
from gateway.rest import documents, repository
from gateway.rest.context import SERVICE, RestContext
from gateway.rest.infer import answer_of, request_of
from gateway.status import Context, Handler, ended
from headrace.v1 import rest_pb2 as rest

INFER = f"/{SERVICE}/ModelInfer"
_HEADER = "inference-header-content-length"
_NUMBER = re.compile(r"[0-9]{1,19}")
_JSON, _BINARY = "application/json", "application/octet-stream"

Infer = Callable[[bytes, Context], Awaitable[bytes]]
_Request = TypeVar("_Request", bound=Message)


@dataclass(frozen=True, slots=True)
class _Way:
    """How a method's request and answer are translated."""

    request: type[Message]
    asked: Callable[[Any], Message]
    """What the gRPC method is asked."""
    answer: type[Message]
    told: Callable[[Any, Any], bytes]
    """The body, from request and answer."""


def handlers(methods: Mapping[str, Handler], most_bytes: int) -> dict[str, Handler]:
    """The methods that run no model, by their full name, each on top of the gRPC method that has its name."""
    return {f"/{SERVICE}/{name}": _handler(name, way, methods[name], most_bytes) for name, way in _WAYS.items()}


def infer(
    made: Callable[[Caller, Proof], Infer], most_bytes: int, most_json_bytes: int
) -> Callable[[Caller, Proof], Infer]:
    """ModelInfer as REST, for each caller, on top of the gRPC method that `made` makes."""

    def for_caller(caller: Caller, prove: Proof) -> Infer:
        run = made(caller, prove)

        async def respond(request: bytes, context: Context) -> HttpBody:
            asked = _parsed(rest.ModelInferRequest, await unpacked(request, most_bytes))
            wanted = request_of(
                asked.body.data,
                model=asked.model_name,
                version=asked.model_version,
                json_bytes=_json_bytes(context),
                most_json_bytes=most_json_bytes,
            )
            answer = await run(wanted.request, context)
            body, json_bytes = answer_of(answer, wanted)
            if json_bytes is None:
                return HttpBody(content_type=_JSON, data=body)
            context.set_trailing_metadata((*context.trailing_metadata(), (_HEADER, str(json_bytes))))
            return HttpBody(content_type=_BINARY, data=body)

        return _answering(INFER, respond)

    return for_caller


def _answering(method: str, respond: Callable[[bytes, Context], Awaitable[HttpBody]]) -> Infer:
    """The boundary to the caller: refusals, and whatever else is raised, become statuses."""

    async def answer(request: bytes, context: Context) -> bytes:
        told = RestContext(context)
        try:
            body = await respond(request, cast("Context", told))
        except Exception as exc:  # noqa: BLE001  the boundary to the caller
            await ended(cast("Context", told), exc, method)
        await told.answering()
        return bytes(body.SerializeToString())

    return answer


def _handler(name: str, way: _Way, method: Any, most_bytes: int) -> Handler:  # noqa: ANN401  grpc types it for threads
    async def respond(request: bytes, context: Context) -> HttpBody:
        asked = _parsed(way.request, await unpacked(request, most_bytes))
        answer = await method.unary_unary(way.asked(asked).SerializeToString(), context)
        return HttpBody(content_type=_JSON, data=way.told(asked, way.answer.FromString(answer)))

    return grpc.unary_unary_rpc_method_handler(_answering(f"/{SERVICE}/{name}", respond))


def _json_bytes(context: Context) -> int | None:
    """How much of the body is JSON; None where all of it is."""
    metadata = context.invocation_metadata() or ()
    packed = next((value for key, value in metadata if key == "content-encoding"), None)
    if packed is not None:
        raise RestRequestInvalid(field="the header Content-Encoding", problem=f"is {packed!r}, and gzip alone is taken")
    stated = [value for key, value in metadata if key == _HEADER]
    if not stated:
        return None
    if len(stated) > 1 or not _NUMBER.fullmatch(str(stated[0])):
        raise RestRequestInvalid(field="Inference-Header-Content-Length", problem="must be one whole number")
    return int(stated[0])


def _parsed(request_class: type[_Request], request: bytes) -> _Request:
    try:
        return request_class.FromString(request)
    except DecodeError:
        raise RequestMalformed from None


def _server_ready(_: rest.ServerReadyRequest, answer: oip.ServerReadyResponse) -> bytes:
    if not answer.ready:
        raise NoLiveRouter("No router is alive. Try again, or ask the operator.")
    return b'{"ready":true}'


def _model_ready(asked: rest.ModelReadyRequest, answer: oip.ModelReadyResponse) -> bytes:
    if not answer.ready:
        raise ModelNotReady(f"The model '{asked.model_name}' is not ready, or there is none of that name and version.")
    return orjson.dumps({"name": asked.model_name, "ready": True})


_WAYS = {
    "ServerLive": _Way(
        rest.ServerLiveRequest,
        lambda _: oip.ServerLiveRequest(),
        oip.ServerLiveResponse,
        lambda _, __: b'{"live":true}',
    ),
    "ServerReady": _Way(
        rest.ServerReadyRequest, lambda _: oip.ServerReadyRequest(), oip.ServerReadyResponse, _server_ready
    ),
    "ServerMetadata": _Way(
        rest.ServerMetadataRequest,
        lambda _: oip.ServerMetadataRequest(),
        oip.ServerMetadataResponse,
        lambda _, answer: documents.server_metadata(answer),
    ),
    "ModelReady": _Way(
        rest.ModelReadyRequest,
        lambda asked: oip.ModelReadyRequest(name=asked.model_name, version=asked.model_version),
        oip.ModelReadyResponse,
        _model_ready,
    ),
    "ModelMetadata": _Way(
        rest.ModelMetadataRequest,
        lambda asked: oip.ModelMetadataRequest(name=asked.model_name, version=asked.model_version),
        oip.ModelMetadataResponse,
        lambda _, answer: documents.model_metadata(answer),
    ),
    "ModelConfig": _Way(
        rest.ModelConfigRequest,
        lambda asked: oip.ModelConfigRequest(name=asked.model_name, version=asked.model_version),
        oip.ModelConfigResponse,
        lambda _, answer: documents.model_config(answer),
    ),
    "ModelStatistics": _Way(
        rest.ModelStatisticsRequest,
        lambda asked: oip.ModelStatisticsRequest(name=asked.model_name, version=asked.model_version),
        oip.ModelStatisticsResponse,
        lambda _, answer: documents.model_statistics(answer),
    ),
    "RepositoryIndex": _Way(
        rest.RepositoryIndexRequest,
        lambda asked: repository.index_request(asked.body.data),
        oip.RepositoryIndexResponse,
        lambda _, answer: documents.repository_index(answer),
    ),
    "RepositoryModelLoad": _Way(
        rest.RepositoryModelLoadRequest,
        lambda asked: repository.load_request(asked.model_name, asked.body.data),
        oip.RepositoryModelLoadResponse,
        lambda _, __: b"",
    ),
    "RepositoryModelUnload": _Way(
        rest.RepositoryModelUnloadRequest,
        lambda asked: repository.unload_request(asked.model_name, asked.body.data),
        oip.RepositoryModelUnloadResponse,
        lambda _, __: b"",
    ),
}
