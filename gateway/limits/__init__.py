"""What a tenant may use: a rate of calls, and calls at a time; counted here alone, or shared by all gateways.

`gcra` and `concurrency` count in this process, `local` keeps them by name. `leases` counts across gateways by Redis or
Valkey without a round trip per call: a gateway leases a little ahead and spends it locally. Its state machines are
`balance` (what this gateway holds and asks for) and `breaker` (whether Redis answers), both pure; `script` is what runs
in Redis. Local and leased limits satisfy the same protocols, below. Imports nothing of the gateway; only `leases` does
I/O and knows redis-py. Start reading at `gcra`, then `leases`.
"""

from typing import Protocol

__all__ = ["Concurrency", "Counters", "Rate"]


class Rate(Protocol):
    """A limited rate: a bucket of `burst` that refills at `rate_per_second`. Nothing here waits."""

    def take(self, now: float, amount: float = 1.0) -> float:
        """Take from the bucket. Returns 0.0 when taken, else in how many seconds to try the same again."""
        ...

    def soon(self, now: float, amount: float) -> bool:
        """Whether it is there, or may be at the next settlement if it is wanted."""
        ...

    def want(self, amount: float) -> None:
        """Ask for so much at the next settlement."""
        ...

    def left(self, now: float) -> float:
        """How much is in the bucket; negative while it is in debt."""
        ...

    def give_back(self, amount: float) -> None:
        """Undo a take, or a part of one."""
        ...

    def reset_after(self, now: float) -> float:
        """Seconds until the bucket is full, if nothing more is taken."""
        ...


class Concurrency(Protocol):
    """A limited number of calls at a time. Nothing here waits."""

    def take(self) -> bool:
        """Take a slot, to be released exactly once. False where none is free; nothing is taken then."""
        ...

    def soon(self) -> bool:
        """Whether one is free, or may be at the next settlement if it is wanted."""
        ...

    def want(self) -> None:
        """Ask for one at the next settlement."""
        ...

    def release(self) -> None:
        """Free a slot that was taken."""
        ...

    @property
    def in_use(self) -> int:
        """Slots taken here and not released yet."""
        ...


class Counters(Protocol):
    """Where counters come from. One whose name is known is the same counter, and limited otherwise from now on."""

    def rate(self, name: str, rate_per_second: float, burst: float) -> Rate:
        """A rate."""
        ...

    def slots(self, name: str, most: int) -> Concurrency:
        """Calls at a time."""
        ...

    async def settled(self) -> None:
        """Return when what was wanted before is there, or is not to be had: after a fraction of a second at most."""
        ...
