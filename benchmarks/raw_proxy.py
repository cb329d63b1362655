"""The leanest honest gRPC proxy that Python has: `python -m benchmarks.raw_proxy LISTEN_PORT TRITON_ADDRESS`.

One `grpc.aio` server, one `grpc.aio` channel, uvloop, bytes in and the same bytes out, whatever the method is called.
No deadline, no metadata, no status mapping, no metrics: less than any gateway may do, and so the yardstick for one.
"""

from __future__ import annotations  # grpc has generics for the type checker only

import signal
import sys
from asyncio import Event, get_running_loop

import grpc.aio
import uvloop

_UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


class _PassOn(grpc.GenericRpcHandler):
    """Hands every unary call to the same method of another server."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel
        self._handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {}

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
        """Find or make the handler of a method: made once, so that a call costs a look-up."""
        handler = self._handlers.get(details.method)
        if handler is None:
            handler = self._handlers[details.method] = self._make(details.method)
        return handler

    def _make(self, method: str) -> grpc.RpcMethodHandler[bytes, bytes]:
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(method)

        async def pass_on(request: bytes, _: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
            return await call(request)

        return grpc.unary_unary_rpc_method_handler(pass_on)


async def _serve(port: int, target: str) -> None:
    stop = Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        get_running_loop().add_signal_handler(number, stop.set)
    async with grpc.aio.insecure_channel(target, options=_UNLIMITED) as channel:
        server = grpc.aio.server(handlers=[_PassOn(channel)], options=_UNLIMITED)
        server.add_insecure_port(f"127.0.0.1:{port}")
        await server.start()
        await stop.wait()
        await server.stop(grace=1)


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1]), sys.argv[2]))
