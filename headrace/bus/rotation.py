"""Whose turn it is to be read, among partitions that are paused again before they are empty."""

from collections.abc import Iterable, Mapping

from headrace.bus.protocols import TopicPartition


class Rotation:
    """Remembers in which order partitions were read."""

    def __init__(self) -> None:
        self._read: dict[TopicPartition, int] = {}
        self._count = 0

    def read(self, places: Iterable[TopicPartition]) -> None:
        """Records of these were handed over, in this order."""
        for place in places:
            self._count += 1
            self._read[place] = self._count

    def keep(self, places: Iterable[TopicPartition]) -> None:
        """Forget all others."""
        self._read = {place: self._read[place] for place in places if place in self._read}

    def sort(self, places: Iterable[TopicPartition]) -> list[TopicPartition]:
        """The one that was read longest ago, or never, first."""
        return sorted(places, key=lambda place: (self._read.get(place, 0), place))

    def first(self, behind: Mapping[TopicPartition, int], room: int) -> list[TopicPartition]:
        """As many as fill the room, by what is known to wait in each; all of them where that does not fill it."""
        chosen: list[TopicPartition] = []
        records = 0
        for place in self.sort(behind):
            if records >= room:
                break
            chosen.append(place)
            records += behind[place]
        return chosen
