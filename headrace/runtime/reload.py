"""A file, or several that belong together, read again when they change; a bad edit leaves what was there in force."""

import asyncio
import gc
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

from headrace.runtime.settings import SettingsError

LOOK_SECONDS = 0.5
"""How late a change is noticed. Asked, not told: a mounted ConfigMap changes by a link three folders up."""
_SWITCH_SECONDS = 0.0002

T = TypeVar("T")
_log = logging.getLogger(__name__)


class ReloadedFile(Generic[T]):
    """Watches one file. `use` is told, on the loop, each new content that `read` accepts."""

    def __init__(
        self,
        path: Path,
        *,
        what: str,
        read: Callable[[Path], T],
        use: Callable[[T], None],
        beside: Sequence[Path] = (),
    ) -> None:
        """`read` runs beside the loop, and raises SettingsError or OSError; `what` names the content in the log.

        `beside` are other files that `read` reads too: a change of any counts, and all are read again.
        The first content is read at once, and used. Raises SettingsError.
        """
        self._path = path
        self._what = what
        self._read = read
        self._use = use
        self._paths = (path, *beside)
        self._seen = self._states()
        self._told = ""
        try:
            use(read(path))
        except OSError as exc:
            raise SettingsError(f"{exc.filename or path}: cannot be read: {exc.strerror}") from None

    async def keep(self) -> None:
        """Watch until cancelled."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)  # the pace of asking
            await self.look()

    async def look(self) -> None:
        """Read the file again if it changed since the last look. What could not be read is tried at each look."""
        state = self._states()
        if state == self._seen:
            return
        try:
            with Yielding():
                content = await asyncio.to_thread(self._read_apart)
        except SettingsError as exc:
            if state == self._states():  # else it was being written: the next look sees it whole
                self._seen = state
                self._reject("; ".join(str(exc).splitlines()))
            return
        except OSError as exc:
            self._reject(f"{exc.filename or self._path}: cannot be read: {exc.strerror}")
            return
        except Exception as exc:  # noqa: BLE001  the boundary to a stranger's text: nothing in it may end the process
            self._seen = state
            self._reject(f"{self._path}: cannot be read: {type(exc).__name__}")
            return
        self._seen = state
        self._told = ""
        self._use(content)
        _log.info("the %s changed", self._what, extra={"event": "file_changed", "what": self._what})

    def _states(self) -> tuple[tuple[int, int, int] | None, ...]:
        return tuple(map(_state, self._paths))

    def _read_apart(self) -> T:
        content = self._read(self._path)
        gc.freeze()  # what was made stays for long: the loop is not to look through all of it in its next turn
        return content

    def _reject(self, reason: str) -> None:
        if reason != self._told:  # once per reason, not per look
            extra = {"event": "file_rejected", "what": self._what, "why": reason}
            _log.error("the %s stays as it was: %s", self._what, reason, extra=extra)
        self._told = reason


class Yielding:
    """Has threads give way sooner, and nobody collect garbage: a parser must not hold up the loop for milliseconds.

    Both are the process' own: the first one in changes them, and the last one out changes them back.
    """

    _inside: ClassVar[int] = 0
    _before: ClassVar[tuple[float, bool]]

    def __enter__(self) -> None:
        if not Yielding._inside:
            Yielding._before = (sys.getswitchinterval(), gc.isenabled())
            sys.setswitchinterval(_SWITCH_SECONDS)
            gc.disable()
        Yielding._inside += 1

    def __exit__(self, *_: object) -> None:
        Yielding._inside -= 1
        if not Yielding._inside:
            interval, collecting = Yielding._before
            sys.setswitchinterval(interval)
            if collecting:
                gc.enable()


def _state(path: Path) -> tuple[int, int, int] | None:
    try:
        status = os.stat(path)  # noqa: PTH116  the same call
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
