"""When a gateway that starts can be called: a call that comes earlier would be told that no router is alive."""

import logging

from gateway.registry import LOG_SILENCE_SECONDS, Registry
from headrace.bus.protocols import RouterKey

ATTACH_SECONDS = 5.0
"""How long routers are waited for at least, if any is missing: longer than one that died takes to fall silent."""

_log = logging.getLogger(__name__)


class Opening:
    """Whether the routers that announce that they are ready have attached; once so, for good.

    Routers attach when they have read this gateway's own announcement, milliseconds after it was written. One that died
    without a goodbye is not waited for once its silence shows. Those that live and do not come are waited for a while
    where others have come, and where none has until one does: a rollout is to stop at a gateway that nobody reaches.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._beats_at_start: dict[RouterKey, int] | None = None
        self._heard_of_at: float | None = None
        self._told = False
        self.waits_for = "the broker, which does not answer yet"
        """What keeps it shut, for people; empty once it is open."""

    def look(self, now: float) -> None:
        """See how things stand, at a time on the registry's clock."""
        if self.waits_for and self._registry.complete:
            self.waits_for = self._missing(now)

    def _missing(self, now: float) -> str:
        beats = {router.key: router.heartbeat.beat for router in self._registry.routers.values()}
        if self._beats_at_start is None:
            self._beats_at_start = beats
        late = self._registry.unattached()
        if not late:
            return ""
        age = self._registry.announcements_age(now)
        if age is None or age > LOG_SILENCE_SECONDS:
            return "its own announcements, which do not come back from the log"
        if self._heard_of_at is None:
            self._heard_of_at = now
        if now - self._heard_of_at >= ATTACH_SECONDS:
            alive = [router for router in late if beats[router] > self._beats_at_start.get(router, 0)]
            may_open = not alive or any(True for _ in self._registry.live_routers())
            self._tell(alive, "calls are taken without them" if may_open else "it is not ready until one does")
            if may_open:
                return ""
        return "routers that announce themselves, to attach"

    def _tell(self, alive: list[RouterKey], outcome: str) -> None:
        if alive and not self._told:
            self._told = True
            routers = sorted(router.id for router in alive)
            extra = {"event": "routers_awaited", "routers": routers}
            _log.warning("routers do not attach, and %s: %s", outcome, ", ".join(routers), extra=extra)
