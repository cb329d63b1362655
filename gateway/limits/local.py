"""Counters of this process alone, by name."""

from gateway.limits.concurrency import Slots
from gateway.limits.gcra import Gcra

_MOST = 100_000
"""Counters that are kept; beyond it those that are as good as new are forgotten."""


class LocalCounters:
    """Makes counters; one whose name is known is the same, and limited otherwise from now on."""

    def __init__(self) -> None:
        self._rates: dict[str, Gcra] = {}
        self._slots: dict[str, Slots] = {}
        self._bound = _MOST

    def rate(self, name: str, rate_per_second: float, burst: float) -> Gcra:
        """The rate of a name."""
        known = self._rates.get(name)
        if known is None:
            known = self._rates[name] = Gcra(rate_per_second, burst)
        else:
            known.change(rate_per_second, burst)
        return known

    def slots(self, name: str, most: int) -> Slots:
        """The calls at a time of a name."""
        known = self._slots.get(name)
        if known is None:
            known = self._slots[name] = Slots(most)
        else:
            known.change(most)
        return known

    async def settled(self) -> None:
        """Nothing is ever to be settled."""

    def forget(self, now: float) -> bool:
        """Forget, where there are too many, what a new counter would not differ from: full rates and unused slots.

        Returns whether it did: whoever holds a counter is to ask for it anew then.
        """
        if len(self._rates) + len(self._slots) <= self._bound:
            return False
        self._rates = {name: rate for name, rate in self._rates.items() if rate.reset_after(now) > 0}
        self._slots = {name: slots for name, slots in self._slots.items() if slots.in_use}
        self._bound = max(_MOST, 2 * (len(self._rates) + len(self._slots)))
        return True
