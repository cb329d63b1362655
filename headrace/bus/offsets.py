"""How far a partition's records are done: the offset up to which all are, whatever the order in which they end."""

from collections import deque


class Watermark:
    """One partition's contiguous watermark. Offsets are fetched in ascending order and done in any."""

    def __init__(self) -> None:
        self._open: deque[int] = deque()
        self._done: set[int] = set()
        self._next: int | None = None
        self._committed: int | None = None

    def fetched(self, offset: int) -> None:
        """A record was fetched and is to be done."""
        self._open.append(offset)

    def done(self, offset: int) -> None:
        """A fetched record is done; each is said once."""
        self._done.add(offset)
        while self._open and self._open[0] in self._done:
            self._next = self._open.popleft() + 1
            self._done.discard(self._next - 1)

    @property
    def position(self) -> int | None:
        """The offset up to which all are done; None where none is yet."""
        return self._next

    @property
    def read_to(self) -> int | None:
        """The offset after the last one that was fetched; None where none was yet."""
        return self._open[-1] + 1 if self._open else self._next

    def to_commit(self) -> int | None:
        """The offset to commit, where it moved since it was last asked for; None where it did not."""
        if self._next == self._committed:
            return None
        self._committed = self._next
        return self._next
