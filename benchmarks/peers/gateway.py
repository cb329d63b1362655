"""One more gateway on the log of a stack that runs: its router and its Triton, and settings of its own."""

import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from benchmarks.children import ChildFailedError, child, free_port, listening
from benchmarks.peers import Peer, headrace
from headrace.local import state
from headrace.runtime.lifecycle import NATIVE_ENVIRONMENT

_START_SECONDS = 90.0  # a hundred thousand keys are read first


@asynccontextmanager
async def start(build: Path, stack: Peer, *, name: str, key: str, settings: Mapping[str, str]) -> AsyncIterator[Peer]:
    """Run the gateway until the body is left; `settings` are named without their `HEADRACE_`, and `key` opens it.

    Raises:
        ChildFailedError: it did not start, or answers no call.
    """
    folder = build / headrace.STATE
    described = state.described(folder)
    assert described is not None  # noqa: S101  the stack runs
    grpc_port, admin_port, reply_port = free_port(), free_port(), free_port()
    own = {
        "GATEWAY__ID": f"benchmark-{name}",
        "GATEWAY__GRPC__HOST": "127.0.0.1",
        "GATEWAY__GRPC__PORT": str(grpc_port),
        "GATEWAY__ADMIN__HOST": "127.0.0.1",
        "GATEWAY__ADMIN__PORT": str(admin_port),
        "GATEWAY__REPLY__HOST": "127.0.0.1",
        "GATEWAY__REPLY__PORT": str(reply_port),
        "GATEWAY__DRAIN__NOTICE_SECONDS": "0",
        "KAFKA__BOOTSTRAP_SERVERS": described.endpoints.kafka,
        "REPLY_TRUST__SECRET_FILE": str(folder / state.REPLY_SECRET),
        **settings,
    }
    env = {f"HEADRACE_{setting}": value for setting, value in own.items()} | NATIVE_ENVIRONMENT
    log = build / "logs" / f"gateway-{name}.log"
    async with child([sys.executable, "-P", "-m", "gateway"], log=log, env=env) as process:
        await listening(process, grpc_port, log=log, within_seconds=_START_SECONDS)
        try:
            await headrace.answers(f"127.0.0.1:{grpc_port}", key=key)
        except ChildFailedError as failed:
            raise ChildFailedError(f"{failed}; see {log}") from None
        yield Peer(
            name=name,
            address=f"127.0.0.1:{grpc_port}",
            processes={**stack.processes, "gateway": process.pid},
            relay=("gateway",),
            metadata=(("authorization", f"Bearer {key}"),),
        )
