"""A receiver of traces in a process of its own, which counts what comes and forgets it.

python -m benchmarks.otlp_receiver PORT
"""

import asyncio
import json
import sys
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from benchmarks.children import child, free_port, listening

_EXPORT = ("opentelemetry.proto.collector.trace.v1.TraceService", "Export")
_COUNT = ("headrace.benchmarks", "Count")
_START_SECONDS = 20.0
Context = grpc.aio.ServicerContext[bytes, bytes]


@asynccontextmanager
async def start(build: Path) -> AsyncIterator[int]:
    """Run one on a free port, which is given, until the body is left."""
    port, log = free_port(), build / "logs" / "otlp-receiver.log"
    argv = [sys.executable, "-P", "-m", "benchmarks.otlp_receiver", str(port)]
    async with child(argv, log=log, cwd=Path(__file__).parent.parent, env={"PYTHONPATH": "."}) as process:
        await listening(process, port, log=log, within_seconds=_START_SECONDS)
        yield port


async def counted(port: int) -> Mapping[str, int]:
    """Ask how many spans came so far, by the instance that sent them."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        count: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/" + "/".join(_COUNT))
        told: dict[str, int] = json.loads(await count(b""))
        return told


async def _serve(port: int) -> None:
    spans: Counter[str] = Counter()

    async def export(request: bytes, _: Context) -> bytes:
        for each in ExportTraceServiceRequest.FromString(request).resource_spans:
            named = {one.key: one.value.string_value for one in each.resource.attributes}
            spans[named.get("service.instance.id", "")] += sum(len(scope.spans) for scope in each.scope_spans)
        return ExportTraceServiceResponse().SerializeToString()

    async def count(_: bytes, __: Context) -> bytes:
        return json.dumps(spans).encode()

    server = grpc.aio.server()
    for (service, method), respond in ((_EXPORT, export), (_COUNT, count)):
        handler: Any = grpc.unary_unary_rpc_method_handler(respond)  # generic for type checkers only
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1])))
