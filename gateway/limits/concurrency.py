"""A limit of calls at a time, counted in this process. Pure."""


class Slots:
    """At most `most` at a time."""

    __slots__ = ("_in_use", "_most")

    def __init__(self, most: int) -> None:
        self._most = most
        self._in_use = 0

    @property
    def in_use(self) -> int:
        """Slots taken and not released yet."""
        return self._in_use

    def change(self, most: int) -> None:
        """Limit otherwise from now on. Slots that are taken stay so."""
        self._most = most

    def take(self) -> bool:
        """Take a slot, to be released exactly once. False where none is free; nothing is taken then."""
        if self._in_use >= self._most:
            return False
        self._in_use += 1
        return True

    def soon(self) -> bool:
        """Whether one is free."""
        return self._in_use < self._most

    def want(self) -> None:
        """Nobody else counts, so there is nobody to ask."""

    def release(self) -> None:
        """Free a slot that was taken. Raises ValueError where none was."""
        if self._in_use == 0:
            raise ValueError("released more slots than were taken")
        self._in_use -= 1
