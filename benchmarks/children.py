"""Child processes with an owner: started, awaited until they listen, and stopped."""

import asyncio
import os
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from headrace.local import leash
from headrace.local.ports import FreePorts

_STOP_SECONDS = 15.0  # a stack of several processes drains within this
_LOG_TAIL_LINES = 15


class ChildFailedError(Exception):
    """A child process did not start, or ended while it was needed."""


_ports = FreePorts("127.0.0.1")


def free_port() -> int:
    """Take a port of the loopback interface that nothing listens on and that this process has not taken yet."""
    return _ports.take()


@asynccontextmanager
async def child(
    argv: Sequence[str],
    *,
    log: Path,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    pipes: bool = False,
) -> AsyncIterator[Process]:
    """Run a command until the body is left: SIGTERM first, SIGKILL after 15 s.

    Its output goes to `log`; with `pipes` its standard input and output are the caller's instead. It never outlives
    this process.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as sink:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", leash.__file__, str(os.getpid())),
            *argv,
            stdin=PIPE if pipes else DEVNULL,
            stdout=PIPE if pipes else sink,
            stderr=sink,
            env={**os.environ, **(env or {})},
            cwd=cwd,
            start_new_session=True,  # Ctrl-C is ours to hand on, once and in order
            limit=16 * 1024 * 1024,
        )
    try:
        yield process
    finally:
        await asyncio.shield(_stop(process))


async def _stop(process: Process) -> None:
    if process.returncode is not None:
        return
    with suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(_STOP_SECONDS):
            await process.wait()
    except TimeoutError:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def listening(process: Process, port: int, *, log: Path, within_seconds: float) -> None:
    """Wait until somebody accepts connections on a port of the loopback interface.

    Raises:
        ChildFailedError: the process ended first, or the time was over; with the end of its log.
    """
    try:
        async with asyncio.timeout(within_seconds):
            while process.returncode is None:
                with suppress(OSError):
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                    writer.close()
                    return
                await asyncio.sleep(0.05)  # nothing announces an open port: asking is the only way
    except TimeoutError:
        late = f"nothing listens on port {port} after {within_seconds:.0f} s"
        raise ChildFailedError(f"{late}; {log} ends:\n{_tail(log)}") from None
    raise ChildFailedError(f"the process ended with {process.returncode}; {log} ends:\n{_tail(log)}")


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-_LOG_TAIL_LINES:])
