"""When a gateway that starts can be called: a call that comes earlier would be told that no router is alive."""

import logging

from gateway.registry import Registry

ATTACH_SECONDS = 5.0
"""How long the last of several routers are waited for: longer than one that died takes to fall silent."""

_log = logging.getLogger(__name__)


class Opening:
    """Whether the routers that announce that they are ready have attached; once so, for good.

    Routers attach when they have read this gateway's own announcement, milliseconds after it was written. One that died
    without a goodbye is not waited for once its silence shows. Those that live and do not come are waited for while the
    log works: for a while where others have come, and where none has until one does.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._told = False
        self.is_open = False

    def look(self, now: float) -> None:
        """See how things stand, at a time on the registry's clock."""
        if not self.is_open and self._registry.complete:
            self.is_open = self._may_open(now)

    def _may_open(self, now: float) -> bool:
        late = self._registry.unattached()
        if not late:
            return True
        if self._registry.log_works_for(now) < ATTACH_SECONDS:
            return False
        if not self._told:
            self._told = True
            routers = sorted(router.id for router in late)
            extra = {"event": "routers_awaited", "routers": routers}
            _log.warning("routers do not attach: %s", ", ".join(routers), extra=extra)
        return any(True for _ in self._registry.live_routers())
