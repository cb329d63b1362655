"""Everything that this router asks of the Triton beside it, over one channel of its own.

The only module that knows Triton's client messages. `tritonclient` is untyped and its stubs are not used: methods are
called by name, with bytes on the call path and with its message classes elsewhere.
"""

import asyncio
import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Self, TypeAlias

import grpc
import grpc.aio
from tritonclient.grpc import service_pb2

from headrace.bus.protocols import Failure, Outcome
from headrace.bus.v1.envelope_pb2 import Metadatum
from headrace.bus.v1.reply_pb2 import ModelServerStatus

SERVICE = "/inference.GRPCInferenceService/"
MODEL_INFER = SERVICE + "ModelInfer"

Message: TypeAlias = Any  # tritonclient's messages are untyped
UnaryUnary: TypeAlias = (
    Any  # grpc.aio's multi-callables are typed by serialisers, and ours is none: bytes in, bytes out
)

_ANSWER_ROOM_BYTES = 1 << 20
_CLOCK_SECONDS = 0.005  # gRPC's timer may be ahead of the loop's clock, which goes in milliseconds
_MADE_HERE = ("Stream removed (", "failed to connect to all addresses")
"""How gRPC's own texts begin that tell of a broken connection; the next one may stand already when they are read."""
_log = logging.getLogger(__name__)


class TritonAwayError(Exception):
    """Triton did not answer a question."""


class Triton:
    """The model server beside this router."""

    def __init__(self, address: str, *, max_message_bytes: int, call_seconds: float) -> None:
        self.address = address
        self._max_message_bytes = max_message_bytes
        self._call_seconds = call_seconds
        self._connection = 0  # counts the times that a connection was lost
        self._channel = grpc.aio.insecure_channel(
            address,
            options=[
                ("grpc.max_send_message_length", -1),
                ("grpc.max_receive_message_length", max_message_bytes + _ANSWER_ROOM_BYTES),
                ("grpc.enable_retries", 0),
                ("grpc.use_local_subchannel_pool", 1),
                ("grpc.min_reconnect_backoff_ms", 100),
                ("grpc.initial_reconnect_backoff_ms", 100),
                ("grpc.max_reconnect_backoff_ms", 1000),
                ("grpc.lb_policy_name", "pick_first"),
            ],
        )
        self._infer: UnaryUnary = self._channel.unary_unary(MODEL_INFER)

    async def __aenter__(self) -> Self:
        self._watch = asyncio.create_task(self._count_connections(), name="triton-connection")
        return self

    async def __aexit__(self, *_: object) -> None:
        self._watch.cancel()
        await asyncio.wait([self._watch])
        await self._channel.close()

    async def infer(self, request: bytes, metadata: Sequence[Metadatum], seconds: float) -> Outcome:
        """Run one call. Cancelling this cancels the call in Triton."""
        expires = time.monotonic() + seconds  # not the loop's clock, which stands still for as long as a turn takes
        if not metadata:
            call = self._infer(request, timeout=seconds)
        else:
            call = self._infer(request, timeout=seconds, metadata=grpc.aio.Metadata(*_carried(metadata)))
        return await self._outcome(call, expires)

    async def administer(self, method: str, request: bytes, seconds: float) -> Outcome:
        """Pass on one administrative call, byte for byte."""
        administer: UnaryUnary = self._channel.unary_unary(method)
        expires = time.monotonic() + seconds
        return await self._outcome(administer(request, timeout=seconds), expires)

    async def ready(self) -> bool:
        """Whether Triton answers and says that it is ready."""
        try:
            return bool((await self._ask("ServerReady", service_pb2.ServerReadyResponse)).ready)
        except TritonAwayError:
            return False

    async def server_metadata(self) -> Message:
        """`ServerMetadataResponse`. Raises TritonAwayError."""
        return await self._ask("ServerMetadata", service_pb2.ServerMetadataResponse)

    async def repository_index(self) -> Message:
        """`RepositoryIndexResponse` with every model, ready or not. Raises TritonAwayError."""
        return await self._ask("RepositoryIndex", service_pb2.RepositoryIndexResponse)

    async def model_metadata(self, model: str, version: str) -> bytes:
        """`ModelMetadataResponse`, serialised. Raises TritonAwayError."""
        request = service_pb2.ModelMetadataRequest(name=model, version=version)
        return await self._ask_bytes("ModelMetadata", request.SerializeToString())

    async def model_config(self, model: str, version: str) -> Message:
        """`ModelConfigResponse`. Raises TritonAwayError."""
        request = service_pb2.ModelConfigRequest(name=model, version=version)
        return service_pb2.ModelConfigResponse.FromString(
            await self._ask_bytes("ModelConfig", request.SerializeToString())
        )

    async def statistics(self) -> Message:
        """`ModelStatisticsResponse` of every loaded model. Raises TritonAwayError."""
        return await self._ask("ModelStatistics", service_pb2.ModelStatisticsResponse)

    async def _ask(self, method: str, response: Message, request: bytes = b"") -> Message:
        return response.FromString(await self._ask_bytes(method, request))

    async def _ask_bytes(self, method: str, request: bytes) -> bytes:
        ask: UnaryUnary = self._channel.unary_unary(SERVICE + method)
        try:
            return bytes(await ask(request, timeout=self._call_seconds))
        except grpc.RpcError as exc:
            raise TritonAwayError(f"{method}: {_text(exc)}") from None

    async def _outcome(self, call: "grpc.aio.UnaryUnaryCall[bytes, bytes]", expires: float) -> Outcome:
        connection = self._connection
        try:
            response: bytes = await call
        except grpc.aio.AioRpcError as exc:
            if time.monotonic() >= expires - _CLOCK_SECONDS:
                return Failure.EXPIRED
            return self._judge(exc, connection)
        return response if len(response) <= self._max_message_bytes else Failure.ANSWER_TOO_LARGE

    def _judge(self, exc: grpc.aio.AioRpcError, connection: int) -> Outcome:
        """Triton's own status, or one that our channel made: told apart by where it came from, not by its code."""
        text = exc.details() or ""
        if text.startswith("CLIENT: Received message larger than max"):
            return Failure.ANSWER_TOO_LARGE
        ready = self._channel.get_state() is grpc.ChannelConnectivity.READY
        if not ready or connection != self._connection or text.startswith(_MADE_HERE):
            _log.warning("a call was lost on its way to Triton: %s", text, extra={"event": "triton_lost", "why": text})
            return Failure.TRITON_LOST
        trailing = [
            Metadatum(key=key, value=value if isinstance(value, bytes) else value.encode())
            for key, value in exc.trailing_metadata() or ()
        ]
        return ModelServerStatus(code=exc.code().value[0], message=text, trailing_metadata=trailing)

    async def _count_connections(self) -> None:
        state = self._channel.get_state(try_to_connect=True)
        while True:
            await self._channel.wait_for_state_change(state)
            was_ready = state is grpc.ChannelConnectivity.READY
            state = self._channel.get_state(try_to_connect=True)
            if was_ready:
                self._connection += 1


def _carried(metadata: Iterable[Metadatum]) -> Iterator[tuple[str, str | bytes]]:
    """What gRPC takes from a client: a server is given more, as HTTP has it, and sending that on would end the call."""
    for each in metadata:
        if each.key.endswith("-bin"):
            yield each.key, each.value
        elif each.value.isascii() and (text := each.value.decode()).isprintable():
            yield each.key, text


def _text(exc: grpc.RpcError) -> str:
    return exc.details() or exc.code().name if isinstance(exc, grpc.aio.AioRpcError) else str(exc)
