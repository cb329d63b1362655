"""The calls that nobody waits for any more, each until its deadline."""

MAX_CANCELLATIONS = 100_000
"""Beyond it the oldest is forgotten: its call may run for nobody, no more than that."""


class Cancellations:
    """Attempts by call id; bounded."""

    def __init__(self) -> None:
        self._attempts: dict[bytes, tuple[int, int]] = {}

    def add(self, call_id: bytes, attempt: int, expire_time_unix_micros: int, now_micros: int) -> None:
        """This attempt, and every earlier one, is not to run."""
        if len(self._attempts) >= MAX_CANCELLATIONS:
            self._forget(now_micros)
        known = self._attempts.get(call_id, (0, 0))[0]
        self._attempts[call_id] = (max(attempt, known), expire_time_unix_micros)

    def cover(self, call_id: bytes, attempt: int) -> bool:
        """Whether this attempt is cancelled."""
        cancelled = self._attempts.get(call_id)
        return cancelled is not None and attempt <= cancelled[0]

    def _forget(self, now_micros: int) -> None:
        for call_id in [key for key, (_, expires) in self._attempts.items() if expires < now_micros]:
            del self._attempts[call_id]
        # Well below the bound, so that the next forgetting is far off.
        while len(self._attempts) > MAX_CANCELLATIONS * 9 // 10:
            del self._attempts[next(iter(self._attempts))]
