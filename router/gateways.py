"""Which gateways there are, by their announcements, and what the pool was last asked to load."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

from headrace.bus.announcements import Key, parse_key
from headrace.bus.protocols import AnnouncementLog, AnswerLinks
from headrace.bus.v1.announcement_pb2 import Announcement

GATEWAY_SILENCE_SECONDS = 3.0
LOG_SILENCE_SECONDS = 1.5
"""Own heartbeats come back every second; without them for longer, the log is away, and silence proves nothing."""

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Gateway:
    address: str
    incarnation: int
    heard_at: float


class Gateways:
    """Attaches this router to every gateway of its pool that announces itself, and notices the ones that stopped."""

    def __init__(self, *, pool: str, own_key: str, own_incarnation: int, links: AnswerLinks) -> None:
        self._pool = pool
        self._own_key = own_key
        self._own_incarnation = own_incarnation
        self._links = links
        self._gateways: dict[str, _Gateway] = {}
        self._log_heard_at = 0.0
        self._log_works_since = 0.0
        self.wanted: dict[str, bool] = {}
        """Models of this pool that were loaded (True) or unloaded (False) through Headrace."""

    def announcements_age(self, now: float) -> float:
        """Since when this router has not read its own announcement back."""
        return now - self._log_heard_at

    async def follow(
        self,
        log: AnnouncementLog,
        clock: Callable[[], float],
        caught_up: Callable[[], None],
        heard: Callable[[Key, Announcement | None, float], None],
    ) -> None:
        """Read announcements until cancelled. `heard` gets each of them too."""
        async for said in log.read():
            if said is None:
                caught_up()
            elif (key := parse_key(said[0])) is not None:
                now = clock()
                self.apply(key, said[1], now)
                heard(key, said[1], now)

    def apply(self, key: Key, announcement: Announcement | None, now: float) -> None:
        """Take one announcement."""
        if key.kind == "gateway":
            self._gateway(key.id, announcement, now)
        elif key.kind == "repository" and key.pool == self._pool:
            if announcement is None:
                self.wanted.pop(key.model, None)
            else:
                self.wanted[key.model] = announcement.repository_change.loaded
        elif announcement is not None and str(key) == self._own_key:
            self._own_heartbeat(announcement.router.incarnation, now)

    def advance(self, now: float) -> None:
        """Notice silence. It counts only while this router's own heartbeats come back through the log."""
        if now - self._log_heard_at > LOG_SILENCE_SECONDS:
            return
        for gateway_id, gateway in list(self._gateways.items()):
            if now - max(gateway.heard_at, self._log_works_since) > GATEWAY_SILENCE_SECONDS:
                self._forget(gateway_id)
        # Records may name gateways that never announced themselves to this router: those that died before it started.
        self._links.silence_all_but({(each.address, each.incarnation) for each in self._gateways.values()})

    def _gateway(self, gateway_id: str, announcement: Announcement | None, now: float) -> None:
        known = self._gateways.get(gateway_id)
        # One of another pool would refuse this router.
        if announcement is None or announcement.gateway.pool not in {"", self._pool}:
            if known is not None:
                self._forget(gateway_id)
            return
        said = announcement.gateway
        self._gateways[gateway_id] = _Gateway(said.reply_address, said.incarnation, now)
        if known is None or known.incarnation != said.incarnation:
            self._links.gateway_announced(said.reply_address, said.incarnation)

    def _own_heartbeat(self, incarnation: int, now: float) -> None:
        if incarnation == self._own_incarnation:
            if now - self._log_heard_at > LOG_SILENCE_SECONDS:
                self._log_works_since = now
            self._log_heard_at = now

    def _forget(self, gateway_id: str) -> None:
        del self._gateways[gateway_id]
        _log.info("gateway %s is silent", gateway_id, extra={"event": "gateway_silent", "gateway": gateway_id})
