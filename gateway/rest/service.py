"""REST calls, as Envoy hands them on: what each asks for in the protocol's own messages, and its answer as a body.

Each is answered by the gRPC method that has its name, so that identity, policy, limits and delivery are the same.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar, cast

import grpc
import orjson
from google.api.httpbody_pb2 import HttpBody
from google.protobuf.message import DecodeError, Message
from tritonclient.grpc import service_pb2 as oip

from gateway.callers import WhoCalls
from gateway.compression import unpacked
from gateway.errors import ModelNotReady, NoLiveRouter, RequestMalformed, RestRequestInvalid
from gateway.identity import ADMIN, Caller
from gateway.infer import Answer, Proof, Translation
from gateway.rest import documents, repository
from gateway.rest.context import SERVICE, RestContext
from gateway.rest.infer import InferRequest, answer_of, request_of
from gateway.status import Context, Handler, ended
from headrace.v1 import rest_pb2 as rest

INFER = f"/{SERVICE}/ModelInfer"
_HEADER = "inference-header-content-length"
_NUMBER = re.compile(r"[0-9]{1,19}")
_JSON, _BINARY = "application/json", "application/octet-stream"

Infer = Callable[[bytes, Context], Awaitable[bytes]]
_Request = TypeVar("_Request", bound=Message)
_Done = TypeVar("_Done")
_SMALL_BYTES = 64 << 10
_LONGEST_TOLD = 200


@dataclass(frozen=True, slots=True)
class _Way:
    """How a method's request and answer are translated."""

    request: type[Message]
    asked: Callable[[Any], Message]
    """What the gRPC method is asked."""
    answer: type[Message]
    told: Callable[[Any, Any], bytes]
    """The body, from request and answer."""
    for_admins: bool = False


def handlers(
    methods: Mapping[str, Handler], who: WhoCalls, most_bytes: int, most_json_bytes: int
) -> dict[str, Handler]:
    """The methods that run no model, by their full name, each on top of the gRPC method that has its name."""
    ways = _WAYS | {"RepositoryModelLoad": _load(most_json_bytes)}
    return {f"/{SERVICE}/{name}": _handler(name, way, methods[name], who, most_bytes) for name, way in ways.items()}


def infer(
    made: Callable[[Caller, Proof], Answer], most_bytes: int, most_json_bytes: int
) -> Callable[[Caller, Proof], Infer]:
    """ModelInfer as REST, for each caller, on top of the gRPC method that `made` makes."""
    turns = asyncio.Semaphore(1)

    def for_caller(caller: Caller, prove: Proof) -> Infer:
        run = made(caller, prove)

        async def respond(request: bytes, context: Context) -> bytes:
            asked = _parsed(rest.ModelInferRequest, await unpacked(request, most_bytes))
            body: bytes = asked.body.data
            wanted: InferRequest | None = None

            async def read() -> bytes:
                nonlocal wanted
                made = partial(
                    request_of,
                    body,
                    model=asked.model_name,
                    version=asked.model_version,
                    json_bytes=_json_bytes(context),
                    most_json_bytes=most_json_bytes,
                )
                wanted = await _apart(turns, len(body), made)
                return wanted.request

            async def write(answer: bytes) -> bytes:
                assert wanted is not None  # noqa: S101  what was not read is not answered
                data, json_bytes = await _apart(turns, len(answer), partial(answer_of, answer, wanted))
                if json_bytes is None:
                    return _body(_JSON, data)
                context.set_trailing_metadata((*context.trailing_metadata(), (_HEADER, str(json_bytes))))
                return _body(_BINARY, data)

            return await run(body, context, Translation(asked.model_name, read, write))

        return _answering(INFER, respond)

    return for_caller


async def _apart(turns: asyncio.Semaphore, size: int, work: Callable[[], _Done]) -> _Done:
    """Do it; what is large beside the loop, in turns: Python has one lock for all that these share."""
    if size <= _SMALL_BYTES:
        return work()
    async with turns:
        return await asyncio.to_thread(work)


def _body(content_type: str, data: bytes) -> bytes:
    return bytes(HttpBody(content_type=content_type, data=data).SerializeToString())


def _answering(method: str, respond: Infer) -> Infer:
    """The boundary to the caller: refusals, and whatever else is raised, become statuses."""

    async def answer(request: bytes, context: Context) -> bytes:
        told = RestContext(context)
        try:
            body = await respond(request, cast("Context", told))
        except Exception as exc:  # noqa: BLE001  the boundary to the caller
            await ended(cast("Context", told), exc, method)
        await told.answering()
        return body

    return answer


def _handler(name: str, way: _Way, method: Handler, who: WhoCalls, most_bytes: int) -> Handler:
    answered: Any = method.unary_unary  # grpc types it for threads

    async def respond(request: bytes, context: Context) -> bytes:
        asked: Any = _parsed(way.request, await unpacked(request, most_bytes))
        if way.for_admins and ADMIN not in who(context).roles:
            asked.ClearField("body")  # the method refuses it anyway, and nothing is made of what is in it
        answer = await answered(way.asked(asked).SerializeToString(), context)
        return _body(_JSON, way.told(asked, way.answer.FromString(answer)))

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
        raise ModelNotReady(
            f"The model '{asked.model_name[:_LONGEST_TOLD]}' is not ready, or there is none of that name and version."
        )
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
    "RepositoryModelUnload": _Way(
        rest.RepositoryModelUnloadRequest,
        lambda asked: repository.unload_request(asked.model_name, asked.body.data),
        oip.RepositoryModelUnloadResponse,
        lambda _, __: b"",
        for_admins=True,
    ),
}


def _load(most_json_bytes: int) -> _Way:
    return _Way(
        rest.RepositoryModelLoadRequest,
        lambda asked: repository.load_request(asked.model_name, asked.body.data, most_json_bytes),
        oip.RepositoryModelLoadResponse,
        lambda _, __: b"",
        for_admins=True,
    )
