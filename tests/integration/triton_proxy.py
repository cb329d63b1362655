"""A gRPC server between router and Triton that passes bytes on, remembers them, and can answer in Triton's place."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc

MODEL_INFER = "/inference.GRPCInferenceService/ModelInfer"
WORKERS = 16
SECONDS = 30.0
UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1), ("grpc.so_reuseport", 0)]


@dataclass(frozen=True)
class Exchange:
    """One ModelInfer that came by."""

    request: bytes
    metadata: tuple[tuple[str, str | bytes], ...]
    seconds: float | None
    """How long the caller was willing to wait."""
    response: bytes


@dataclass
class TritonProxy:
    """What came by, and what to do with what comes."""

    address: str
    exchanges: list[Exchange] = field(default_factory=list)
    answer: Callable[[bytes], bytes] | None = None
    """Answers in Triton's place while it is set; may block."""
    hung_up: threading.Event = field(default_factory=threading.Event)
    """Set when a caller of ModelInfer was gone before its answer."""


class _Passing(grpc.GenericRpcHandler):
    def __init__(self, proxy: TritonProxy, channel: grpc.Channel) -> None:
        self._proxy = proxy
        self._channel = channel

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        method = str(handler_call_details.method)

        def handle(request: bytes, context: grpc.ServicerContext) -> bytes:
            return self._infer(request, context) if method == MODEL_INFER else self._pass(method, request, context)

        return grpc.unary_unary_rpc_method_handler(handle)

    def _infer(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        metadata = tuple((str(key), value) for key, value in context.invocation_metadata() or ())
        seconds = context.time_remaining()
        answered = threading.Event()
        context.add_callback(lambda: None if answered.is_set() else self._proxy.hung_up.set())
        own = self._proxy.answer
        response = self._pass(MODEL_INFER, request, context) if own is None else own(request)
        self._proxy.exchanges.append(Exchange(request, metadata, seconds, response))
        answered.set()
        return response

    def _pass(self, method: str, request: bytes, context: grpc.ServicerContext) -> bytes:
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(method)
        done = call.future(request, timeout=SECONDS)
        if done.exception() is not None:
            context.abort(done.code(), done.details() or "")
        return done.result()


@contextmanager
def triton_proxy(triton: str, *, port: int = 0) -> Iterator[TritonProxy]:
    """A proxy of the Triton at an address; it listens when this is entered, and is gone after."""
    server = grpc.server(ThreadPoolExecutor(WORKERS), options=UNLIMITED)
    proxy = TritonProxy(f"127.0.0.1:{server.add_insecure_port(f'127.0.0.1:{port}')}")
    with grpc.insecure_channel(triton, options=UNLIMITED) as channel:
        server.add_generic_rpc_handlers((_Passing(proxy, channel),))
        server.start()
        try:
            yield proxy
        finally:
            server.stop(None).wait()
