"""When calls would be run, as the gateways' own gauges tell it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from headrace.local.routed import until_routed
from headrace.runtime.admin_http import Readiness, admin_http

PATIENCE_SECONDS = 30.0
NOTHING_YET = ""
ROUTED = "headrace_gateway_routers_live 2.0\nheadrace_gateway_models_unowned 0.0\n"


class Gateway:
    """What a gateway tells of itself, and how often it was asked."""

    def __init__(self, tells: str) -> None:
        self.tells = tells
        self._asked = asyncio.Semaphore(0)

    def metrics(self) -> list[bytes]:
        self._asked.release()
        return [self.tells.encode()]

    async def asked(self, times: int) -> None:
        async with asyncio.timeout(PATIENCE_SECONDS):
            for _ in range(times):
                await self._asked.acquire()


@asynccontextmanager
async def waiting_for(*gateways: Gateway) -> AsyncIterator["asyncio.Task[None]"]:
    """`until_routed` at work on these gateways, for two routers."""
    async with AsyncExitStack() as owned:
        ready = Readiness(ready=True, text="ready")
        ports = [
            await owned.enter_async_context(
                admin_http("127.0.0.1", 0, readiness=lambda: ready, metrics=gateway.metrics)
            )
            for gateway in gateways
        ]
        addresses = [f"127.0.0.1:{port}" for port in ports]
        async with asyncio.timeout(PATIENCE_SECONDS), asyncio.TaskGroup() as group:
            yield group.create_task(until_routed(addresses, routers=2))


@pytest.mark.parametrize(
    "tells",
    [
        NOTHING_YET,
        "headrace_gateway_routers_live 1.0\nheadrace_gateway_models_unowned 0.0\n",
        "headrace_gateway_routers_live 2.0\nheadrace_gateway_models_unowned 1.0\n",
        "headrace_gateway_routers_live 2.0\n",
    ],
    ids=["nothing told", "a router is missing", "a ready model is unowned", "models are not told of"],
)
async def test_a_gateway_that_can_not_route_every_call_is_asked_again(tells: str) -> None:
    gateway = Gateway(tells)
    async with waiting_for(gateway) as routed:
        await gateway.asked(3)
        assert not routed.done()

        gateway.tells = ROUTED
        await routed


async def test_every_gateway_must_know() -> None:
    first, second = Gateway(ROUTED), Gateway(NOTHING_YET)
    async with waiting_for(first, second) as routed:
        await second.asked(2)
        assert not routed.done()

        second.tells = ROUTED
        await routed
