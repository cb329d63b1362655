"""The supervisor, with small stand-ins for the processes that it keeps."""

import asyncio
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import pytest

from headrace.local import guard
from headrace.local.program import Program
from headrace.local.supervisor import (
    Component,
    ComponentFailedError,
    NotStartableError,
    Pace,
    Standing,
    State,
    Supervisor,
    leashed,
)

QUICK = Pace(
    first_backoff_seconds=0.01,
    longest_backoff_seconds=0.04,
    calm_seconds=60,
    starting_poll_seconds=0.01,
    ready_poll_seconds=0.01,
)
SERVES = "open({ready!r}, 'w').close(); import signal; signal.pause()"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + SERVES
PARENT = (
    "import subprocess, sys; child = subprocess.Popen([sys.executable, '-c', 'import signal; signal.pause()']); "
    "open({ready!r} + '.child', 'w').write(str(child.pid)); " + SERVES
)


@dataclass(frozen=True)
class FileHealth:
    """Healthy while its file exists."""

    path: Path

    async def healthy(self) -> bool:
        """Whether it exists now."""
        return self.path.exists()


class Told:
    """What the supervisor said, to be waited for."""

    def __init__(self) -> None:
        self.all: list[Standing] = []
        self._news = asyncio.Event()

    def __call__(self, standing: Standing) -> None:
        """Keep it, in order."""
        self.all.append(standing)
        self._news.set()

    async def until(self, is_it: Callable[[Standing], bool], *, times: int = 1) -> Standing:
        """The standing that satisfies `is_it`, the n-th of its kind."""
        while len(found := [standing for standing in self.all if is_it(standing)]) < times:
            self._news.clear()
            await self._news.wait()
        return found[times - 1]

    async def ready(self, name: str, *, times: int = 1) -> Standing:
        """The n-th time that a component is ready."""
        return await self.until(lambda s: s.name == name and s.state is State.READY, times=times)

    def states(self, name: str) -> list[State]:
        """Everything that a component was, in order."""
        return [standing.state for standing in self.all if standing.name == name]


def stand_in(tmp_path: Path, code: str, *, name: str = "part", rank: int = 0, stop_seconds: float = 10) -> Component:
    ready = tmp_path / f"{name}.ready"

    def make_program() -> Program:
        ready.unlink(missing_ok=True)
        return Program(name=name, argv=(sys.executable, "-I", "-S", "-c", code.format(ready=str(ready))))

    return Component(
        name=name, make_program=make_program, health=FileHealth(ready), stop_rank=rank, stop_seconds=stop_seconds
    )


def supervisor(tmp_path: Path, told: Told, *, pace: Pace = QUICK, hurry: asyncio.Event | None = None) -> Supervisor:
    return Supervisor(logs=tmp_path / "logs", mark=f"{tmp_path}#1", tell=told, pace=pace, hurry=hurry)


async def test_a_component_is_ready_when_it_says_so_and_gone_when_the_supervisor_leaves(tmp_path: Path) -> None:
    told = Told()

    async with supervisor(tmp_path, told) as kept:
        kept.start(stand_in(tmp_path, SERVES))
        await kept.until_ready()
        pid = (await told.ready("part")).pid
        assert pid is not None
        assert psutil.pid_exists(pid)

    assert not psutil.pid_exists(pid)
    assert told.states("part") == [State.STARTING, State.READY, State.STOPPED]


async def test_a_killed_component_comes_back_and_the_user_is_told(tmp_path: Path) -> None:
    told = Told()

    async with supervisor(tmp_path, told) as kept:
        kept.start(stand_in(tmp_path, SERVES))
        first = await told.ready("part")
        assert first.pid is not None
        os.kill(first.pid, signal.SIGKILL)
        second = await told.ready("part", times=2)

    death = await told.until(lambda s: s.state is State.RESTARTING)
    assert death.detail == "was killed by SIGKILL"
    assert second.pid != first.pid
    assert second.restarts == 1


async def test_the_back_off_doubles_up_to_its_bound(tmp_path: Path) -> None:
    told = Told()
    pace = Pace(
        first_backoff_seconds=0.01, longest_backoff_seconds=0.04, starting_poll_seconds=0.005, ready_poll_seconds=0.005
    )

    async with supervisor(tmp_path, told, pace=pace) as kept:
        kept.start(stand_in(tmp_path, SERVES))
        for life in range(1, 6):
            pid = (await told.ready("part", times=life)).pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
        await told.until(lambda s: s.state is State.RESTARTING, times=5)

    assert [s.seconds for s in told.all if s.state is State.RESTARTING][:5] == [0.01, 0.02, 0.04, 0.04, 0.04]


async def test_after_a_calm_time_the_back_off_starts_again(tmp_path: Path) -> None:
    told = Told()
    pace = Pace(first_backoff_seconds=0.01, calm_seconds=0, starting_poll_seconds=0.005, ready_poll_seconds=0.005)

    async with supervisor(tmp_path, told, pace=pace) as kept:
        kept.start(stand_in(tmp_path, SERVES))
        for life in range(1, 4):
            pid = (await told.ready("part", times=life)).pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
        await told.until(lambda s: s.state is State.RESTARTING, times=3)

    assert {s.seconds for s in told.all if s.state is State.RESTARTING} == {0.01}


async def test_refused_settings_are_told_in_the_process_own_words_and_not_tried_again(tmp_path: Path) -> None:
    told = Told()
    refuses = "import sys; sys.stderr.write('HEADRACE_X: no such setting'); sys.exit(2)"

    async with supervisor(tmp_path, told) as kept:
        kept.start(stand_in(tmp_path, refuses))
        with pytest.raises(ComponentFailedError, match="ended with status 2: HEADRACE_X: no such setting"):
            await kept.failed()

    assert State.RESTARTING not in told.states("part")


async def test_a_component_that_dies_again_and_again_before_it_was_ready_is_given_up(tmp_path: Path) -> None:
    told = Told()

    async with supervisor(tmp_path, told) as kept:
        kept.start(stand_in(tmp_path, "raise SystemError('no luck')"))
        with pytest.raises(ComponentFailedError, match="ended with status 1: SystemError: no luck") as failure:
            await kept.failed()

    assert "Traceback" not in str(failure.value)
    assert told.states("part").count(State.STARTING) == QUICK.deaths_before_ready


async def test_a_program_that_is_not_there_is_told_by_name(tmp_path: Path) -> None:
    missing = Component(
        name="part",
        make_program=lambda: Program(name="part", argv=("/nowhere/at-all",)),
        health=FileHealth(tmp_path / "never"),
        stop_rank=0,
        stop_seconds=1,
    )

    async with supervisor(tmp_path, Told()) as kept:
        kept.start(missing)
        with pytest.raises(ComponentFailedError, match="/nowhere/at-all: No such file or directory"):
            await kept.failed()


async def test_a_program_that_cannot_be_put_together_is_a_failure_with_the_reason(tmp_path: Path) -> None:
    def make_program() -> Program:
        raise NotStartableError("the wheel is missing")

    part = Component(name="part", make_program=make_program, health=FileHealth(tmp_path), stop_rank=0, stop_seconds=1)

    async with supervisor(tmp_path, Told()) as kept:
        kept.start(part)
        with pytest.raises(ComponentFailedError, match="the wheel is missing"):
            await kept.failed()


async def test_what_nobody_foresaw_about_a_program_is_a_failure_in_one_line(tmp_path: Path) -> None:
    """Nobody keeps the component then, and who waits for it would wait for ever."""

    def make_program() -> Program:
        raise RuntimeError("first\nsecond")

    part = Component(name="part", make_program=make_program, health=FileHealth(tmp_path), stop_rank=0, stop_seconds=1)

    async with supervisor(tmp_path, Told()) as kept:
        kept.start(part)
        with pytest.raises(ComponentFailedError, match=r"^part can't be kept running: RuntimeError: first second$"):
            await kept.failed()


async def test_what_nobody_foresaw_about_its_health_is_a_failure_too(tmp_path: Path) -> None:
    class Unforeseen:
        async def healthy(self) -> bool:
            raise RuntimeError("no health")

    told = Told()
    part = replace(stand_in(tmp_path, SERVES), health=Unforeseen())

    async with supervisor(tmp_path, told) as kept:
        kept.start(part)
        with pytest.raises(ComponentFailedError, match="no health"):
            await kept.failed()

    assert told.states("part")[-1] is State.STOPPED


async def test_a_log_is_bounded_while_its_component_runs(tmp_path: Path) -> None:
    """What was written is put aside, and what is written next begins a new file."""
    set_aside = tmp_path / "logs" / "part.log.1"
    writes = (
        "import os, signal\n"
        "def more(*_):\n"
        "    os.write(1, b'more'); open({ready!r}, 'w').close()\n"
        "signal.signal(signal.SIGUSR1, more); os.write(1, b'a' * 5000)\n"
        "while True: signal.pause()"
    )
    put_aside = asyncio.Event()

    class Watching(FileHealth):
        async def healthy(self) -> bool:
            if set_aside.exists():
                put_aside.set()
            return await super().healthy()

    told = Told()
    part = replace(stand_in(tmp_path, writes), health=Watching(tmp_path / "part.ready"))

    async with Supervisor(logs=tmp_path / "logs", mark=f"{tmp_path}#1", tell=told, pace=QUICK, log_bytes=4096) as kept:
        kept.start(part)
        pid = (await told.until(lambda s: s.pid is not None)).pid
        await put_aside.wait()
        assert pid is not None
        os.kill(pid, signal.SIGUSR1)
        await told.ready("part")

    assert set_aside.read_bytes() == b"a" * 5000
    assert (tmp_path / "logs" / "part.log").read_bytes() == b"more"


async def test_a_component_that_stops_answering_is_unready_and_recovers_without_a_restart(tmp_path: Path) -> None:
    told = Told()

    async with supervisor(tmp_path, told) as kept:
        kept.start(stand_in(tmp_path, SERVES))
        first = await told.ready("part")
        (tmp_path / "part.ready").unlink()
        await told.until(lambda s: s.state is State.UNREADY)
        (tmp_path / "part.ready").touch()
        again = await told.ready("part", times=2)

    assert again.pid == first.pid
    assert again.restarts == 0


async def test_lower_ranks_are_gone_before_the_next_is_asked_to_stop(tmp_path: Path) -> None:
    told = Told()
    last_words = (
        "import signal, sys\n"
        "def leave(*_):\n"
        "    open({ready!r} + '.end', 'w').write(repr(__import__('time').monotonic())); sys.exit()\n"
        "signal.signal(signal.SIGTERM, leave)\n" + SERVES
    )

    async with supervisor(tmp_path, told) as kept:
        for rank, name in enumerate(("gateway", "router", "triton", "broker")):
            kept.start(stand_in(tmp_path, last_words, name=name, rank=rank))
        await kept.until_ready()

    ends = [float((tmp_path / f"{name}.ready.end").read_text()) for name in ("gateway", "router", "triton", "broker")]
    assert ends == sorted(ends)
    assert [s.name for s in told.all if s.state is State.STOPPED] == ["gateway", "router", "triton", "broker"]


async def test_who_does_not_leave_in_time_is_killed(tmp_path: Path) -> None:
    told = Told()

    async with supervisor(tmp_path, told) as kept:
        kept.start(stand_in(tmp_path, STUBBORN, stop_seconds=0.05))
        pid = (await told.ready("part")).pid

    assert pid is not None
    assert not psutil.pid_exists(pid)
    assert told.all[-1].detail == "killed"


async def test_hurry_ends_the_patience(tmp_path: Path) -> None:
    told, hurry = Told(), asyncio.Event()

    async with supervisor(tmp_path, told, hurry=hurry) as kept:
        kept.start(stand_in(tmp_path, STUBBORN, stop_seconds=3600))
        pid = (await told.ready("part")).pid
        hurry.set()

    assert pid is not None
    assert not psutil.pid_exists(pid)


async def test_what_a_component_started_goes_with_it(tmp_path: Path) -> None:
    told = Told()

    async with supervisor(tmp_path, told) as kept:
        kept.start(stand_in(tmp_path, PARENT))
        first = await told.ready("part")
        grandchild = os.pidfd_open(int((tmp_path / "part.ready.child").read_text()))
        assert first.pid is not None
        os.kill(first.pid, signal.SIGKILL)
        await told.ready("part", times=2)
        await asyncio.to_thread(_gone, grandchild)
        second_grandchild = os.pidfd_open(int((tmp_path / "part.ready.child").read_text()))

    await asyncio.to_thread(_gone, second_grandchild)


LEASHED_PARENT = """
import subprocess, sys
sys.path[:] = {path!r}
from headrace.local.supervisor import leashed

program = (sys.executable, "-c", "print(1, flush=True); import signal; signal.pause()")
child = subprocess.Popen(leashed(program), stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
child.wait()
"""


def test_a_leashed_program_dies_with_its_parent_even_when_that_is_killed() -> None:
    code = LEASHED_PARENT.format(path=sys.path)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = os.pidfd_open(int(parent.stdout.readline()))

        parent.kill()

    _gone(child)


def test_a_leashed_program_whose_parent_is_gone_already_does_not_start() -> None:
    *leash, _, program, flag, code = leashed((sys.executable, "-c", "print('started')"))

    done = subprocess.run([*leash, "1", program, flag, code], capture_output=True, check=False)

    assert done.returncode != 0
    assert done.stdout == b""


def test_the_guard_kills_what_carries_the_mark_once_its_input_closes(tmp_path: Path) -> None:
    mark = f"{tmp_path}#1"
    sleeper = [sys.executable, "-I", "-c", "print(1, flush=True); import signal; signal.pause()"]
    environ = {**os.environ, guard.MARK_VARIABLE: mark}
    # In a session of its own: neither its parent's death nor a group's end reaches it.
    with (
        subprocess.Popen(sleeper, env=environ, stdout=subprocess.PIPE, start_new_session=True) as ours,
        subprocess.Popen(sleeper, env={**environ, guard.MARK_VARIABLE: "/other#1"}, stdout=subprocess.PIPE) as other,
        subprocess.Popen([sys.executable, "-I", "-S", guard.__file__, mark], stdin=subprocess.PIPE) as watch,
    ):
        assert ours.stdout is not None
        assert other.stdout is not None
        assert watch.stdin is not None
        ours.stdout.readline()
        other.stdout.readline()

        watch.stdin.close()

        assert ours.wait(30) == -signal.SIGKILL
        assert watch.wait(30) == 0
        assert other.poll() is None
        other.kill()


def _gone(pidfd: int) -> None:
    """Wait until a process ended; one that nobody has reaped yet counts as ended."""
    try:
        ended, _, _ = select.select([pidfd], [], [], 30)
        assert ended
    finally:
        os.close(pidfd)
