"""How a process lives: one loop, one owner of the signals, one way to fail.

`run` is what a `__main__` calls. Inside, resources are entered into an `AsyncExitStack` in the order in which they
depend on each other, tasks that run beside the main flow belong to a `Background`, and `serve_until` waits for the
order to stop or for the first part that fails.
"""

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar

import uvloop

from headrace.runtime.settings import SettingsError

log = logging.getLogger(__name__)

T = TypeVar("T")

EXIT_FAILED = 1
EXIT_USAGE = 2

NATIVE_ENVIRONMENT = {
    # Large messages come and go with every call. By default each one is its own mapping, and its pages are given back
    # and zeroed again: nearly half of the CPU of a 4 MiB call.
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 32),
    # What one thread frees, another may have: a body passes through several, and each would keep an arena of its own.
    "MALLOC_ARENA_MAX": "1",
    # The thread that waits for gRPC's events does gRPC's reading and writing too, instead of waking others for it.
    "GRPC_EXPERIMENTS": "-event_engine_poller_for_python",
    # gRPC's core writes lines of its own beside our log; what matters of them reaches us as errors.
    "GRPC_VERBOSITY": "NONE",
}
"""What malloc and gRPC's core should find in a process's environment; what is set there already wins.

Measured in `docs/adr/0011-native-environment.md`.
"""
_GC_THRESHOLDS = (10_000, 20, 50)
_REEXECUTED = "headrace-native"  # an interpreter option: a wrapper may drop variables, and we would loop


class Unstartable(Exception):  # noqa: N818  says what the process is, as SettingsError says what is wrong
    """The process cannot start, for a reason that its operator can mend; the text is one line that says how."""


def run(main: Callable[[asyncio.Event], Awaitable[None]]) -> int:
    """Run `main` on a fresh uvloop loop until it returns; the result is the exit code of the process.

    `main` gets the event that orders it to stop. The first SIGTERM or SIGINT sets it, the next one cancels `main`. Bad
    settings and `Unstartable` end with one line per problem on stderr and code 2, anything unforeseen with one
    structured line in the log and code 1. An impatient second signal gives 128 + its number. Must be called in the
    main thread.
    """
    try:
        with asyncio.Runner(loop_factory=_new_loop) as runner:
            return runner.run(_until_told(main))
    except Exception as exc:  # noqa: BLE001  the process boundary: nothing is above us to handle it
        return _report(exc)


def _new_loop() -> asyncio.AbstractEventLoop:
    loop = uvloop.new_event_loop()
    loop.set_exception_handler(_tell_unhandled)
    return loop


def _tell_unhandled(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """What nobody handles is an error in the log, but for a name that nobody waits for any more.

    A look-up can't be cancelled, and uvloop leaves its failure with nobody where the connection was given up meanwhile:
    whoever gave up has said so, and would be followed by two errors for each attempt.
    """
    if isinstance(context.get("exception"), socket.gaierror) and "task" not in context:
        return
    loop.default_exception_handler(context)


def collect_rarely() -> None:
    """Let the garbage collector run less often, for the rest of this process' life.

    What is imported lives for ever, and calls leave no cycles behind: collecting often was 5 % of a call's CPU.
    """
    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLDS)


def with_native_environment() -> None:
    """Execute this process anew, once, with NATIVE_ENVIRONMENT, unless it is set already.

    malloc reads its part before Python runs, so setting it in place has no effect. Call it before anything is opened.
    """
    if sys.platform != "linux" or _REEXECUTED in sys._xoptions or NATIVE_ENVIRONMENT.keys() <= os.environ.keys():  # noqa: SLF001  the documented way to read -X
        return
    arguments = [sys.executable, "-X", _REEXECUTED, *sys.orig_argv[1:]]
    os.execve(sys.executable, arguments, {**NATIVE_ENVIRONMENT, **os.environ})  # noqa: S606  no shell is wanted


async def serve_until(stop: asyncio.Event, *failures: Awaitable[object]) -> None:
    """Wait until `stop` is set, or until one of `failures` ends, which must not happen before.

    Raises what that one raised, or RuntimeError where it simply returned. All others are cancelled, and awaited, on
    every way out.
    """
    stopped = asyncio.ensure_future(stop.wait())
    watched = {stopped, *(asyncio.ensure_future(_as_coroutine(failure)) for failure in failures)}
    try:
        done, _ = await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await _cancelled(watched)
    for future in done - {stopped}:
        future.result()
        if not stop.is_set():
            raise RuntimeError("a part of this process ended before it was told to")


async def unless(stop: asyncio.Event, work: Coroutine[Any, Any, object]) -> bool:
    """Do the work, or stop waiting for it when `stop` is set. Returns whether it was done; raises what it raised."""
    stopped = asyncio.ensure_future(stop.wait())
    working = asyncio.ensure_future(work)
    try:
        done, _ = await asyncio.wait({stopped, working}, return_when=asyncio.FIRST_COMPLETED)
        if working in done:
            working.result()
        return working in done
    finally:
        await _cancelled({stopped, working})


class Background:
    """Owns the tasks that run beside the main flow, and ends them when it is left.

    A task may return when its work is done. One that raises makes `failed` raise the same, so that the process ends;
    where nobody awaits `failed`, leaving the block raises it instead.
    """

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        self._failure: BaseException | None = None
        self._has_failed = asyncio.Event()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await _cancelled(self._tasks)
        if self._failure is not None and kind is None:
            raise self._failure

    def spawn(self, name: str, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Start a task. It is cancelled and awaited when the block is left."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    async def failed(self) -> None:
        """Wait for the first task that fails, and raise what it raised. Never returns."""
        await self._has_failed.wait()
        assert self._failure is not None  # noqa: S101  set before the event
        raise self._failure

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        failure = None if task.cancelled() else task.exception()
        if failure is None:
            return
        failure.add_note(f"in the background task {task.get_name()}")
        if self._failure is None:
            self._failure = failure
            self._has_failed.set()
        else:  # the first one ends the process, the others would be silent
            extra = {"event": "background_failed", "task": task.get_name()}
            log.error("a background task failed", extra=extra, exc_info=failure)


async def _until_told(main: Callable[[asyncio.Event], Awaitable[None]]) -> int:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    task = asyncio.ensure_future(_as_coroutine(_called(main, stop)))
    forced = 0

    def told(signum: signal.Signals) -> None:
        nonlocal forced
        if stop.is_set():
            forced = 128 + signum
            task.cancel(f"second signal: {signum.name}")
        else:
            log.info("stopping", extra={"event": "stop_requested", "signal": signum.name})
            stop.set()

    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, told, signum)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})  # see `orders`
    try:
        await task
    except asyncio.CancelledError:
        if not forced:
            raise
        return forced
    finally:
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(signum)
    return 0


async def _called(main: Callable[[asyncio.Event], Awaitable[None]], stop: asyncio.Event) -> None:
    await main(stop)  # called here, so that what it raises before its first await takes the same way out


async def _as_coroutine(awaitable: Awaitable[T]) -> T:
    return await awaitable


async def _cancelled(tasks: set[asyncio.Task[Any]] | set[asyncio.Future[Any]]) -> None:
    pending = set(tasks)
    for task in pending:
        task.cancel()
    await asyncio.gather(*pending, return_exceptions=True)


def _report(exc: Exception) -> int:
    cause: BaseException = exc
    while isinstance(cause, BaseExceptionGroup) and len(cause.exceptions) == 1:
        cause = cause.exceptions[0]
    if isinstance(cause, SettingsError | Unstartable):
        for line in str(cause).splitlines():
            print(line, file=sys.stderr)  # noqa: T201  for whoever started the process, not for the log
        return EXIT_USAGE
    log.error("the process failed: %s", cause, extra={"event": "process_failed"}, exc_info=cause)
    return EXIT_FAILED
