"""Keeps child processes running: starts them, asks how they are, restarts a dead one, and stops all in order."""

import asyncio
import contextlib
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from headrace.local.guard import MARK_VARIABLE
from headrace.local.program import Program

LOG_BYTES = 16 << 20
"""A log that is larger is put aside; one older log is kept."""
LAST_WORDS_LINES = 12
USAGE_EXIT = 2
NOT_STARTED_EXIT = 127


class State(StrEnum):
    """How a component stands."""

    STARTING = "starting"
    READY = "ready"
    UNREADY = "unready"
    """Runs, was ready, and now says that it is not."""
    RESTARTING = "restarting"
    """Died, and waits for its next start."""
    FAILED = "failed"
    """Died at start again and again, or refused its settings; it is not started again."""
    STOPPED = "stopped"


@dataclass(frozen=True, kw_only=True)
class Standing:
    """A component's state at one moment, told whenever it changes."""

    name: str
    state: State
    pid: int | None = None
    restarts: int = 0
    detail: str = ""
    """Why, in a few words, where there is something to say."""
    seconds: float | None = None
    """For READY: since the process started. For RESTARTING: until the next start."""


class Health(Protocol):
    """Where to ask a component how it is."""

    async def healthy(self) -> bool:
        """Whether it serves, within a bounded time."""
        ...


@dataclass(frozen=True, kw_only=True)
class Component:
    """A program with what is known about its life."""

    name: str
    make_program: Callable[[], Program]
    """Called in a thread before every start, so that it may clear up after the last one. Raises NotStartableError."""
    health: Health
    stop_rank: int
    """Lower ranks are gone before the next one is asked to stop."""
    stop_seconds: float
    """From SIGTERM to SIGKILL."""


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How often and how long; tests are quicker than people."""

    first_backoff_seconds: float = 0.25
    longest_backoff_seconds: float = 15.0
    calm_seconds: float = 30.0
    """After so long in health the next death starts at the first back-off again."""
    starting_poll_seconds: float = 0.1
    ready_poll_seconds: float = 1.0
    deaths_before_ready: int = 5
    """A component that dies so often without ever having been ready is given up."""
    failed_polls_to_unready: int = 2


class NotStartableError(Exception):
    """A program can't be put together on this machine; the text says why."""


class ComponentFailedError(Exception):
    """A component can't be brought up; the text holds its last words."""


@dataclass(kw_only=True)
class _Child:
    component: Component
    standing: Standing
    process: asyncio.subprocess.Process | None = None
    keeper: asyncio.Task[None] | None = None
    was_ready: bool = False
    log_offset: int = 0
    ready_at: float | None = None


class Supervisor:
    """Owns child processes for as long as it is entered; leaving it stops them all and leaves none behind.

    Children run in sessions of their own, so that a terminal's Ctrl-C reaches only their supervisor; they die with it,
    however it dies. Their output goes to `<logs>/<name>.log`. `tell` is called in the loop's thread with every change.
    """

    def __init__(
        self,
        *,
        logs: Path,
        mark: str,
        tell: Callable[[Standing], None],
        pace: Pace | None = None,
        hurry: asyncio.Event | None = None,
        log_bytes: int = LOG_BYTES,
    ) -> None:
        """`hurry`, once set, turns every wait of a stop into SIGKILL."""
        self._logs = logs
        self._mark = mark
        self._tell = tell
        self._pace = pace or Pace()
        self._hurry = hurry or asyncio.Event()
        self._log_bytes = log_bytes
        self._children: dict[str, _Child] = {}
        self._failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._changed = asyncio.Condition()

    async def __aenter__(self) -> Self:
        self._logs.mkdir(parents=True, exist_ok=True)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._stop_in_order()
        finally:
            for child in self._children.values():
                _kill_group(child.process)
            if self._failure.done():
                self._failure.exception()  # seen, or nobody wanted it

    def start(self, component: Component) -> None:
        """Start a component now and keep it running."""
        child = _Child(component=component, standing=Standing(name=component.name, state=State.STARTING))
        self._children[component.name] = child
        child.keeper = asyncio.create_task(self._keep_or_fail(child), name=f"keep {component.name}")

    @property
    def standings(self) -> tuple[Standing, ...]:
        """Every component's standing, in the order of their starts."""
        return tuple(child.standing for child in self._children.values())

    async def failed(self) -> None:
        """Wait until a component can't be brought up; raises ComponentFailedError then, and never returns."""
        await asyncio.shield(self._failure)

    async def until_ready(self) -> None:
        """Wait until all components that were started are ready at once."""
        async with self._changed:
            await self._changed.wait_for(lambda: all(s.state is State.READY for s in self.standings))

    async def _keep_or_fail(self, child: _Child) -> None:
        try:
            await self._keep(child)
        except ComponentFailedError as exc:
            await self._give_up(child, str(exc), exc)
        except (NotStartableError, OSError) as exc:
            failure = ComponentFailedError(f"{child.component.name} can't be started: {exc}")
            await self._give_up(child, str(exc), failure)
        except Exception as exc:  # noqa: BLE001  the task's boundary: what nobody keeps would be waited for for ever
            text = f"{type(exc).__name__}: {' '.join(str(exc).split())}"
            failure = ComponentFailedError(f"{child.component.name} can't be kept running: {text}")
            await self._give_up(child, text, failure)

    async def _give_up(self, child: _Child, detail: str, failure: ComponentFailedError) -> None:
        if not self._failure.done():
            self._failure.set_exception(failure)
        await self._set(child, State.FAILED, pid=None, detail=detail)

    async def _keep(self, child: _Child) -> None:
        deaths = 0
        while True:
            code = await self._live(child)
            if child.ready_at is not None and time.monotonic() - child.ready_at >= self._pace.calm_seconds:
                deaths = 0
            deaths += 1
            words = self._last_words(child)
            hopeless = code in {USAGE_EXIT, NOT_STARTED_EXIT} or deaths >= self._pace.deaths_before_ready
            # Refused settings are told line by line; of anything else the last line is the gist.
            if code != USAGE_EXIT:
                words = words[-1:]
            if hopeless and not child.was_ready:
                name = child.component.name
                raise ComponentFailedError(f"{name} {_ending(code)}{_said(words)} (its log: {self._log(name)})")
            delay = min(self._pace.longest_backoff_seconds, self._pace.first_backoff_seconds * 2 ** (deaths - 1))
            detail = _ending(code) + _said(words[-1:] if code > 0 else [])  # who is killed has no last word on it
            await self._set(child, State.RESTARTING, pid=None, detail=detail, seconds=delay)
            await asyncio.sleep(delay)

    async def _live(self, child: _Child) -> int:
        """One life of the process, from its start to its end; returns its exit code."""
        child.ready_at = None
        program = await asyncio.to_thread(child.component.make_program)
        process = child.process = await self._spawn(child, program)
        await self._set(child, State.STARTING, pid=process.pid)
        watch = asyncio.create_task(self._watch(child, process.pid), name=f"watch {child.component.name}")
        end = asyncio.create_task(process.wait(), name=f"wait for {child.component.name}")
        try:
            await asyncio.wait({watch, end}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await _cancelled(end)
            await _cancelled(watch)
        code = end.result()
        # What it started must not hold its ports or its memory when it comes back.
        _kill_group(process)
        child.process = None
        return code

    async def _spawn(self, child: _Child, program: Program) -> asyncio.subprocess.Process:
        log = self._log(child.component.name)
        if log.exists() and log.stat().st_size > self._log_bytes:
            log.replace(_older(log))
        with log.open("ab") as out:
            child.log_offset = out.tell()
            return await asyncio.create_subprocess_exec(
                *leashed(program.argv),
                env={**program.environment(os.environ), MARK_VARIABLE: self._mark},
                cwd=program.cwd,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )

    async def _watch(self, child: _Child, pid: int) -> None:
        pace = self._pace
        started = time.monotonic()
        failures = 0
        while True:
            if await child.component.health.healthy():
                failures = 0
                if child.standing.state is not State.READY:
                    child.was_ready = True
                    child.ready_at = child.ready_at or time.monotonic()
                    await self._set(child, State.READY, pid=pid, seconds=time.monotonic() - started)
            else:
                failures += 1
                if child.standing.state is State.READY and failures >= pace.failed_polls_to_unready:
                    await self._set(child, State.UNREADY, pid=pid)
            await self._bound_log(child)
            ready = child.standing.state is State.READY
            await asyncio.sleep(pace.ready_poll_seconds if ready else pace.starting_poll_seconds)

    async def _bound_log(self, child: _Child) -> None:
        log = self._log(child.component.name)
        # A log that nobody can put aside is no reason to stop what writes it.
        with contextlib.suppress(OSError):
            if log.stat().st_size > self._log_bytes:
                await asyncio.to_thread(_put_aside, log)
                child.log_offset = 0

    async def _set(
        self, child: _Child, state: State, *, pid: int | None, detail: str = "", seconds: float | None = None
    ) -> None:
        died = state is State.RESTARTING
        restarts = child.standing.restarts + died
        child.standing = replace(
            child.standing, state=state, pid=pid, detail=detail, seconds=seconds, restarts=restarts
        )
        self._tell(child.standing)
        async with self._changed:
            self._changed.notify_all()

    async def _stop_in_order(self) -> None:
        ranks = sorted({child.component.stop_rank for child in self._children.values()})
        for rank in ranks:
            leaving = [child for child in self._children.values() if child.component.stop_rank == rank]
            await asyncio.gather(*(self._stop(child) for child in leaving))

    async def _stop(self, child: _Child) -> None:
        if child.keeper is not None:
            await _cancelled(child.keeper)
        detail = "" if child.process is None else await self._end(child.process, child.component.stop_seconds)
        child.process = None
        await self._set(child, State.STOPPED, pid=None, detail=detail)

    async def _end(self, process: asyncio.subprocess.Process, seconds: float) -> str:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await _first(process.wait(), self._hurry.wait(), seconds=seconds)
        left_by_itself = process.returncode is not None
        _kill_group(process)
        await process.wait()
        return "" if left_by_itself else "killed"

    def _log(self, name: str) -> Path:
        return self._logs / f"{name}.log"

    def _last_words(self, child: _Child) -> list[str]:
        """The end of what the process wrote in its last life."""
        with self._log(child.component.name).open("rb") as log:
            log.seek(0, os.SEEK_END)
            log.seek(max(child.log_offset, log.tell() - (8 << 10)))
            lines = log.read().decode(errors="replace").splitlines()
        return [line.strip() for line in lines if line.strip()][-LAST_WORDS_LINES:]


def leashed(argv: tuple[str, ...]) -> tuple[str, ...]:
    """A command that runs `argv` and dies with this process; to be started from a thread that outlives it."""
    leash = Path(__file__).with_name("leash.py")
    return (sys.executable, "-I", "-S", str(leash), str(os.getpid()), *argv)


def _older(log: Path) -> Path:
    return log.with_suffix(".log.1")


def _put_aside(log: Path) -> None:
    """As a copy: the process goes on writing into the same file, at its end. Lines of this very moment may be lost."""
    try:
        shutil.copyfile(log, _older(log))
    finally:
        # Also on a full disk: what comes is worth more than what was.
        os.truncate(log, 0)


def _kill_group(process: asyncio.subprocess.Process | None) -> None:
    if process is None:
        return
    # The group outlives its leader while any member does, so its number is never another's.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def _ending(code: int) -> str:
    if code >= 0:
        return f"ended with status {code}"
    with contextlib.suppress(ValueError):
        return f"was killed by {signal.Signals(-code).name}"
    return f"was killed by signal {-code}"


def _said(words: list[str]) -> str:
    return f": {'; '.join(words)}" if words else ""


async def _cancelled(task: asyncio.Task[Any]) -> None:
    """Cancel a task and wait for its end; raises what it raised. Our own cancellation passes through."""
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled():
        task.result()


async def _first(*awaitables: Coroutine[Any, Any, Any], seconds: float) -> bool:
    """Whether one of them finished within `seconds`; the others are cancelled."""
    tasks = [asyncio.ensure_future(awaitable) for awaitable in awaitables]
    try:
        done, _ = await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        return bool(done)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
