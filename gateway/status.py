"""The edge's own word on every refusal: a gRPC code, a text, and `google.rpc.Status` details.

The only module that maps domain errors to gRPC. What Triton itself answered does not pass through here.
"""

import logging
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from functools import cache, lru_cache
from typing import Any, NoReturn, TypeAlias, TypeVar

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError, Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, QuotaFailure, RetryInfo
from google.rpc.status_pb2 import Status

from gateway import errors
from gateway.compression import unpacked
from gateway.errors import Internal, Limited, MethodUnknown, Refusal, RequestInvalid, RequestMalformed

log = logging.getLogger(__name__)

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)
Context = grpc.aio.ServicerContext[Any, Any]
Read = Callable[[Context], Awaitable[bytes]]
"""Brings the request of a call that has one. Raises refusals."""
Handler: TypeAlias = "grpc.RpcMethodHandler[bytes, bytes]"  # grpc's class is generic for type checkers only

MOST_UNPACKED_BYTES = 1 << 20
"""Of a compressed request, where nothing else is said."""
_MOST_KEPT = 1000
"""Refusals that are kept as they go on the wire."""
DOMAIN = "headrace"
DETAILS_KEY = "grpc-status-details-bin"

CODES: dict[type[Refusal], grpc.StatusCode] = {
    errors.CredentialRefused: grpc.StatusCode.UNAUTHENTICATED,
    errors.PermissionRefused: grpc.StatusCode.PERMISSION_DENIED,
    errors.Unknown: grpc.StatusCode.NOT_FOUND,
    errors.RequestInvalid: grpc.StatusCode.INVALID_ARGUMENT,
    errors.MethodUnknown: grpc.StatusCode.UNIMPLEMENTED,
    errors.NotOffered: grpc.StatusCode.UNIMPLEMENTED,
    errors.TooMuch: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.Away: grpc.StatusCode.UNAVAILABLE,
    errors.SequenceLost: grpc.StatusCode.ABORTED,
    errors.DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.AdminPartialFailure: grpc.StatusCode.ABORTED,
    errors.Internal: grpc.StatusCode.INTERNAL,
    Refusal: grpc.StatusCode.FAILED_PRECONDITION,
}


def code_of(refusal: Refusal | type[Refusal]) -> grpc.StatusCode:
    """The code of a refusal: that of its class, or of the nearest class above it that has one."""
    cls = refusal if isinstance(refusal, type) else type(refusal)
    return _code(cls)  # type: ignore[arg-type]  # mypy takes the hash of instances for the class's own


@cache
def _code(cls: type[Refusal]) -> grpc.StatusCode:
    return next(CODES[ancestor] for ancestor in cls.__mro__ if ancestor in CODES)


def status_of(refusal: Refusal) -> Status:
    """The whole of what the caller gets: code, text, and details, ErrorInfo always and others where they apply."""
    return Status.FromString(_serialized(refusal))


def _serialized(refusal: Refusal) -> bytes:
    """The same on the wire. Who is refused again and again costs little: only when to come back is new each time."""
    field = refusal.field if isinstance(refusal, RequestInvalid) else ""
    facts = (refusal.message, tuple(refusal.metadata.items()), field)
    lasting = _lasting(type(refusal), *facts)  # type: ignore[arg-type]  # as above
    if refusal.retry_after_seconds is None:
        return lasting
    delay = Duration()
    delay.FromNanoseconds(max(0, round(refusal.retry_after_seconds * 1e9)))
    status = Status()
    status.details.add().Pack(RetryInfo(retry_delay=delay))
    return lasting + status.SerializeToString()  # one message after another is one of both


@lru_cache(maxsize=_MOST_KEPT)
def _lasting(cls: type[Refusal], message: str, metadata: tuple[tuple[str, str], ...], field: str) -> bytes:
    told = {**dict(metadata), "retriable": "true" if cls.retriable else "false"}
    details: list[Message] = [ErrorInfo(reason=cls.reason, domain=DOMAIN, metadata=told)]
    if issubclass(cls, Limited):
        violation = QuotaFailure.Violation(subject=told.get("scope", ""), description=message)
        details.append(QuotaFailure(violations=[violation]))
    if field:
        wrong = BadRequest.FieldViolation(field=field, description=message)
        details.append(BadRequest(field_violations=[wrong]))
    status = Status(code=code_of(cls).value[0], message=message)
    for detail in details:
        status.details.add().Pack(detail)
    return status.SerializeToString()


async def abort(context: Context, refusal: Refusal) -> NoReturn:
    """End the call with the refusal. Raises what `context.abort` raises, so nothing after it runs."""
    trailing: tuple[tuple[str, str | bytes], ...] = ((DETAILS_KEY, _serialized(refusal)),)
    if isinstance(refusal, Limited) and refusal.left is not None:
        trailing += rate_metadata(refusal.left)
    await context.abort(code_of(refusal), refusal.message, trailing)
    raise AssertionError("abort returned")


def rate_metadata(left: tuple[int, int, int]) -> tuple[tuple[str, str], ...]:
    """How a caller is told what is left of its rate: the burst, what is left of it, seconds until it is whole again."""
    limit, remaining, reset = left
    return (
        ("x-ratelimit-limit", str(limit)),
        ("x-ratelimit-remaining", str(remaining)),
        ("x-ratelimit-reset", str(reset)),
    )


def quota_metadata(told: str) -> tuple[tuple[str, str], ...]:
    """How a caller is told what is left of its quotas: see `Account.told`."""
    return (("x-quota", told),)


def unforeseen(exc: BaseException, *, method: str, call_id: str | None = None) -> Internal:
    """Log, once, what nobody foresaw; the refusal that the caller gets names the call and no internals."""
    call_id = call_id or secrets.token_hex(16)
    log.error(
        "a call failed in a way that nobody foresaw",
        extra={"event": "call_failed_unforeseen", "method": method, "call_id": call_id},
        exc_info=exc,
    )
    return Internal(call_id=call_id)


def unary(
    method: str,
    request_class: type[Request],
    respond: Callable[[Request, Context], Awaitable[Response]],
    *,
    read: Read | None = None,
) -> Handler:
    """A unary method whose refusals, and whatever else it raises, become statuses. Cancellation passes through.

    The request is parsed here and not by gRPC, which has no better word than INTERNAL for a malformed one. With `read`
    it is not read by gRPC either.
    """

    async def parsed(request: bytes, context: Context) -> bytes:
        return (await respond(_parsed(request_class, request), context)).SerializeToString()

    return unary_bytes(method, parsed, read=read)


def unary_bytes(
    method: str,
    respond: Callable[[bytes, Context], Awaitable[bytes]],
    *,
    most_bytes: int = MOST_UNPACKED_BYTES,
    read: Read | None = None,
) -> Handler:
    """As `unary`, for a method that passes messages on as they are. A compressed one is unpacked to `most_bytes`."""

    async def boundary(request: bytes, context: Context) -> bytes:
        try:
            return await respond(await unpacked(request, most_bytes), context)
        except Exception as exc:  # noqa: BLE001  the boundary to the caller
            await ended(context, exc, method)

    if read is None:
        return grpc.unary_unary_rpc_method_handler(boundary)

    async def reading(_: AsyncIterator[bytes], context: Context) -> bytes:
        try:
            return await respond(await read(context), context)
        except Exception as exc:  # noqa: BLE001  the boundary to the caller
            await ended(context, exc, method)

    return grpc.stream_unary_rpc_method_handler(reading)


def streamed(
    method: str,
    request_class: type[Request],
    respond: Callable[[Request, Context], AsyncGenerator[Response]],
    *,
    read: Read,
) -> Handler:
    """A method with one request, which `read` brings, and many responses; the same promise as `unary`."""

    async def boundary(_: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
        try:
            request = _parsed(request_class, await read(context))
            async with aclosing(respond(request, context)) as responses:
                async for response in responses:
                    yield response.SerializeToString()
        except Exception as exc:  # noqa: BLE001  the boundary to the caller
            await ended(context, exc, method)

    return grpc.stream_stream_rpc_method_handler(boundary)


class UnknownMethods(grpc.GenericRpcHandler):
    """Refuses what no handler before it took. Add it to the server last."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Handler:
        """A handler for any method, of any shape."""
        refusal = MethodUnknown(method=str(handler_call_details.method))

        async def refuse(_: AsyncIterator[bytes], context: Context) -> None:
            await abort(context, refusal)

        return grpc.stream_stream_rpc_method_handler(refuse)


def _parsed(request_class: type[Request], request: bytes) -> Request:
    try:
        return request_class.FromString(request)
    except DecodeError:
        raise RequestMalformed from None


async def ended(context: Context, exc: Exception, method: str) -> NoReturn:
    """End the call with what was raised; what nobody foresaw is logged, and told as that."""
    if isinstance(exc, grpc.aio.AbortError):
        raise exc
    await abort(context, exc if isinstance(exc, Refusal) else unforeseen(exc, method=method))
