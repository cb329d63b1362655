"""A gRPC server in place of Triton, on loopback: it answers as a test says, in this process or in one to be killed."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import grpc
import grpc.aio

Context = grpc.aio.ServicerContext[bytes, bytes]
Respond = Callable[[bytes, Context], Awaitable[bytes]]
Methods = dict[str, Respond]

SERVICE = "inference.GRPCInferenceService"


@asynccontextmanager
async def serving(methods: Methods, port: int = 0) -> AsyncIterator[str]:
    """Answer these methods of the service. Gives `host:port`."""
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1), ("grpc.so_reuseport", 0)])
    handlers: dict[str, Any] = {name: grpc.unary_unary_rpc_method_handler(respond) for name, respond in methods.items()}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


_HOLDER = """\
import sys
from concurrent.futures import ThreadPoolExecutor
import grpc, threading

alone = threading.Lock()

def hold(request, context):
    with alone:
        print("began", flush=True)
    threading.Event().wait()

server = grpc.server(ThreadPoolExecutor(32))
handler = grpc.method_handlers_generic_handler(
    "inference.GRPCInferenceService", {"ModelInfer": grpc.unary_unary_rpc_method_handler(hold)}
)
server.add_generic_rpc_handlers((handler,))
print(server.add_insecure_port("127.0.0.1:0"), flush=True)
server.start()
sys.stdin.read()
"""


class Holder:
    """A server in a process of its own that takes calls and never answers."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        assert process.stdout is not None
        self.address = f"127.0.0.1:{int(process.stdout.readline())}"

    async def began(self, calls: int) -> None:
        """Return when so many calls are with it."""
        out = self.process.stdout
        assert out is not None
        for _ in range(calls):
            line = await asyncio.to_thread(out.readline)
            assert line == "began\n"


@contextmanager
def holding() -> Iterator[Holder]:
    process = subprocess.Popen([sys.executable, "-c", _HOLDER], stdin=-1, stdout=-1, text=True)
    with process:
        try:
            yield Holder(process)
        finally:
            process.kill()
