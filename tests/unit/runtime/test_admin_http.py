"""The port for probes and scrapers."""

import socket

import aiohttp
import pytest

from headrace.runtime.admin_http import Readiness, admin_http
from headrace.runtime.lifecycle import Unstartable


async def test_probes_and_metrics() -> None:
    now = Readiness(ready=False, text="the broker does not answer yet")

    async with (
        admin_http("127.0.0.1", 0, readiness=lambda: now, metrics=lambda: [b"up ", b"1\n"]) as port,
        aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session,
    ):
        async with session.get("/livez") as alive:
            assert alive.status == 200
        async with session.get("/readyz") as unready:
            assert (unready.status, await unready.text()) == (503, "the broker does not answer yet\n")
        now = Readiness(ready=True, text="ready")
        async with session.get("/readyz") as ready:
            assert (ready.status, await ready.text()) == (200, "ready\n")
        async with session.get("/metrics") as scraped:
            assert (scraped.content_type, await scraped.text()) == ("text/plain", "up 1\n")
        async with session.get("/nothing") as nothing:
            assert nothing.status == 404


async def test_a_busy_port_says_what_to_do() -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        server = admin_http("127.0.0.1", port, readiness=lambda: Readiness(ready=True, text=""), metrics=list)

        with pytest.raises(Unstartable, match=rf"cannot listen on 127\.0\.0\.1:{port}.*in use.*another port"):
            await server.__aenter__()
