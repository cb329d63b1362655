"""A file that is read again whenever it changes; a bad edit leaves what was read before it in force."""

import asyncio
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from headrace.runtime.settings import SettingsError

LOOK_SECONDS = 0.5
"""How late a change is noticed. Asked, not told: a mounted ConfigMap changes by a link three folders up."""

T = TypeVar("T")
_log = logging.getLogger(__name__)


class ReloadedFile(Generic[T]):
    """Watches one file. `use` is told, on the loop, each new content that `read` accepts."""

    def __init__(self, path: Path, *, what: str, read: Callable[[Path], T], use: Callable[[T], None]) -> None:
        """`read` runs beside the loop and raises SettingsError; `what` names the content in the log.

        The first content is read at once, and used. Raises what `read` raises.
        """
        self._path = path
        self._what = what
        self._read = read
        self._use = use
        self._seen = _state(path)
        use(read(path))

    async def keep(self) -> None:
        """Watch until cancelled."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)  # the pace of asking
            await self.look()

    async def look(self) -> None:
        """Read the file again if it changed since the last look."""
        state = _state(self._path)
        if state == self._seen:
            return
        self._seen = state
        try:
            content = await asyncio.to_thread(self._read, self._path)
        except (SettingsError, OSError) as exc:
            reason = "; ".join(str(exc).splitlines())
            _log.error(
                "the %s stays as it was: %s", self._what, reason, extra={"event": "file_rejected", "what": self._what}
            )
            return
        self._use(content)
        _log.info("the %s changed", self._what, extra={"event": "file_changed", "what": self._what})


def _state(path: Path) -> tuple[int, int, int] | None:
    try:
        status = os.stat(path)  # noqa: PTH116  the same call
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
