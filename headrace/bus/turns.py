"""Who may be under way to the broker, and who waits: pure bookkeeping for the request log's publisher."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from headrace.bus.protocols import TopicPartition

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class Waiting(Generic[T]):
    """Something that waits for its turn."""

    key: bytes
    """Nothing else that waits has the same."""
    size: int
    since: float
    item: T


class Turns(Generic[T]):
    """So many bytes at a time, a share of them for one place; what is more waits, in order within its place.

    Places are served in turn, and one that does not move holds up others by no more than its share. What is small is
    not counted, and goes at once wherever nothing waits for the same place.
    """

    def __init__(self, *, most_bytes: int, share_bytes: int, small_bytes: int) -> None:
        """What is larger than a bound goes alone."""
        self._most_bytes = most_bytes
        self._share_bytes = share_bytes
        self._small_bytes = small_bytes
        self._under_way: dict[TopicPartition, int] = {}
        self._waiting: dict[TopicPartition, deque[Waiting[T]]] = {}  # the place whose turn it is comes first
        self._places: dict[bytes, TopicPartition] = {}
        self.under_way_bytes = 0

    def __len__(self) -> int:
        """How many wait."""
        return len(self._places)

    def enter(self, place: TopicPartition, size: int) -> bool:
        """Whether something may go at once; it is under way then. Otherwise it has to `wait`."""
        if size <= self._small_bytes:
            return place not in self._waiting
        if self._waiting or not self._fits(size) or self._has_its_share(place, size):
            return False
        self._go(place, size)
        return True

    def wait(self, place: TopicPartition, waiting: Waiting[T]) -> None:
        """Keep something until its turn."""
        self._waiting.setdefault(place, deque()).append(waiting)
        self._places[waiting.key] = place

    def left(self, place: TopicPartition, size: int) -> None:
        """Something that was under way is so no more, whatever became of it."""
        if size <= self._small_bytes:
            return
        self.under_way_bytes -= size
        remaining = self._under_way[place] - size
        if remaining:
            self._under_way[place] = remaining
        else:
            del self._under_way[place]

    def withdraw(self, key: bytes) -> bool:
        """Forget something. Returns whether it waited."""
        place = self._places.pop(key, None)
        if place is None:
            return False
        queue = self._waiting[place]
        queue.remove(next(waiting for waiting in queue if waiting.key == key))
        if not queue:
            del self._waiting[place]
        return True

    def due(self) -> Iterator[tuple[TopicPartition, Waiting[T]]]:
        """Take out what may go now, place by place; each is under way from then on."""
        for place in list(self._waiting):
            queue = self._waiting[place]
            while queue and not self._has_its_share(place, queue[0].size):
                if not self._fits(queue[0].size):
                    return  # it is this place's turn, also for what needs much room
                waiting = self._taken(queue)
                self._go(place, waiting.size)
                yield place, waiting
            del self._waiting[place]
            if queue:
                self._waiting[place] = queue

    def overdue(self, place: TopicPartition, before: float) -> list[Waiting[T]]:
        """Take out what has waited for a place since a moment or longer, oldest first."""
        queue = self._waiting.get(place)
        found: list[Waiting[T]] = []
        if queue is None:
            return found
        while queue and queue[0].since <= before:
            found.append(self._taken(queue))
        if not queue:
            del self._waiting[place]
        return found

    def _taken(self, queue: deque[Waiting[T]]) -> Waiting[T]:
        waiting = queue.popleft()
        del self._places[waiting.key]
        return waiting

    def _fits(self, size: int) -> bool:
        return size <= self._small_bytes or not self.under_way_bytes or self.under_way_bytes + size <= self._most_bytes

    def _has_its_share(self, place: TopicPartition, size: int) -> bool:
        own = self._under_way.get(place, 0)
        return size > self._small_bytes and own > 0 and own + size > self._share_bytes

    def _go(self, place: TopicPartition, size: int) -> None:
        if size > self._small_bytes:
            self.under_way_bytes += size
            self._under_way[place] = self._under_way.get(place, 0) + size
