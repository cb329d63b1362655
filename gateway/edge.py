"""The port that callers use: which handler answers what, and how the port opens and closes."""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import partial
from typing import Any

import grpc
import grpc.aio

from gateway.audit import Audit
from gateway.errors import GatewayFull, KeyInvalid, Refusal, ShuttingDown
from gateway.identity import Caller, Identify
from gateway.infer import METHOD as MODEL_INFER
from gateway.infer import Proof
from gateway.settings import GrpcSettings
from gateway.status import Context, abort
from headrace.runtime.addresses import join_address
from headrace.runtime.lifecycle import Unstartable

Handler = Any  # grpc's handler class is generic for type checkers only
_MAX_HANDLERS = 100_000


class CallHandlers(grpc.GenericRpcHandler):
    """The inference service: who calls is judged before the request is read, so that a large body needs a key."""

    def __init__(
        self,
        identify: Identify,
        infer: Callable[[Caller, Proof], Callable[[bytes, Context], Any]],
        others: Mapping[str, Handler],
        *,
        audit: Audit,
        full: Callable[[], bool] = lambda: False,
    ) -> None:
        """`infer` makes ModelInfer for a caller, `others` are the service's other methods by their full name.

        While `full` says so, calls are refused before their body is read.
        """
        self._full = full
        self._audit = audit
        self._identify = identify
        self._infer = infer
        self._others = others
        self._handlers: dict[Caller, Handler] = {}
        self._generation = 0
        self.closing = False
        """Whether new calls are refused."""

    def identities_changed(self) -> None:
        """Keys were taken out, or came: calls whose body is still being read are to prove anew who they are."""
        self._generation += 1
        self._handlers.clear()

    def _proof(self, caller: Caller) -> Proof:
        generation = self._generation

        def prove(context: Context) -> None:
            if generation == self._generation:
                return
            try:
                if self._identify(context.invocation_metadata() or ()) != caller:
                    raise KeyInvalid
            except Refusal as refusal:
                self._audit_stranger(MODEL_INFER, refusal, context.peer())
                raise

        return prove

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Handler | None:
        """The handler of one call: the method as this caller may use it, or its refusal."""
        method = handler_call_details.method
        other = None if method == MODEL_INFER else self._others.get(method)
        if method != MODEL_INFER and other is None:
            return None
        if self.closing:
            return refusing(ShuttingDown())
        try:
            caller = self._identify(handler_call_details.invocation_metadata or ())
        except Refusal as refusal:
            return refusing(refusal, partial(self._audit_stranger, method, refusal))
        if other is not None:
            return other
        if self._full():
            return refusing(GatewayFull())
        handler = self._handlers.get(caller)
        if handler is None:
            handler = grpc.unary_unary_rpc_method_handler(self._infer(caller, self._proof(caller)))
            if len(self._handlers) >= _MAX_HANDLERS:
                self._handlers.clear()  # made anew as they come: subjects of tokens may be any number
            self._handlers[caller] = handler
        return handler

    def _audit_stranger(self, method: str, refusal: Refusal, peer: str) -> None:
        self._audit.refused(None, refusal, method=method, peer=peer)


def refusing(refusal: Refusal, told: Callable[[str], None] = lambda _: None) -> Handler:
    """A handler that ends the call without reading what the caller sends: a streaming one fits any method.

    `told` is given the address of who called.
    """

    async def refuse(_: AsyncIterator[bytes], context: Context) -> None:
        told(context.peer())
        await abort(context, refusal)

    return grpc.stream_stream_rpc_method_handler(refuse)


def edge_server(max_message_bytes: int, handlers: Sequence[grpc.GenericRpcHandler]) -> grpc.aio.Server:
    """The server, not started. A message somewhat over the limit is read, so that its refusal can have a reason."""
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", max_message_bytes + max_message_bytes // 4),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", 0),
            # Clients ping long-lived connections; by default a server hangs up on those that do it often.
            ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
            ("grpc.keepalive_permit_without_calls", 1),
        ]
    )
    server.add_generic_rpc_handlers(tuple(handlers))
    return server


def open_port(server: grpc.aio.Server, settings: GrpcSettings) -> int:
    """Bind the port. Returns it; raises Unstartable where it can't be had."""
    address = join_address(settings.host, settings.port)
    try:
        if settings.tls_certificate_file is None or settings.tls_key_file is None:
            return server.add_insecure_port(address)
        pair = (settings.tls_key_file.read_bytes(), settings.tls_certificate_file.read_bytes())
        return server.add_secure_port(address, grpc.ssl_server_credentials([pair]))
    except RuntimeError:
        raise Unstartable(
            f"cannot listen on {address} (gRPC port): it is in use, or not ours; set another one"
        ) from None
