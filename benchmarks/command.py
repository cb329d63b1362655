"""What the benchmark commands share: options that name a stack, starting it, and one line when it fails."""

import argparse
import asyncio
import fcntl
import signal
import sys
from collections.abc import Coroutine, Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path

from benchmarks.children import ChildFailedError
from benchmarks.copy_model import NoCompilerError
from benchmarks.cpu import ProcessGoneError
from benchmarks.load import LoadFailedError
from benchmarks.peers import Peer, headrace, triton
from headrace.local.state import StateError
from headrace.local.triton import TritonUnavailableError


class AnotherRunsError(Exception):
    """Another benchmark runs on this machine."""


CHECKOUT = Path(__file__).parent.parent
_FAILURES = (
    AnotherRunsError,
    ChildFailedError,
    LoadFailedError,
    NoCompilerError,
    ProcessGoneError,
    StateError,
    TritonUnavailableError,
)


def say(line: str) -> None:
    """Tell the user how it goes; results go to standard output instead."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def add_stack_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that attach to a stack that runs already; without them one is started."""
    parser.add_argument("--triton", metavar="HOST:PORT", help="a Triton that runs already and serves the model `copy`")
    parser.add_argument("--headrace", metavar="HOST:PORT", help="a gateway that runs already in front of --triton")
    parser.add_argument("--key", help="the API key for --headrace")
    parser.add_argument("--pids", type=_pids, default={}, help="of them: triton=..,gateway=..,router=..,broker=..")
    parser.add_argument("--build", type=Path, default=CHECKOUT / "build" / "benchmarks", help="scratch folder")


def _pids(text: str) -> dict[str, int]:
    try:
        return {name: int(pid) for name, pid in (part.split("=") for part in text.split(","))}
    except ValueError:
        raise argparse.ArgumentTypeError("a list such as triton=101,gateway=102,router=103,broker=104") from None


def check_stack_options(parser: argparse.ArgumentParser, asked: argparse.Namespace) -> None:
    """End with usage and exit code 2 where the options that name a stack are incomplete."""
    if asked.triton and "triton" not in asked.pids:
        parser.error("--triton needs --pids triton=PID: its CPU time is measured")
    if asked.headrace and not (asked.key and asked.triton and {"gateway", "router"} <= asked.pids.keys()):
        parser.error("--headrace needs --key, --triton and --pids with triton, gateway and router (and broker)")


@contextmanager
def alone(build: Path) -> Iterator[None]:
    """Hold the scratch folder for this command alone: two at once would measure each other.

    Raises:
        AnotherRunsError: some other benchmark holds it.
    """
    build.mkdir(parents=True, exist_ok=True)
    with (build / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AnotherRunsError(
                f"another benchmark runs with {build}: wait for it, or name another --build"
            ) from None
        yield


async def start_triton(asked: argparse.Namespace, owned: AsyncExitStack) -> Peer:
    """Attach to the Triton that was named, or start one."""
    if asked.triton:
        return triton.attached(address=asked.triton, pid=asked.pids["triton"])
    return await owned.enter_async_context(triton.start(asked.build))


async def start_headrace(asked: argparse.Namespace, owned: AsyncExitStack, direct: Peer) -> Peer:
    """Attach to the stack that was named, or start one in front of `direct`."""
    if asked.headrace:
        return headrace.attached(address=asked.headrace, key=asked.key, pids=asked.pids, triton=direct)
    return await owned.enter_async_context(headrace.start(asked.build, direct))


def run_to_end(work: Coroutine[None, None, int]) -> int:
    """Run a command; 1 with one line of explanation where it fails, 130 where it was told to stop.

    SIGTERM and SIGINT cancel it, so that whatever it started is stopped before this returns.
    """
    with asyncio.Runner() as runner:
        task = runner.get_loop().create_task(work, name="command")
        for number in (signal.SIGTERM, signal.SIGINT):
            runner.get_loop().add_signal_handler(number, task.cancel)
        try:
            return runner.get_loop().run_until_complete(task)
        except _FAILURES as error:
            say(f"failed: {error}")
            return 1
        except asyncio.CancelledError:
            say("stopped")
            return 130
