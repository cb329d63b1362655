"""Whether calls would be run: every part may be up, and the gateways not know of it yet."""

import asyncio
from collections.abc import Sequence

import aiohttp

_ASK_SECONDS = 2.0
_PACE_SECONDS = 0.05


async def until_routed(admin_addresses: Sequence[str], routers: int) -> None:
    """Return when every gateway knows this many live routers, and no ready model waits for one to take its calls."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_ASK_SECONDS)) as session:
        for address in admin_addresses:
            while not await _routed(session, address, routers):  # noqa: ASYNC110  over HTTP there is no event to await
                await asyncio.sleep(_PACE_SECONDS)


async def _routed(session: aiohttp.ClientSession, address: str, routers: int) -> bool:
    try:
        async with session.get(f"http://{address}/metrics") as response:
            text = await response.text()
    except (aiohttp.ClientError, TimeoutError):
        return False
    gauges = dict(line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("headrace_gateway_"))
    live = float(gauges.get("headrace_gateway_routers_live", 0))
    unowned = float(gauges.get("headrace_gateway_models_unowned", 1))
    return live >= routers and unowned == 0
