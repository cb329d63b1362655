"""The plain HTTP port beside every process: `/livez`, `/readyz` and `/metrics`, for probes and scrapers only."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import cast

from aiohttp import web

from headrace.runtime.lifecycle import Unstartable
from headrace.runtime.telemetry import CONTENT_TYPE

_SHUTDOWN_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether the process should get work, and why not."""

    ready: bool
    text: str


@asynccontextmanager
async def admin_http(
    host: str, port: int, *, readiness: Callable[[], Readiness], metrics: Callable[[], Iterable[bytes]]
) -> AsyncIterator[int]:
    """Serve until left; gives the port that it listens on. Raises Unstartable where the port can't be had.

    `/livez` tells only that the loop turns, so that no outage elsewhere makes anyone restart this process. `/readyz`
    answers 200 or 503 with the text of `readiness`. Both callables run on the loop and must not wait; between two parts
    of `metrics` the loop goes on.
    """

    async def livez(_: web.Request) -> web.Response:
        return web.Response(text="alive\n")

    async def readyz(_: web.Request) -> web.Response:
        now = readiness()
        return web.Response(status=200 if now.ready else 503, text=f"{now.text}\n")

    async def scraped(_: web.Request) -> web.Response:
        parts = []
        for part in metrics():
            parts.append(part)
            await asyncio.sleep(0)
        return web.Response(body=b"".join(parts), headers={"Content-Type": CONTENT_TYPE})

    app = web.Application()
    app.add_routes([web.get("/livez", livez), web.get("/readyz", readyz), web.get("/metrics", scraped)])
    runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=_SHUTDOWN_SECONDS)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as exc:
            raise Unstartable(
                f"cannot listen on {host}:{port} (admin port): {exc.strerror}; set another port"
            ) from None
        yield cast("tuple[str, int]", runner.addresses[0])[1]
    finally:
        await runner.cleanup()
