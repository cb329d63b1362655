"""Which routers of this pool are gone for good, and what they said that nobody has taken back."""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field

from headrace.bus.announcements import Key
from headrace.bus.protocols import RouterKey
from headrace.bus.v1.announcement_pb2 import Announcement
from router.gateways import LOG_SILENCE_SECONDS

FORGET_SECONDS = 600.0
OUTAGE_SECONDS = 10.0
"""A log that was away for longer makes all silence count anew. Less takes nothing from what ten minutes prove."""
TURN_SECONDS = 10.0
"""Routers forget in the order of their ids, so long apart: the later ones find it done."""
MOST_ON_THEIR_WAY = 40
"""So many keys are taken back at a time, and no more before those are read back from the log."""

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Other:
    heard_at: float
    words: set[str] = field(default_factory=set)
    """The keys under which it said something that holds."""


class Departed:
    """Forgets routers of the pool that have said nothing for long, on their behalf.

    A router that leaves takes back its heartbeat alone, so that a pool without a router stays known; one that dies not
    even that, and each gateway that starts would wait for it.
    """

    def __init__(
        self,
        *,
        pool: str,
        own: RouterKey,
        taken_back: Callable[[str], None],
        forget_seconds: float = FORGET_SECONDS,
    ) -> None:
        """`taken_back` is told of each key of this router's own that somebody took back, or may have."""
        self._pool = pool
        self._own = own
        self._taken_back = taken_back
        self._forget_seconds = forget_seconds
        self._others: dict[str, _Other] = {}
        self._on_their_way: set[str] = set()
        self._own_words: set[str] = set()
        self._read_to_the_end_at: float | None = None
        self._log_heard_at: float | None = None
        self._log_works_since = 0.0

    def caught_up(self, now: float) -> None:
        """All that holds was read: whoever lives is heard from now on."""
        self._read_to_the_end_at = now

    def apply(self, key: Key, announcement: Announcement | None, now: float) -> None:
        """Take one announcement."""
        if key.pool != self._pool:
            return
        if key.kind == "router" and key.id == self._own.id:
            if announcement is None:
                # Another process under this id left, whose words may be the newest, or this one was taken for dead.
                self._taken_back(str(key))
                self._say_all_again()
            elif announcement.router.incarnation == self._own.incarnation:
                self._own_heartbeat(now)
        elif key.kind in {"router", "model", "statistics"}:
            self._word(key, announcement, now)

    def due(self, now: float) -> list[str]:
        """The keys to take back now. Each is told once; it is done when the log has it."""
        if self._read_to_the_end_at is None or self._log_heard_at is None:
            return []
        if now - self._log_heard_at > LOG_SILENCE_SECONDS:
            return []
        heard_since = max(self._log_works_since, self._read_to_the_end_at)
        patience = self._forget_seconds + self._turn(now) * TURN_SECONDS
        due: list[str] = []
        for router_id, other in list(self._others.items()):
            if now - max(other.heard_at, heard_since) <= patience:
                continue
            if not other.words:
                del self._others[router_id]
                continue
            room = MOST_ON_THEIR_WAY - len(self._on_their_way)
            if room <= 0:
                break
            left = sorted(other.words - self._on_their_way)
            self._on_their_way.update(left[:room])
            due += left[:room]
            if 0 < len(left) <= room:
                extra = {"event": "router_forgotten", "router": router_id}
                _log.info("router %s is gone, and what it said is taken back", router_id, extra=extra)
        return due

    def _turn(self, now: float) -> int:
        speak = [router_id for router_id, other in self._others.items() if now - other.heard_at <= TURN_SECONDS]
        return sum(router_id < self._own.id for router_id in speak)

    def _word(self, key: Key, announcement: Announcement | None, now: float) -> None:
        text = str(key)
        if key.id == self._own.id:
            if announcement is None:
                self._own_words.discard(text)
                self._taken_back(text)
            else:
                self._own_words.add(text)
            return
        self._on_their_way.discard(text)
        if announcement is not None:
            self._hear(key.id, now).words.add(text)
        elif (other := self._others.get(key.id)) is not None:
            other.words.discard(text)
            if key.kind == "router" and now - other.heard_at <= self._forget_seconds:
                other.heard_at = now  # a goodbye; later it is another router that took it back

    def _hear(self, router_id: str, now: float) -> _Other:
        other = self._others.setdefault(router_id, _Other(now))
        other.heard_at = now
        return other

    def _own_heartbeat(self, now: float) -> None:
        silence = math.inf if self._log_heard_at is None else now - self._log_heard_at
        if silence > OUTAGE_SECONDS:
            self._log_works_since = now
            # What was taken back meanwhile need not be told any more: the log is compacted.
            self._on_their_way.clear()
        if silence > self._forget_seconds / 2:
            # Others may have forgotten this router, which need not be told either.
            self._say_all_again()
        self._log_heard_at = now

    def _say_all_again(self) -> None:
        for text in sorted(self._own_words):
            self._taken_back(text)
