"""The router's end of the reply streams: a link to every gateway, kept up for as long as the gateway lives."""

import asyncio
import logging
from collections import deque
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, Self

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from headrace.bus.answers.framing import LARGE_BYTES, framed
from headrace.bus.answers.whereabouts import Whereabouts
from headrace.bus.answers.wire import ATTACH_METHOD, Outbox, Trust, fill
from headrace.bus.protocols import Failure, LinkEvents, LinkState, Outcome, RouterKey
from headrace.bus.v1.reply_pb2 import AdminCommand, AdminResult, AnswerBatch, AttachRequest, AttachResponse, Hello

_log = logging.getLogger(__name__)
_BATCH_BYTES = 256 * 1024
_BATCH_ANSWERS = 512
_ENTRY_BYTES = 256  # what an answer takes beside its body, so that empty ones are bounded too
_BACKOFF_SECONDS = 0.05
_BACKOFF_MAX_SECONDS = 1.0
_GOODBYE_SECONDS = 1.0
_MAX_ADMIN_CALLS = 16
_ENVELOPE_BYTES = 8 << 20  # what a command takes beside its request, and all cancellations that may stand take together
_SLOWEST_BYTES_PER_SECOND = 8 << 20  # a gateway that takes this much is not stalled, however large the answer

StreamStream = Any  # grpc.aio's multi-callables are typed by serialisers, and ours is none: bytes in, bytes out


@dataclass(frozen=True, kw_only=True)
class LinkTerms:
    """What holds for all links of a router."""

    router: RouterKey
    pool: str
    attach_seconds: float
    stall_seconds: float
    unacknowledged_bytes: int
    max_message_bytes: int


@dataclass(slots=True)
class _Sent:
    """An answer that the gateway has not acknowledged yet."""

    sequence: int
    call_id: bytes
    attempt: int
    outcome: Outcome
    size: int


class GrpcAnswerLinks:
    """All links of one router; see AnswerLinks. Leaving it drops what is not acknowledged: `flush` comes first."""

    def __init__(self, *, terms: LinkTerms, trust: Trust, whereabouts: Whereabouts, events: LinkEvents) -> None:
        self._terms = terms
        self._trust = trust
        self._whereabouts = whereabouts
        self._events = events
        self._links: dict[tuple[str, int], GrpcLink] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._refused: set[str] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.gather(*self._ending, *(link.close() for link in self._links.values()))

    @property
    def links(self) -> dict[tuple[str, int], "GrpcLink"]:
        """Every link, by address and incarnation."""
        return self._links

    def link(self, address: str, incarnation: int) -> "GrpcLink | None":
        """See AnswerLinks.link."""
        link = self._links.get((address, incarnation))
        if link is not None:
            return link
        if not self._may_dial(address):
            return None
        for other in [key for key, value in self._links.items() if value.state is LinkState.GONE]:
            self._drop(other)
        link = self._links[address, incarnation] = GrpcLink(
            address, incarnation, terms=self._terms, trust=self._trust, events=self._events
        )
        return link

    def gateway_announced(self, address: str, incarnation: int) -> None:
        """See AnswerLinks.gateway_announced."""
        known = self._links.get((address, incarnation))
        if known is not None and known.state is LinkState.GONE:
            self._drop((address, incarnation))
        link = self.link(address, incarnation)
        if link is not None:
            link.hear(announcing=True)

    def silence_all_but(self, announcing: Collection[tuple[str, int]]) -> None:
        """See AnswerLinks.silence_all_but."""
        for gateway, link in self._links.items():
            link.hear(announcing=gateway in announcing)

    async def flush(self) -> None:
        """Return when every answer is acknowledged or its gateway is gone. The caller brings the deadline.

        The last thing before leaving: gateways that have acknowledged all are then told goodbye.
        """
        await asyncio.gather(*(link.flushed() for link in self._links.values()))

    def _drop(self, gateway: tuple[str, int]) -> None:
        ending = asyncio.create_task(self._links.pop(gateway).close(), name=f"reply-link-end-{gateway[0]}")
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)

    def _may_dial(self, address: str) -> bool:
        loopback = self._whereabouts.is_loopback(address)
        if self._whereabouts.allows(address) and self._trust.may_be_plain(loopback=loopback):
            return True
        if address not in self._refused and len(self._refused) < 1000:  # noqa: PLR2004  one line each, bounded
            self._refused.add(address)
            _log.error(
                "gateway %s may not be dialled: see HEADRACE_ROUTER__REPLY__ALLOWED_GATEWAYS and HEADRACE_REPLY_TRUST",
                address,
                extra={"event": "gateway_not_allowed", "address": address},
            )
        return False


class GrpcLink:
    """The link to one incarnation of one gateway; see Link."""

    def __init__(self, address: str, incarnation: int, *, terms: LinkTerms, trust: Trust, events: LinkEvents) -> None:
        self.address = address
        self.incarnation = incarnation
        self._terms = terms
        self._trust = trust
        self._events = events
        self._state = LinkState.ATTACHING
        self._silent = False
        self._sequence = 0
        self._unsent: deque[_Sent] = deque()
        self._unacknowledged: deque[_Sent] = deque()
        self._unacknowledged_bytes = 0
        self._waited_seconds = 0.0
        self._results: deque[AdminResult] = deque()
        self._outbox: Outbox | None = None
        self._admin_calls: set[asyncio.Task[None]] = set()
        self._flushed = False
        self._leaving = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._task = asyncio.create_task(self._keep_up(), name=f"reply-link-{address}")

    @property
    def state(self) -> LinkState:
        """See Link.state."""
        return self._state

    @property
    def has_room(self) -> bool:
        """See Link.has_room."""
        return self._unacknowledged_bytes < self._terms.unacknowledged_bytes

    @property
    def unacknowledged_bytes(self) -> int:
        """Of answers, those under way included."""
        return self._unacknowledged_bytes

    def send(self, call_id: bytes, attempt: int, outcome: Outcome) -> None:
        """See Link.send."""
        if self._state is LinkState.GONE:
            return
        self._sequence += 1
        size = _ENTRY_BYTES + len(outcome if isinstance(outcome, bytes) else b"")
        answer = _Sent(self._sequence, call_id, attempt, outcome, size)
        if not self._unacknowledged:
            self._waited_seconds = 0.0
            self._flushed = False
            self._idle.clear()
        self._unacknowledged.append(answer)
        self._unacknowledged_bytes += size
        if self._outbox is not None:
            self._unsent.append(answer)
            self._outbox.wake()

    def hear(self, *, announcing: bool) -> None:
        """Whether the gateway announces itself. The next failure to attach to a silent one is the end of this link."""
        self._silent = not announcing

    async def flushed(self) -> None:
        """Return when nothing waits for an acknowledgement any more."""
        await self._idle.wait()
        self._flushed = True

    async def close(self) -> None:
        """Detach, with a goodbye where the link was flushed. What was not acknowledged is dropped."""
        if self._flushed and self._outbox is not None:
            self._leaving = True
            self._outbox.finish()
            await asyncio.wait([self._task], timeout=_GOODBYE_SECONDS)
        self._become(LinkState.GONE)
        self._task.cancel()
        await asyncio.wait([self._task])

    def _become(self, state: LinkState) -> None:
        if state is self._state or self._state is LinkState.GONE:
            return
        self._state = state
        if state is LinkState.GONE:
            self._unsent.clear()
            self._unacknowledged.clear()
            self._unacknowledged_bytes = 0
            self._idle.set()
        self._events.link_changed(self)

    async def _keep_up(self) -> None:
        """Attach, and attach again after every break, until the gateway is gone."""
        backoff, told = _BACKOFF_SECONDS, ""
        while self._state is not LinkState.GONE:
            broke_after_attaching = False
            try:
                broke_after_attaching = await self._attach_once()
            except Exception as exc:  # noqa: BLE001  the boundary of one link: it goes on, and so do the others
                if repr(exc) != told:  # once per cause, not per attempt
                    _log.exception(
                        "no link to gateway %s", self.address, extra={"event": "link_failed", "address": self.address}
                    )
                told = repr(exc)
            if self._leaving:
                return
            if broke_after_attaching:
                backoff, told = _BACKOFF_SECONDS, ""
                self._become(LinkState.ATTACHING)
            else:
                self._become(LinkState.GONE if self._silent else LinkState.UNREACHABLE)
            if self._state is LinkState.UNREACHABLE:
                await asyncio.sleep(backoff)  # the pace of retries
                backoff = min(backoff * 2, _BACKOFF_MAX_SECONDS)
        _log.info("gateway %s is gone", self.address, extra={"event": "gateway_gone", "address": self.address})

    def _channel(self) -> grpc.aio.Channel:
        options = [
            ("grpc.max_send_message_length", -1),
            ("grpc.max_receive_message_length", self._terms.max_message_bytes + _ENVELOPE_BYTES),
            ("grpc.keepalive_time_ms", 10_000),
            ("grpc.keepalive_timeout_ms", 5_000),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.max_pings_without_data", 0),
            # One connection per link: a broken one takes no other link with it.
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.enable_retries", 0),
        ]
        credentials = self._trust.channel_credentials()
        if credentials is None:
            return grpc.aio.insecure_channel(self.address, options=options)
        return grpc.aio.secure_channel(self.address, credentials, options=options)

    async def _attach_once(self) -> bool:
        """One stream, from attaching to its end. Returns whether it stood at all."""
        attached = False
        async with self._channel() as channel:
            attach: StreamStream = channel.stream_stream(ATTACH_METHOD)
            call = attach(metadata=grpc.aio.Metadata(*self._trust.metadata()))
            writer: asyncio.Task[None] | None = None
            watch: asyncio.Task[None] | None = None
            try:
                async with asyncio.timeout(self._terms.attach_seconds):
                    await call.write(AttachRequest(hello=self._hello()).SerializeToString())
                    welcome = await call.read()
                if welcome is grpc.aio.EOF:
                    raise _StreamBrokenError
                self._hear(welcome)
                attached = True
                writer, watch = self._start(call)
                self._become(LinkState.ATTACHED)
                extra = {"event": "gateway_attached", "address": self.address}
                _log.info("attached to gateway %s", self.address, extra=extra)
                while (message := await call.read()) is not grpc.aio.EOF:
                    self._hear(message)
            except _BREAKS as exc:
                await self._learn(call, exc)
            except TimeoutError:
                extra = {"event": "attach_timeout", "address": self.address}
                _log.debug("gateway %s did not answer in time", self.address, extra=extra)
            except asyncio.CancelledError:
                # `call.cancel()` shows here like a cancellation of this task; only the latter may pass.
                if (task := asyncio.current_task()) is None or task.cancelling():
                    raise
            finally:
                self._outbox = None
                call.cancel()
                for task in filter(None, (writer, watch, *self._admin_calls)):
                    task.cancel()
                self._results.clear()
        return attached

    def _start(self, call: "grpc.aio.StreamStreamCall[bytes, bytes]") -> tuple[asyncio.Task[None], asyncio.Task[None]]:
        self._unsent = deque(self._unacknowledged)
        self._waited_seconds = 0.0
        outbox = self._outbox = Outbox(self._due, call.write)
        if self._unsent:
            outbox.wake()
        writer = asyncio.create_task(_write(outbox, call), name=f"reply-writer-{self.address}")
        writer.add_done_callback(lambda task: _end(call, task))
        watch = asyncio.create_task(self._watch_progress(call), name=f"reply-watch-{self.address}")
        return writer, watch

    async def _learn(self, call: "grpc.aio.StreamStreamCall[bytes, bytes]", exc: Exception) -> None:
        """What the end of a stream tells: a refusal by incarnation is the end of this gateway."""
        code = await call.code() if call.done() else None
        if code is grpc.StatusCode.FAILED_PRECONDITION:
            self._become(LinkState.GONE)
        elif code in {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED}:
            why = await call.details()
            extra = {"event": "attach_refused", "address": self.address, "why": why}
            _log.error("gateway %s refuses this router: %s", self.address, why, extra=extra)
        elif self._state is LinkState.ATTACHED:
            extra = {"event": "link_broken", "address": self.address, "why": str(code or exc)}
            _log.warning("the stream to gateway %s broke: %s", self.address, code or exc, extra=extra)

    def _hello(self) -> Hello:
        return Hello(
            router_id=self._terms.router.id,
            router_incarnation=self._terms.router.incarnation,
            pool=self._terms.pool,
            expected_gateway_incarnation=self.incarnation,
        )

    def _hear(self, raw: bytes) -> None:
        message = AttachResponse.FromString(raw)
        kind = message.WhichOneof("message")
        if kind == "acknowledgement":
            self._acknowledged(message.acknowledgement.sequence)
        elif kind == "cancellations":
            for cancellation in message.cancellations.cancellations:
                self._events.cancelled(cancellation.call_id, cancellation.attempt, cancellation.expire_time_unix_micros)
        elif kind == "welcome":
            for cancellation in message.welcome.cancellations:
                self._events.cancelled(cancellation.call_id, cancellation.attempt, cancellation.expire_time_unix_micros)
        elif kind == "admin_command":
            self._administer(message.admin_command)

    def _acknowledged(self, sequence: int) -> None:
        had_room = self.has_room
        unacknowledged = self._unacknowledged
        while unacknowledged and unacknowledged[0].sequence <= sequence:
            self._unacknowledged_bytes -= unacknowledged.popleft().size
        self._waited_seconds = 0.0
        if not unacknowledged:
            self._idle.set()
        if self.has_room and not had_room:
            self._events.link_changed(self)

    async def _watch_progress(self, call: "grpc.aio.StreamStreamCall[bytes, bytes]") -> None:
        """End the stream when the gateway takes nothing any more: it must not hold this router's memory."""
        tick = self._terms.stall_seconds / 5
        while True:
            await asyncio.sleep(tick)  # a clock, not a wait for an event
            if not self._unacknowledged:
                continue
            self._waited_seconds += tick  # no clock: while this process stands still, nothing is late
            # The oldest alone has been under way since the last acknowledgement: the others queue behind it.
            patience = self._terms.stall_seconds + self._unacknowledged[0].size / _SLOWEST_BYTES_PER_SECOND
            if self._waited_seconds > patience:
                extra = {"event": "gateway_stalled", "address": self.address}
                _log.error("gateway %s takes no answers: detached", self.address, extra=extra)
                self._become(LinkState.UNREACHABLE)
                call.cancel()
                return

    def _due(self) -> Iterator[bytes]:
        while self._results:
            yield AttachRequest(admin_result=self._results.popleft()).SerializeToString()
        while self._unsent:
            yield self._next_batch()

    def _next_batch(self) -> bytes:
        unsent = self._unsent
        first = unsent[0]
        if first.size >= LARGE_BYTES and isinstance(first.outcome, bytes):
            unsent.popleft()
            return framed(first.sequence, first.call_id, first.attempt, first.outcome)
        message = AttachRequest()
        batch: AnswerBatch = message.answers
        size = 0
        while unsent and len(batch.answers) < _BATCH_ANSWERS:
            sent = unsent[0]
            size += sent.size
            if batch.answers and (size > _BATCH_BYTES or sent.size >= LARGE_BYTES):
                break
            unsent.popleft()
            outcome = sent.outcome
            if isinstance(outcome, bytes):
                batch.answers.add(sequence=sent.sequence, call_id=sent.call_id, attempt=sent.attempt, response=outcome)
            else:
                fill(batch.answers.add(sequence=sent.sequence, call_id=sent.call_id, attempt=sent.attempt), outcome)
        return message.SerializeToString()

    def _administer(self, command: AdminCommand) -> None:
        if len(self._admin_calls) >= _MAX_ADMIN_CALLS:
            self._result(command, Failure.INTERNAL)
            return
        task = asyncio.create_task(self._run_command(command), name=f"admin-{command.method}")
        self._admin_calls.add(task)
        task.add_done_callback(self._admin_calls.discard)

    async def _run_command(self, command: AdminCommand) -> None:
        outcome: Outcome = Failure.INTERNAL
        try:
            outcome = await self._events.administer(command.method, command.request, command.expire_time_unix_micros)
        except Exception:  # noqa: BLE001  the boundary of one command: the link goes on
            _log.exception("an administrative call failed", extra={"event": "admin_failed", "method": command.method})
        self._result(command, outcome)

    def _result(self, command: AdminCommand, outcome: Outcome) -> None:
        result = AdminResult(command_id=command.command_id)
        fill(result, outcome)
        self._results.append(result)
        if self._outbox is not None:
            self._outbox.wake()


class _StreamBrokenError(Exception):
    """The gateway ended the stream."""


_BREAKS = (grpc.RpcError, grpc.aio.UsageError, asyncio.InvalidStateError, _StreamBrokenError, DecodeError)


async def _write(outbox: Outbox, call: "grpc.aio.StreamStreamCall[bytes, bytes]") -> None:
    await outbox.run()
    await call.done_writing()  # the goodbye


def _end(call: "grpc.aio.StreamStreamCall[bytes, bytes]", writer: asyncio.Task[None]) -> None:
    """A writer that died ends its stream; the reader then learns why."""
    if not writer.cancelled() and writer.exception() is not None:
        call.cancel()
