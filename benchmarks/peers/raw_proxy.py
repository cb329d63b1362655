"""A minimal `grpc.aio` proxy in front of Triton: the yardstick for anything written in Python."""

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from benchmarks.children import child, free_port, listening
from benchmarks.peers import Peer

# Large blocks come from the heap and stay there, instead of being mapped, zeroed and unmapped for each message.
_KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "1073741824", "MALLOC_TRIM_THRESHOLD_": "4294967296"}


@asynccontextmanager
async def start(build: Path, triton: Peer, *, keep_memory: bool = False) -> AsyncIterator[Peer]:
    """Run the proxy until the body is left; with `keep_memory` under the allocator settings that Headrace runs with."""
    port = free_port()
    name = "raw proxy, tuned malloc" if keep_memory else "raw proxy"
    log = build / "logs" / f"{name.replace(', ', '_').replace(' ', '_')}.log"
    argv = [sys.executable, "-m", "benchmarks.raw_proxy", str(port), triton.address]
    async with child(argv, log=log, env=_KEEP_MEMORY if keep_memory else None) as process:
        await listening(process, port, log=log, within_seconds=20)
        yield Peer(
            name=name,
            address=f"127.0.0.1:{port}",
            processes={"raw proxy": process.pid, **triton.processes},
            relay=("raw proxy",),
        )
