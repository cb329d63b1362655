"""Slowing who fails again and again to say who it is: its refusals come late, and say the same as before.

Good credentials from the same place are never slowed. How late is pure, with the clock as an argument; only `Slowed`
waits. A stream whose refusal is kept back is not read, and gRPC takes up to some 32 MiB of it all the same: few may be
kept back at a time, and beyond them a refusal goes out at once.
"""

import asyncio
from collections import OrderedDict

from gateway.limits.gcra import Gcra
from gateway.peers import network_of

_MOST_NETWORKS = 10_000
_MOST_SLOWED = 32


class Failures:
    """Failed identifications of each network of the last seconds, in bounded memory. The clock is in seconds."""

    def __init__(self, *, burst: float = 10.0, per_second: float = 1.0, delay_seconds: float = 1.0) -> None:
        """So many in a row go unpunished, as many more each second; every other one is worth a delay."""
        self._burst = burst
        self._per_second = per_second
        self._delay_seconds = delay_seconds
        self._networks: OrderedDict[str, Gcra] = OrderedDict()

    def __len__(self) -> int:
        return len(self._networks)

    def delay(self, peer: str, now: float) -> float:
        """Count a failure of a peer. Returns for how many seconds to keep its refusal back."""
        network = network_of(peer)
        known = self._networks.get(network)
        if known is None:
            known = self._networks[network] = Gcra(self._per_second, self._burst)
            if len(self._networks) > _MOST_NETWORKS:
                self._networks.popitem(last=False)
        self._networks.move_to_end(network)
        return self._delay_seconds if known.take(now) else 0.0


class Slowed:
    """Keeps refusals back, until their time has come or `release`."""

    def __init__(self, failures: Failures) -> None:
        self._failures = failures
        self._released = asyncio.Event()
        self.waiting = 0
        """Refusals that are kept back now."""

    def release(self) -> None:
        """Let all go, and keep none back from here on."""
        self._released.set()

    async def failed(self, peer: str) -> None:
        """A peer failed to say who it is: return when it is to be told so."""
        seconds = self._failures.delay(peer, asyncio.get_running_loop().time())
        if not seconds or self.waiting >= _MOST_SLOWED:
            return
        self.waiting += 1
        try:
            async with asyncio.timeout(seconds):
                await self._released.wait()
        except TimeoutError:
            return
        finally:
            self.waiting -= 1
