"""The gateway's end of the reply streams: ReplyService."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from typing import Any, Self

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from headrace.bus.answers.framing import unframed
from headrace.bus.answers.wire import ATTACH_METHOD, Outbox, Trust, outcome_of
from headrace.bus.protocols import HubEvents, Outcome, RouterKey, RouterLostError
from headrace.bus.v1.reply_pb2 import (
    Acknowledgement,
    AdminCommand,
    AttachRequest,
    AttachResponse,
    Cancellation,
    CancellationBatch,
    Hello,
    Welcome,
)
from headrace.runtime.addresses import join_address

MAX_STANDING_CANCELLATIONS = 100_000
"""Beyond it the oldest is forgotten: its call may run for nobody, no more than that."""

_HELLO_SECONDS = 2.0
_GOODBYE_SECONDS = 1.0
_ACKNOWLEDGE_EVERY_ANSWERS = 64
_ACKNOWLEDGE_EVERY_BYTES = 1 << 20
_ACKNOWLEDGE_SECONDS = 0.1
_MAX_COMMANDS = 1000

Context = grpc.aio.ServicerContext[bytes, bytes]
Handler = Any  # grpc's handler class is generic for type checkers only

_log = logging.getLogger(__name__)


class GrpcAnswerHub:
    """Serves ReplyService on a port of its own; see AnswerHub."""

    def __init__(self, *, incarnation: int, pool: str, trust: Trust, max_message_bytes: int, events: HubEvents) -> None:
        self._incarnation = incarnation
        self._pool = pool
        self._trust = trust
        self._max_message_bytes = max_message_bytes
        self._events = events
        self._routers: dict[RouterKey, _AttachedRouter] = {}
        self._cancellations: dict[bytes, Cancellation] = {}
        self.cancelled = 0
        """Calls that routers were told not to run."""
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", max_message_bytes + (1 << 20)),
                ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.http2.max_ping_strikes", 0),  # routers have proved who they are: none pings to harm
                # A path that is cut without a word must end the stream here as well: this gateway's calls wait on it.
                ("grpc.keepalive_time_ms", 5_000),
                ("grpc.keepalive_timeout_ms", 3_000),
                ("grpc.http2.max_pings_without_data", 0),
                ("grpc.so_reuseport", 0),
            ]
        )
        self._server.add_generic_rpc_handlers((_Handlers(self._attach),))

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        await self._server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._server.stop(grace=None)

    def bind(self, host: str, port: int) -> int:
        """Open the port, before the hub is entered. Returns the port; raises OSError where it can't be had."""
        address = join_address(host, port)
        credentials = self._trust.server_credentials()
        try:
            if credentials is not None:
                return self._server.add_secure_port(address, credentials)
            return self._server.add_insecure_port(address)
        except RuntimeError as exc:
            raise OSError(f"cannot listen on {address}") from exc

    @property
    def routers(self) -> Iterable[RouterKey]:
        """The routers that are attached now."""
        return self._routers.keys()

    @property
    def heard_at(self) -> dict[RouterKey, float]:
        """See AnswerHub.heard_at."""
        return {router: attached.heard_at for router, attached in self._routers.items()}

    def cancel(self, call_id: bytes, attempt: int, expire_time_unix_micros: int) -> None:
        """See AnswerHub.cancel."""
        cancellation = Cancellation(call_id=call_id, attempt=attempt, expire_time_unix_micros=expire_time_unix_micros)
        if len(self._cancellations) >= MAX_STANDING_CANCELLATIONS:
            self._forget_cancellations()
        self.cancelled += 1
        self._cancellations[call_id] = cancellation
        for router in self._routers.values():
            router.cancel(cancellation)

    async def administer(self, router: RouterKey, method: str, request: bytes, expire_time_unix_micros: int) -> Outcome:
        """See AnswerHub.administer."""
        attached = self._routers.get(router)
        if attached is None:
            raise RouterLostError(router.id)
        if len(request) > self._max_message_bytes:
            raise RouterLostError("no router takes a command of so many bytes: it would break the stream")
        return await attached.administer(method, request, expire_time_unix_micros)

    def _forget_cancellations(self) -> None:
        now = time.time_ns() // 1000
        for call_id in [key for key, value in self._cancellations.items() if value.expire_time_unix_micros < now]:
            del self._cancellations[call_id]
        # Well below the bound, so that the next forgetting is far off.
        while len(self._cancellations) > MAX_STANDING_CANCELLATIONS * 9 // 10:
            del self._cancellations[next(iter(self._cancellations))]

    async def _attach(self, requests: AsyncIterator[bytes], context: Context) -> None:
        router = await self._welcome(requests, context)
        attached = _AttachedRouter(context)
        previous = self._routers.get(router)
        if previous is not None:
            previous.close()  # it broke on the other side, and this side has not noticed yet
        # Registered before the welcome is written, so that no cancellation falls between the two.
        self._routers[router] = attached
        self._forget_cancellations()
        writer: asyncio.Task[None] | None = None
        left = False
        try:
            welcome = Welcome(cancellations=self._cancellations.values())
            await context.write(AttachResponse(welcome=welcome).SerializeToString())
            async with attached.stay():
                self._events.attached(router)
                _log.info("router %s attached", router.id, extra={"event": "router_attached", "router": router.id})
                writer = asyncio.create_task(attached.outbox.run(), name=f"reply-writer-{router.id}")
                async for raw in requests:
                    attached.heard_at = self._loop.time()
                    large = unframed(raw)
                    if large is None:
                        self._take(AttachRequest.FromString(raw), len(raw), attached)
                    else:
                        self._events.answered(large.call_id, large.attempt, large.response)
                        attached.taken(large.sequence, 1, len(raw))
                left = await attached.parted(writer)
        except _ClosedError:
            context.set_code(grpc.StatusCode.ABORTED)
            context.set_details("this router has attached anew")
        except (DecodeError, IndexError):
            extra = {"event": "router_malformed", "router": router.id}
            _log.warning("router %s sent what is no message", router.id, extra=extra)
            context.set_code(grpc.StatusCode.INVALID_ARGUMENT)
        finally:
            # First what others must know: gRPC cancels a handler again while it cleans up, and no await may be passed.
            attached.release()
            if self._routers.get(router) is attached:
                del self._routers[router]
                if left:
                    self._events.left(router)
                self._events.detached(router)
                _log.info("router %s detached", router.id, extra={"event": "router_detached", "router": router.id})
            if writer is not None:
                writer.cancel()
                await asyncio.wait([writer])  # a write that failed says no more than that the stream broke

    async def _welcome(self, requests: AsyncIterator[bytes], context: Context) -> RouterKey:
        """Check who attaches. Aborts the stream where it may not."""
        if not self._trust.proven(context.invocation_metadata() or ()):
            extra = {"event": "attach_refused", "peer": context.peer()}
            _log.warning("%s failed to prove that it is a router", context.peer(), extra=extra)
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "not a router of this installation")
        try:
            async with asyncio.timeout(_HELLO_SECONDS):
                hello = AttachRequest.FromString(await anext(requests, b"")).hello
        except (DecodeError, TimeoutError):
            hello = Hello()
        if not hello.router_id:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the first message must be a Hello")
        if hello.expected_gateway_incarnation != self._incarnation:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "this is another incarnation of the gateway")
        if hello.pool != self._pool:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, f"this gateway serves pool {self._pool}")
        return RouterKey(hello.router_id, hello.router_incarnation)

    def _take(self, message: AttachRequest, size: int, attached: "_AttachedRouter") -> None:
        if message.HasField("answers"):
            answers = message.answers.answers
            answered = self._events.answered
            for answer in answers:
                if answer.HasField("response"):
                    answered(answer.call_id, answer.attempt, answer.response)
                else:
                    answered(answer.call_id, answer.attempt, outcome_of(answer))
            attached.taken(answers[-1].sequence, len(answers), size)
        elif message.HasField("admin_result"):
            attached.resolved(message.admin_result.command_id, outcome_of(message.admin_result))


class _Handlers(grpc.GenericRpcHandler):
    def __init__(self, attach: Callable[[AsyncIterator[bytes], Context], Awaitable[None]]) -> None:
        self._handler: Handler = grpc.stream_stream_rpc_method_handler(attach)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Handler | None:
        return self._handler if handler_call_details.method == ATTACH_METHOD else None


class _ClosedError(Exception):
    """This side ended the stream."""


class _AttachedRouter:
    """What this gateway has to say to one router."""

    def __init__(self, context: Context) -> None:
        self._loop = asyncio.get_running_loop()
        self._cancellations: list[Cancellation] = []
        self._commands: deque[AdminCommand] = deque()
        self._results: dict[int, asyncio.Future[Outcome]] = {}
        self._last_command = 0
        self._sequence = 0
        self._acknowledging = 0
        self._acknowledged = 0
        self._answers_due = 0
        self._bytes_due = 0
        self._timer: asyncio.TimerHandle | None = None
        self.outbox = Outbox(self._due, context.write)
        self.heard_at = self._loop.time()
        self._closed = False
        self._stay: asyncio.Timeout | None = None

    def close(self) -> None:
        """End the stream from this side."""
        self._closed = True
        if self._stay is not None:
            self._stay.reschedule(self._loop.time())

    @asynccontextmanager
    async def stay(self) -> AsyncIterator[None]:
        """Raises _ClosedError once closed: gRPC sends the other end no status where a handler is cancelled."""
        if self._closed:
            raise _ClosedError
        try:
            async with asyncio.timeout(None) as self._stay:
                yield
        except TimeoutError:
            raise _ClosedError from None

    async def parted(self, writer: asyncio.Task[None]) -> bool:
        """Whether a stream that has been read to its end was ended by a goodbye."""
        self._acknowledge()
        self._acknowledged = -1  # said again, if need be: a stream that broke is read to an end too, but takes no write
        self.outbox.finish()
        await asyncio.wait([writer], timeout=_GOODBYE_SECONDS)
        return writer.done() and not writer.cancelled() and writer.exception() is None

    def release(self) -> None:
        """The stream has ended: whoever waits for it waits in vain."""
        if self._timer is not None:
            self._timer.cancel()
        for result in self._results.values():
            if not result.done():
                result.set_exception(RouterLostError())

    def cancel(self, cancellation: Cancellation) -> None:
        if len(self._cancellations) < MAX_STANDING_CANCELLATIONS:
            self._cancellations.append(cancellation)
            self.outbox.wake()

    async def administer(self, method: str, request: bytes, expire_time_unix_micros: int) -> Outcome:
        if len(self._commands) >= _MAX_COMMANDS:
            raise RouterLostError("the router takes no more commands")
        self._last_command += 1
        command_id = self._last_command
        result = self._results[command_id] = self._loop.create_future()
        self._commands.append(
            AdminCommand(
                command_id=command_id,
                method=method,
                request=request,
                expire_time_unix_micros=expire_time_unix_micros,
            )
        )
        self.outbox.wake()
        try:
            outcome: Outcome = await result
            return outcome
        finally:
            del self._results[command_id]

    def resolved(self, command_id: int, outcome: Outcome) -> None:
        result = self._results.get(command_id)
        if result is not None and not result.done():
            result.set_result(outcome)

    def taken(self, sequence: int, answers: int, size: int) -> None:
        """Account for answers; acknowledging each would double the messages of a lone call."""
        self._sequence = sequence
        self._answers_due += answers
        self._bytes_due += size
        if self._answers_due >= _ACKNOWLEDGE_EVERY_ANSWERS or self._bytes_due >= _ACKNOWLEDGE_EVERY_BYTES:
            self._acknowledge()
        elif self._timer is None:
            self._timer = self._loop.call_later(_ACKNOWLEDGE_SECONDS, self._acknowledge)

    def _acknowledge(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._answers_due = self._bytes_due = 0
        self._acknowledging = self._sequence
        self.outbox.wake()

    def _due(self) -> Iterator[bytes]:
        if self._acknowledging > self._acknowledged:
            self._acknowledged = self._acknowledging
            yield AttachResponse(acknowledgement=Acknowledgement(sequence=self._acknowledged)).SerializeToString()
        if self._cancellations:
            cancellations, self._cancellations = self._cancellations, []
            yield AttachResponse(cancellations=CancellationBatch(cancellations=cancellations)).SerializeToString()
        while self._commands:
            yield AttachResponse(admin_command=self._commands.popleft()).SerializeToString()
