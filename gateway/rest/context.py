"""What a REST caller is told beside the body: what gRPC has in trailing metadata, as headers."""

import math
from collections.abc import Sequence
from typing import Any, NoReturn, cast

import grpc
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from gateway.status import DETAILS_KEY, Context

SERVICE = "headrace.v1.RestService"
_PREFIX = f"/{SERVICE}/"

_Metadata = Sequence[tuple[str, str | bytes]]


def told_by_rest(method: str, context: Context) -> Context:
    """The context of a call, where need be one that tells a REST caller what it understands."""
    return cast("Context", RestContext(context)) if method.startswith(_PREFIX) else context


class RestContext:
    """A call's context: HTTP/1 clients see no trailers, so what is told there goes ahead of the answer.

    A refusal has its reason in `x-headrace-reason`, and when to come back in `retry-after`, in whole seconds.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._told: _Metadata = ()

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  whatever the context has
        return getattr(self._context, name)

    def set_trailing_metadata(self, trailing: _Metadata) -> None:
        """Keep it for `answering`."""
        self._told = trailing

    def trailing_metadata(self) -> _Metadata:
        """What is kept."""
        return self._told

    async def answering(self) -> None:
        """Send it ahead of the answer, which is there now."""
        await self._context.send_initial_metadata(tuple(self._told))

    async def abort(self, code: grpc.StatusCode, text: str = "", trailing: _Metadata = ()) -> NoReturn:
        """As grpc's, with headers for REST. Only trailers are sent then, and Envoy makes headers of them."""
        await self._context.abort(code, text, (*trailing, *_headers(trailing)))
        raise AssertionError("abort returned")


def _headers(trailing: _Metadata) -> list[tuple[str, str]]:
    headers = []
    for key, value in trailing:
        if key != DETAILS_KEY or not isinstance(value, bytes):
            continue
        for detail in Status.FromString(value).details:
            info, retry = ErrorInfo(), RetryInfo()
            if detail.Unpack(info):
                headers.append(("x-headrace-reason", info.reason))
            elif detail.Unpack(retry):
                seconds = retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9
                headers.append(("retry-after", str(max(1, math.ceil(seconds)))))
    return headers
