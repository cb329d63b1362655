"""How a process starts, stops and fails."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from headrace.runtime.lifecycle import (
    EXIT_FAILED,
    EXIT_USAGE,
    NATIVE_ENVIRONMENT,
    Background,
    Unstartable,
    run,
    serve_until,
    unless,
)
from headrace.runtime.settings import SettingsError

PATIENCE_SECONDS = 20.0


@contextmanager
def python(code: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """A child that runs the code; killed at the latest when the block is left."""
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GRPC_", "HEADRACE_"))
    }
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**inherited, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


def test_returning_is_success() -> None:
    async def main(stop: asyncio.Event) -> None:
        assert not stop.is_set()

    assert run(main) == 0


def test_a_name_that_nobody_waits_for_any_more_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    """What any broker that can't be resolved would bring twice for each attempt, while DNS is away."""
    unresolved = socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    async def main(_stop: asyncio.Event) -> None:
        loop = asyncio.get_running_loop()
        loop.call_exception_handler({"message": "nobody's", "exception": unresolved})
        loop.call_exception_handler({"message": "a task's", "exception": unresolved, "task": asyncio.current_task()})
        loop.call_exception_handler({"message": "another", "exception": OSError("another")})

    assert run(main) == 0
    assert [record.getMessage().splitlines()[0] for record in caplog.records] == ["a task's", "another"]


def test_the_loop_is_uvloop() -> None:
    async def main(_: asyncio.Event) -> None:
        assert type(asyncio.get_running_loop()).__module__.startswith("uvloop")

    assert run(main) == 0


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_asks_to_stop(signum: signal.Signals) -> None:
    async def main(stop: asyncio.Event) -> None:
        os.kill(os.getpid(), signum)
        await stop.wait()

    assert run(main) == 0


@pytest.mark.parametrize(("pid", "status"), [(1, 0), (2, -signal.SIGTERM)])
def test_an_order_that_comes_while_it_starts_ends_it(pid: int, status: int) -> None:
    """The first process of a container, to which nothing happens by default, keeps it until it can obey."""
    code = f"""
import asyncio, os, signal, sys
os.getpid = lambda: {pid}
from headrace.runtime import orders
signal.raise_signal(signal.SIGTERM)
os.execv(sys.executable, [sys.executable, "-c", '''
import asyncio, sys
from headrace.runtime.lifecycle import run
sys.exit(run(lambda stop: asyncio.wait_for(stop.wait(), {PATIENCE_SECONDS})))
'''])
"""
    with python(code) as child:
        assert child.wait(2 * PATIENCE_SECONDS) == status


def test_the_second_signal_does_not_wait() -> None:
    """A main that drains for ever is cancelled, with its cleanup run."""
    cleaned = []

    async def main(stop: asyncio.Event) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        await stop.wait()
        os.kill(os.getpid(), signal.SIGINT)
        try:
            await asyncio.Event().wait()
        finally:
            cleaned.append(True)

    assert run(main) == 128 + signal.SIGINT
    assert cleaned


@pytest.mark.parametrize("error", [SettingsError, Unstartable])
@pytest.mark.parametrize("grouped", [False, True])
def test_what_the_operator_can_mend_is_a_line_each_and_code_2(
    error: type[Exception], grouped: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    async def main(_: asyncio.Event) -> None:
        if grouped:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(fail())
        await fail()

    async def fail() -> None:
        raise error("port 1: in use\nport 2: in use")

    assert run(main) == EXIT_USAGE
    assert capsys.readouterr().err == "port 1: in use\nport 2: in use\n"


def test_settings_that_fail_before_the_first_await_are_reported_too(capsys: pytest.CaptureFixture[str]) -> None:
    def load() -> str:
        raise SettingsError("HEADRACE_X: no such setting")

    async def main(_: str) -> None: ...

    assert run(lambda _: main(load())) == EXIT_USAGE
    assert capsys.readouterr().err == "HEADRACE_X: no such setting\n"


def test_the_unforeseen_is_one_line_in_the_log_and_code_1() -> None:
    code = """
import sys
from headrace.runtime import logs
from headrace.runtime.lifecycle import run
from headrace.runtime.settings import LogSettings
logs.configure(LogSettings(), process="gateway")
async def main(stop):
    raise KeyError("lost")
sys.exit(run(main))
"""
    with python(code) as child:
        out, err = child.communicate(timeout=30)

    assert (child.returncode, out) == (EXIT_FAILED, "")
    [line] = err.splitlines()
    said = json.loads(line)
    assert (said["level"], said["event"]) == ("ERROR", "process_failed")
    assert "KeyError: 'lost'" in said["exception"]


NATIVE = """
import json, os, sys
from headrace.runtime.lifecycle import NATIVE_ENVIRONMENT, with_native_environment
with_native_environment()
print(json.dumps([os.getpid(), *map(os.environ.get, NATIVE_ENVIRONMENT)]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Linux only")
def test_the_process_executes_itself_anew_with_native_settings() -> None:
    """As the same process, so that whoever supervises it does not notice."""
    with python(NATIVE) as child:
        out, err = child.communicate(timeout=30)

    assert (json.loads(out), err) == ([child.pid, *NATIVE_ENVIRONMENT.values()], "")


@pytest.mark.skipif(sys.platform != "linux", reason="Linux only")
def test_settings_of_the_operator_stay() -> None:
    with python(NATIVE, MALLOC_MMAP_THRESHOLD_="4096") as child:
        out, _ = child.communicate(timeout=30)

    expected = NATIVE_ENVIRONMENT | {"MALLOC_MMAP_THRESHOLD_": "4096"}
    assert json.loads(out)[1:] == list(expected.values())


@pytest.mark.skipif(sys.platform != "linux", reason="Linux only")
def test_a_process_that_loses_its_variables_does_not_execute_itself_for_ever() -> None:
    code = (
        'import os\nfor name in list(os.environ):\n    if name.startswith(("MALLOC_", "GRPC_")): del os.environ[name]\n'
        + NATIVE
    )
    with python(code) as child:
        out, _ = child.communicate(timeout=30)

    assert json.loads(out)[1:] == [None] * len(NATIVE_ENVIRONMENT)


def test_grpc_knows_the_experiment_that_it_is_told_to_leave() -> None:
    """What it does not know it passes over: after an upgrade its threads would be back without a word."""
    with python("import grpc, grpc.aio", **(NATIVE_ENVIRONMENT | {"GRPC_VERBOSITY": "ERROR"})) as child:
        _, err = child.communicate(timeout=30)

    assert "experiment" not in err.lower()


async def test_serving_ends_when_told() -> None:
    stop = asyncio.Event()
    never = asyncio.get_running_loop().create_future()
    serving = asyncio.ensure_future(serve_until(stop, never))

    stop.set()
    await serving

    assert never.cancelled()


async def test_serving_raises_what_fails_first() -> None:
    async def fail() -> None:
        raise LookupError("lost")

    with pytest.raises(LookupError, match="lost"):
        await serve_until(asyncio.Event(), asyncio.Event().wait(), fail())


async def test_a_part_that_ends_early_is_a_failure() -> None:
    async def end() -> None: ...

    with pytest.raises(RuntimeError, match="before it was told"):
        await serve_until(asyncio.Event(), end())


async def test_cancelling_serve_until_leaves_no_task_behind() -> None:
    before = asyncio.all_tasks()
    serving = asyncio.ensure_future(serve_until(asyncio.Event(), asyncio.Event().wait()))
    started = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(started.set_result, None)
    await started

    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving

    assert asyncio.all_tasks() == before


async def test_work_that_is_told_to_stop_is_cancelled() -> None:
    stop = asyncio.Event()
    stop.set()
    never = asyncio.Event()

    assert not await unless(stop, never.wait())


async def test_work_that_is_done_is_done() -> None:
    async def work() -> None: ...

    assert await unless(asyncio.Event(), work())


async def test_background_tasks_end_with_their_block() -> None:
    cleaned = []

    async def forever() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cleaned.append(asyncio.current_task())

    async with Background() as background:
        tasks = [background.spawn(name, forever()) for name in ("one", "two")]
        started = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(started.set_result, None)
        await started

    assert set(cleaned) == set(tasks)
    assert [task.get_name() for task in tasks] == ["one", "two"]


async def test_a_background_task_that_fails_is_told() -> None:
    async def fail() -> None:
        raise LookupError("lost")

    async def block() -> None:
        async with Background() as background:
            background.spawn("reader", fail())
            await background.failed()

    with pytest.raises(LookupError, match="lost") as caught:
        await block()
    assert caught.value.__notes__ == ["in the background task reader"]


async def test_a_failure_that_nobody_waited_for_is_raised_at_the_end() -> None:
    async def fail() -> None:
        raise LookupError("lost")

    async def block() -> None:
        async with Background() as background:
            await asyncio.wait({background.spawn("reader", fail())})

    with pytest.raises(LookupError, match="lost"):
        await block()


async def test_a_background_task_may_be_done() -> None:
    async def work() -> int:
        return 7

    async with Background() as background:
        assert await background.spawn("once", work()) == 7
