"""The port that callers use: which handler answers what, and how the port opens and closes."""

import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, NoReturn

import grpc
import grpc.aio

from gateway.audit import Audit
from gateway.callers import Callers
from gateway.errors import CredentialRefused, GatewayFull, KeyInvalid, Refusal, RequestMalformed, ShuttingDown
from gateway.failures import Slowed
from gateway.identity import Caller
from gateway.infer import Proof
from gateway.rest.context import told_by_rest
from gateway.settings import GrpcSettings
from gateway.status import Context, abort
from gateway.traces import CallTrace, CallTraces
from headrace.runtime.addresses import join_address
from headrace.runtime.certificates import OwnCertificate
from headrace.runtime.lifecycle import Unstartable

Handler = Any  # grpc's handler class is generic for type checkers only
_MAX_HANDLERS = 100_000


class CallHandlers(grpc.GenericRpcHandler):
    """The inference service, gRPC and REST: who calls is judged before a body is read, so that a large one needs a key.

    gRPC shows certificates to methods only: where the certificate has the word, the method is one that reads by itself,
    and judges before it does.
    """

    def __init__(
        self,
        callers: Callers,
        infer: Mapping[str, Callable[[Caller, Proof], Callable[[bytes, Context], Any]]],
        others: Mapping[str, Handler],
        *,
        audit: Audit,
        slowed: Slowed,
        full: Callable[[], bool],
        count: Callable[[str], None],
        traces: CallTraces | None = None,
    ) -> None:
        """`infer` makes the methods that run models, for a caller; `others` are those that don't; by their full name.

        While `full` says so, calls are refused before their body is read. Without `traces` none is traced. `count` is
        told the reason of every call of a model that is refused here.
        """
        self._traces = traces
        self._count = count
        self._full = full
        self._audit = audit
        self._slowed = slowed
        self._callers = callers
        self._infer = infer
        self._others = others
        self._certified = {method: self._judging(method, handler) for method, handler in others.items()}
        self._certified |= {method: self._certified_infer(method) for method in infer}
        self._handlers: dict[tuple[str, Caller], Handler] = {}
        self._generation = 0
        self.closing = False
        """Whether new calls are refused."""

    def identities_changed(self) -> None:
        """Keys were taken out, or came: calls whose body is still being read are to prove anew who they are."""
        self._generation += 1
        self._handlers.clear()

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Handler | None:
        """The handler of one call: the method as this caller may use it, or its refusal."""
        method = handler_call_details.method
        runs = method in self._infer
        other = None if runs else self._others.get(method)
        if not runs and other is None:
            return None
        if self.closing:
            return refusing(ShuttingDown(), method, self._unread)
        try:
            caller = self._callers.by_metadata(handler_call_details.invocation_metadata or ())
        except Refusal as refusal:
            return self._refusing(method, refusal)
        if caller is None:
            return self._certified[method]
        if other is not None:
            return other
        return refusing(GatewayFull(), method, self._unread) if self._full() else self._handler(method, caller)

    def _handler(self, method: str, caller: Caller) -> Handler:
        handler = self._handlers.get((method, caller))
        if handler is None:
            infer = self._infer[method]
            handler = grpc.unary_unary_rpc_method_handler(infer(caller, self._proof(method, caller)))
            if len(self._handlers) >= _MAX_HANDLERS:
                self._handlers.clear()  # made anew as they come: subjects of tokens may be any number
            self._handlers[method, caller] = handler
        return handler

    def _proof(self, method: str, caller: Caller) -> Proof:
        generation = self._generation

        def prove(context: Context) -> None:
            if generation == self._generation:
                return
            try:
                if self._callers(context) != caller:
                    raise KeyInvalid
            except Refusal as refusal:
                self._audit.refused(None, refusal, method=method, peer=context.peer())
                raise

        return prove

    # Callers whose certificate has the word.

    def _certified_infer(self, method: str) -> Handler:
        async def infer(_: AsyncIterator[bytes], context: Context) -> Any:  # noqa: ANN401  as infer's
            caller = await self._judged(method, context)
            if self._full():
                refusal = GatewayFull()
                self._unread(method, refusal, context)
                await abort(told_by_rest(method, context), refusal)
            return await self._handler(method, caller).unary_unary(await _body(method, context), context)

        return grpc.stream_unary_rpc_method_handler(infer)

    def _judging(self, method: str, handler: Handler) -> Handler:
        """A method that judges who calls before anything is read."""
        if handler.request_streaming:

            async def streaming(requests: AsyncIterator[bytes], context: Context) -> None:
                await self._judged(method, context)
                await handler.stream_stream(requests, context)

            return grpc.stream_stream_rpc_method_handler(streaming)

        async def unary(_: AsyncIterator[bytes], context: Context) -> bytes:
            await self._judged(method, context)
            answer: bytes = await handler.unary_unary(await _body(method, context), context)
            return answer

        return grpc.stream_unary_rpc_method_handler(unary)

    async def _judged(self, method: str, context: Context) -> Caller:
        try:
            return self._callers(context)
        except Refusal as refusal:
            await self._refuse(method, refusal, context)

    # Strangers.

    def _refusing(self, method: str, refusal: Refusal) -> Handler:
        async def refuse(_: AsyncIterator[bytes], context: Context) -> None:
            await self._refuse(method, refusal, context)

        return grpc.stream_stream_rpc_method_handler(refuse)

    async def _refuse(self, method: str, refusal: Refusal, context: Context) -> NoReturn:
        trace = self._traced(method, context)
        peer = context.peer()
        self._audit.refused(None, refusal, method=method, peer=peer)
        told = told_by_rest(method, context)
        # All that comes by REST has Envoy's address, and Envoy keeps what a caller sends for as long as it waits.
        if isinstance(refusal, CredentialRefused) and told is context:
            await self._slowed.failed(peer)
        self._note(method, refusal, trace)
        await abort(told, refusal)

    def _traced(self, method: str, context: Context) -> CallTrace | None:
        """The trace of a call that is refused here, where it would have run a model and is traced."""
        return None if self._traces is None or method not in self._infer else self._traces.stranger(method, context)

    def _note(self, method: str, refusal: Refusal, trace: CallTrace | None) -> None:
        """Count a call that is refused here, where it would have run a model, and end its trace."""
        if method in self._infer:
            self._count(refusal.reason)
        if trace is not None:
            trace.refused(refusal)

    def _unread(self, method: str, refusal: Refusal, context: Context) -> None:
        self._note(method, refusal, self._traced(method, context))


async def _body(method: str, context: Context) -> bytes:
    """The request of a unary call."""
    request = await context.read()
    if request is grpc.aio.EOF:
        await abort(told_by_rest(method, context), RequestMalformed())
    return bytes(request)


def refusing(refusal: Refusal, method: str, note: Callable[[str, Refusal, Context], None]) -> Handler:
    """A handler that ends the call without reading what the caller sends: a streaming one fits any method."""

    async def refuse(_: AsyncIterator[bytes], context: Context) -> None:
        note(method, refusal, context)
        await abort(told_by_rest(method, context), refusal)

    return grpc.stream_stream_rpc_method_handler(refuse)


def edge_server(
    max_message_bytes: int, handlers: Sequence[grpc.GenericRpcHandler], *, connection_age_seconds: float = 30.0
) -> grpc.aio.Server:
    """The server, not started. A message somewhat over the limit is read, so that its refusal can have a reason."""
    logging.getLogger("grpc._cython.cygrpc").addFilter(_tells_no_headers)
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", max_message_bytes + max_message_bytes // 4),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", 0),
            ("grpc.per_message_decompression", 0),  # `compression` does it, and not beyond the limit
            # Clients ping long-lived connections; by default a server hangs up on those that do it often.
            ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
            ("grpc.keepalive_permit_without_calls", 1),
            # A proxy brings calls of many on one connection, and indexes their headers. gRPC fails one whose value it
            # can't read, and from then on every other that names the same index: one caller would end others' calls.
            # From the client's first acknowledgement on: what it sends before may still be indexed.
            ("grpc.http2.hpack_table_size.decoder", 0),
            # The only goodbye of gRPC's core that loses no call: a server that stops cancels those that just arrive.
            ("grpc.max_connection_age_ms", round(connection_age_seconds * 1000)),
        ]
    )
    server.add_generic_rpc_handlers(tuple(handlers))
    return server


def _tells_no_headers(record: logging.LogRecord) -> bool:
    """Without gRPC's complaint of a header that is not UTF-8, which has its value: it is the caller's own."""
    return not str(record.msg).startswith("Invalid encoding on")


def own_certificate(settings: GrpcSettings) -> OwnCertificate | None:
    """What callers are shown, and what theirs are judged by; None for a plain port. Raises SettingsError."""
    certificate, key = settings.tls_certificate_file, settings.tls_key_file
    if certificate is None or key is None:
        return None
    return OwnCertificate(certificate, key, settings.tls_client_ca_file, what="certificate of the callers' port")


def open_port(server: grpc.aio.Server, settings: GrpcSettings, certificate: OwnCertificate | None) -> int:
    """Bind the port. Returns it; raises Unstartable where it can't be had."""
    address = join_address(settings.host, settings.port)
    try:
        if certificate is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, certificate.server_credentials())
    except RuntimeError:
        raise Unstartable(
            f"cannot listen on {address} (gRPC port): it is in use, or not ours; set another one"
        ) from None
