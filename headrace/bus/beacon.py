"""Says what a process has to announce: again where it changed, and its heartbeat every second."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from headrace.bus.protocols import AnnouncementLog, LogUnavailableError, RecordTooLargeError
from headrace.bus.v1.announcement_pb2 import Announcement

HEARTBEAT_SECONDS = 1.0
_log = logging.getLogger(__name__)


class Beacon:
    """Announces on behalf of one process.

    `heartbeat` gives the announcement of this second; everything else is `put` when it is known, and said as soon as it
    differs from what was said last. Nothing is lost while the broker is away: the newest word is said when it is back.
    Only what is too large for the log is given up, and its key keeps its last word.
    """

    def __init__(
        self,
        log: AnnouncementLog,
        *,
        key: str,
        heartbeat: Callable[[int], Announcement],
        every_seconds: float = HEARTBEAT_SECONDS,
    ) -> None:
        self._log = log
        self._key = key
        self._heartbeat = heartbeat
        self._every_seconds = every_seconds
        self._beat = 0
        self._beat_due = False
        self._said: dict[str, Announcement] = {}
        """What holds in the log. What was taken back is not kept: it may be thousands of keys of others."""
        self._wanted: dict[str, Announcement | None] = {}
        self._taken_back_meanwhile: set[str] = set()
        self._due = asyncio.Event()
        self._lock = asyncio.Lock()
        self._reachable = True

    def put(self, key: str, announcement: Announcement | None) -> None:
        """What is to be announced under a key from now on; None takes it back."""
        if announcement is not None and self._said.get(key) == announcement:
            self._wanted.pop(key, None)
        else:
            self._wanted[key] = announcement
            self._due.set()

    def forget(self, keys: set[str]) -> None:
        """Take back everything that was said under other keys than these."""
        for key in (self._said.keys() | self._wanted.keys()) - keys:
            self.put(key, None)

    def taken_back(self, key: str) -> None:
        """The log says that a key was taken back: this process says again what it said under it and still means.

        Its own take-backs may be told as well. One that is told late makes it say a newer word twice.
        """
        if key == self._key:
            self.beat_soon()
        elif key in self._said:
            self._wanted.setdefault(key, self._said.pop(key))
            self._due.set()
        elif self._wanted.get(key) is not None:
            self._taken_back_meanwhile.add(key)

    def beat_soon(self) -> None:
        """What the heartbeat says has changed: do not wait for the next second."""
        self._beat_due = True
        self._due.set()

    async def keep(self) -> None:
        """Announce until cancelled."""
        while True:
            await self._try(self.beat)
            try:
                async with asyncio.timeout(self._every_seconds):
                    while True:
                        await self._due.wait()
                        await self._try(self.say)
                        if not self._reachable:
                            await asyncio.sleep(self._every_seconds)  # until the next beat tries again
            except TimeoutError:
                continue

    async def beat(self) -> None:
        """Announce the heartbeat now. Raises LogUnavailableError."""
        self._beat += 1
        await self._log.announce(self._key, self._heartbeat(self._beat))

    async def say(self) -> None:
        """Announce all that is due, and return when the broker has it. Raises LogUnavailableError."""
        async with self._lock:
            self._due.clear()
            if self._beat_due:
                self._beat_due = False
                await self.beat()
            try:
                for key in list(self._wanted):
                    if key not in self._wanted:
                        continue  # put back, meanwhile, to what was said
                    # To the end: what the log refuses holds up nothing behind it.
                    announcement = self._wanted[key] = self._wanted.pop(key)
                    self._said.pop(key, None)  # nobody knows, until the log has answered
                    self._taken_back_meanwhile.discard(key)
                    try:
                        await self._log.announce(key, announcement)
                    except RecordTooLargeError as exc:
                        # As if said: it would be refused each time.
                        extra = {"event": "announcement_too_large", "announcement": key, "why": str(exc)}
                        _log.error("%s is not announced: %s", key, exc, extra=extra)
                    if key in self._taken_back_meanwhile:
                        continue  # before or after this word, nobody knows: say it once more
                    if announcement is not None:
                        self._said[key] = announcement
                    if self._wanted.get(key) == announcement:
                        self._wanted.pop(key, None)
            finally:
                if self._wanted:
                    self._due.set()

    async def leave(self, *, seconds: float) -> None:
        """Take back the heartbeat: this process is gone from now on.

        A log that does not take it in so many seconds is told of; the others notice by silence.
        """
        try:
            async with asyncio.timeout(seconds):
                await self._log.announce(self._key, None)
        except (TimeoutError, LogUnavailableError):
            _log.warning("left without a word: the log is away", extra={"event": "goodbye_failed"})

    async def _try(self, announce: Callable[[], Awaitable[None]]) -> None:
        try:
            await announce()
            if not self._reachable:
                _log.info("announcing again", extra={"event": "announcing_again"})
            self._reachable = True
        except LogUnavailableError as exc:
            if self._reachable:
                extra = {"event": "announcing_failed", "why": str(exc)}
                _log.warning("the log does not take announcements: %s", exc, extra=extra)
            self._reachable = False
