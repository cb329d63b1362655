"""Triton itself, called directly: what every other peer's figures include and stand above."""

import importlib.metadata
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from benchmarks import copy_model
from benchmarks.children import child, free_port, listening
from benchmarks.peers import Peer
from headrace.local import triton


def attached(*, address: str, pid: int) -> Peer:
    """Describe a Triton that somebody else started and stops; it must serve the model `copy`."""
    return Peer(name="Triton directly", address=address, processes={"triton": pid}, relay=())


@asynccontextmanager
async def start(build: Path) -> AsyncIterator[Peer]:
    """Run Triton with the model `copy` until the body is left."""
    repository = copy_model.build(build / "models")
    port = free_port()
    log = build / "logs" / "triton.log"
    program = triton.program(
        name="triton",
        state_dir=build / "triton",
        repository=repository,
        host="127.0.0.1",
        grpc_port=port,
        http_port=free_port(),
        metrics_port=free_port(),
    )
    async with child(program.argv, log=log, env=program.env) as process:
        await listening(process, port, log=log, within_seconds=60)
        yield Peer(
            name="Triton directly",
            address=f"127.0.0.1:{port}",
            processes={"triton": process.pid},
            relay=(),
            about={"nvidia-pytriton": importlib.metadata.version("nvidia-pytriton")},
        )
