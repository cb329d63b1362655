"""Whether a component answers: asked over the network, as its users would."""

import asyncio
import contextlib
from dataclasses import dataclass
from typing import Literal

from headrace.local import broker

HTTP_OK = 200
ANSWER_SECONDS = 2.0


@dataclass(frozen=True, kw_only=True)
class Probe:
    """One question to one port."""

    kind: Literal["http", "kafka", "tcp"]
    host: str
    port: int
    path: str = ""
    """For `http`: healthy is who answers it with 200."""

    async def healthy(self) -> bool:
        """Ask once; no answer within two seconds is a no. Raises nothing but CancelledError."""
        if self.kind == "kafka":
            return await broker.answers(self.host, self.port, seconds=ANSWER_SECONDS)
        if self.kind == "tcp":
            return await _listens(self.host, self.port)
        return await _http_status(self.host, self.port, self.path) == HTTP_OK


async def _listens(host: str, port: int) -> bool:
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            _, writer = await asyncio.open_connection(host, port)
    except (OSError, TimeoutError, UnicodeError):  # the last: what can't be a host's name
        return False
    writer.close()
    return True


async def _http_status(host: str, port: int, path: str) -> int | None:
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
                line = await reader.readline()
            finally:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
        return int(line.split()[1])
    except (OSError, TimeoutError, ValueError, IndexError):
        return None


def reachable_host(host: str) -> str:
    """The address at which a server that listens on `host` is reached from this machine."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)  # noqa: S104  compared, not bound
