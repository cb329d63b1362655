"""Whether Redis answers, and when to try it again. Pure; the clock is an argument (seconds, monotonic)."""

import math

FIRST_RETRY_SECONDS = 0.1
LAST_RETRY_SECONDS = 2.0


class Breaker:
    """Opens at the first failure, closes at the first answer; tries are spaced ever wider in between."""

    def __init__(self) -> None:
        self.open = False
        """Whether Redis counts as away."""
        self._delay = 0.0
        self._retry_at = -math.inf

    def due(self, now: float) -> bool:
        """Whether to ask Redis now."""
        return not self.open or now >= self._retry_at

    def failed(self, now: float) -> bool:
        """It did not answer. Returns whether this opened the breaker."""
        opened = not self.open
        self.open = True
        self._delay = FIRST_RETRY_SECONDS if opened else min(LAST_RETRY_SECONDS, self._delay * 2)
        self._retry_at = now + self._delay
        return opened

    def answered(self) -> bool:
        """It answered. Returns whether this closed the breaker."""
        closed = self.open
        self.open = False
        return closed
