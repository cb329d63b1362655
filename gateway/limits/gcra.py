"""A rate limit as one number: the generic cell rate algorithm. Pure; the clock is an argument (seconds)."""

import math

_SLACK_ULPS = 4  # what `now + wait` may lose to rounding; without it, waiting the told time could be told to wait again


class Gcra:
    """A bucket of `burst` that starts full and refills at `rate_per_second`. Both must be positive.

    In any window of t seconds at most `rate * t + max(burst, largest amount)` is taken, net of what is given back. An
    amount above the burst is taken when the bucket is full, and puts it into debt that later takes wait for: one large
    request is possible, and costs what it costs. A refused take changes nothing. A clock that goes back makes waits
    longer and never admits more.
    """

    __slots__ = ("_burst", "_full_at", "_rate", "_span")

    def __init__(self, rate_per_second: float, burst: float) -> None:
        self._full_at = -math.inf
        self.change(rate_per_second, burst)

    @property
    def rate_per_second(self) -> float:
        """How fast it refills."""
        return self._rate

    @property
    def burst(self) -> float:
        """What it holds when full."""
        return self._burst

    def change(self, rate_per_second: float, burst: float) -> None:
        """Limit otherwise from now on. The time until it is full again stays what it was."""
        if not (0 < rate_per_second < math.inf and 0 < burst < math.inf):
            raise ValueError(f"not a limit: {rate_per_second} per second, burst {burst}")
        self._rate = rate_per_second
        self._burst = burst
        self._span = burst / rate_per_second

    def take(self, now: float, amount: float = 1.0) -> float:
        """Take `amount`. Returns 0.0 when taken, else the seconds after which the same take succeeds if it is alone."""
        full_at = self._full_at
        if full_at < now:  # noqa: PLR1730  every call passes here several times, and a call of `max` is a third of it
            full_at = now
        cost = amount / self._rate
        wait = full_at - now + (cost if cost < self._span else self._span) - self._span  # noqa: FURB136  as above
        if wait > 0 and wait > _SLACK_ULPS * math.ulp(abs(full_at) + abs(now) + self._span):
            return wait
        self._full_at = full_at + cost
        return 0.0

    def soon(self, now: float, amount: float) -> bool:
        """Whether it is there."""
        return self.left(now) >= min(amount, self._burst)

    def want(self, amount: float) -> None:
        """Nobody else counts, so there is nobody to ask."""

    def left(self, now: float) -> float:
        """What could be taken now; negative while in debt."""
        full_in = self._full_at - now
        return self._burst - full_in * self._rate if full_in > 0 else self._burst

    def give_back(self, amount: float) -> None:
        """Undo a take, or a part of one. It never holds more than its burst."""
        self._full_at -= amount / self._rate

    def reset_after(self, now: float) -> float:
        """Seconds until it is full, if nothing more is taken."""
        return max(0.0, self._full_at - now)
