"""The announcements topic in memory."""

import asyncio
from collections.abc import AsyncIterator

from headrace.bus.protocols import LogUnavailableError, RecordTooLargeError
from headrace.bus.topics import LARGEST_ANNOUNCEMENT_BYTES
from headrace.bus.v1.announcement_pb2 import Announcement

Said = tuple[str, Announcement | None]


class MemoryAnnouncements:
    """See AnnouncementLog. Compacted at once: what was said before the newest word on a key is never read."""

    def __init__(self) -> None:
        self.available = True
        """While False, announcing fails and readers hear nothing new."""
        self.attempts = 0
        """How often somebody tried to announce something."""
        self._newest: dict[str, bytes | None] = {}
        self._position = 0
        self._places: dict[str, int] = {}
        self._grown = asyncio.Event()

    async def announce(self, key: str, announcement: Announcement | None) -> None:
        """See AnnouncementLog.announce."""
        self.attempts += 1
        await asyncio.sleep(0)
        if not self.available:
            raise LogUnavailableError("not announced: told to fail")
        value = None if announcement is None else announcement.SerializeToString()
        if len(value or b"") > LARGEST_ANNOUNCEMENT_BYTES:
            raise RecordTooLargeError("the announcement is larger than the log takes")
        self._position += 1
        self._places.pop(key, None)  # so that the order of keys is that of their newest words
        self._places[key] = self._position
        self._newest[key] = value
        self._wake()

    async def read(self) -> AsyncIterator[Said | None]:
        """See AnnouncementLog.read."""
        position, end = 0, self._position
        caught_up = False
        while True:
            grown = self._grown
            due = [(key, self._newest[key]) for key, place in self._places.items() if place > position]
            position = self._position
            for key, value in due:
                yield key, None if value is None else Announcement.FromString(value)
            if not caught_up and position >= end:
                caught_up = True
                yield None
            await grown.wait()

    def newest(self, key: str) -> Announcement | None:
        """What holds under a key now."""
        value = self._newest.get(key)
        return None if value is None else Announcement.FromString(value)

    def _wake(self) -> None:
        grown, self._grown = self._grown, asyncio.Event()
        grown.set()
