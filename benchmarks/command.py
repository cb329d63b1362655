"""What the benchmark commands share: options that name a stack, starting the peers, and one line when it fails."""

import argparse
import asyncio
import fcntl
import signal
import sys
from collections.abc import AsyncIterator, Collection, Coroutine, Iterable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import machine
from benchmarks.children import ChildFailedError
from benchmarks.copy_model import NoCompilerError
from benchmarks.cpu import ProcessGoneError
from benchmarks.load import LoadFailedError, LoadGenerator, load_generator
from benchmarks.peers import Peer, envoy, headrace, mlserver, raw_proxy, triton
from headrace.local.state import StateError
from headrace.local.triton import TritonUnavailableError


class AnotherRunsError(Exception):
    """Another benchmark runs on this machine."""


CHECKOUT = Path(__file__).parent.parent
PEERS = ("triton", "envoy", "raw-proxy", "raw-proxy-malloc", "mlserver", "mlserver-lean", "headrace")
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
    add_build_option(parser)


def add_build_option(parser: argparse.ArgumentParser) -> None:
    """Add the option that says where the command may write."""
    parser.add_argument("--build", type=Path, default=CHECKOUT / "build" / "benchmarks", help="scratch folder")


def add_result_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where results go; see `write_results`."""
    parser.add_argument("--results", type=Path, default=CHECKOUT / "benchmarks" / "results", help="where results go")
    parser.add_argument("--no-results", action="store_true", help="print the tables only")


def write_results(asked: argparse.Namespace, page: str, data: str, *, name: str = "") -> None:
    """Print a page, and keep it with its data as the results of this commit, unless asked not to."""
    sys.stdout.write(page)
    if asked.no_results:
        return
    asked.results.mkdir(parents=True, exist_ok=True)
    stem = f"{datetime.now(UTC):%Y-%m-%d}-{machine.commit()}" + (f"-{name}" if name else "")
    for suffix, text in ((".md", page), (".json", data)):
        (asked.results / f"{stem}{suffix}").write_text(text)
    say(f"written: {asked.results / stem}.md and .json")


def about(peers: Iterable[Peer]) -> dict[str, str]:
    """Say when, of which commit and on what machine something was measured."""
    described = {"date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC", "commit": machine.commit(), **machine.describe()}
    for peer in peers:
        described |= peer.about
    return described


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


@asynccontextmanager
async def measured(
    asked: argparse.Namespace, names: Collection[str]
) -> AsyncIterator[tuple[LoadGenerator, list[Peer]]]:
    """Run the peers of these names, and a load generator for them, until the body is left.

    A failure that comes out of the body in a task group's wrapping is raised without it.
    """
    try:
        async with AsyncExitStack() as owned:
            owned.enter_context(alone(asked.build))
            peers = await _start_peers(asked, names, owned)
            yield await owned.enter_async_context(load_generator(asked.build / "logs")), peers
    except* _FAILURES as failures:
        raise failures.exceptions[0] from None


@asynccontextmanager
async def own_stack(build: Path) -> AsyncIterator[Peer]:
    """Run Triton and `headrace up` in front of it, for this command alone, until the body is left.

    A failure that comes out of the body in a task group's wrapping is raised without it.
    """
    try:
        async with AsyncExitStack() as owned:
            owned.enter_context(alone(build))
            say("starting Triton")
            direct = await owned.enter_async_context(triton.start(build))
            say("starting headrace up")
            yield await owned.enter_async_context(headrace.start(build, direct))
    except* _FAILURES as failures:
        raise failures.exceptions[0] from None


async def _start_peers(asked: argparse.Namespace, names: Collection[str], owned: AsyncExitStack) -> list[Peer]:
    """Start everything that is wanted and leave it up: an idle peer costs next to nothing, a new start much."""
    build, enter = asked.build, owned.enter_async_context
    say("starting Triton")
    direct = (
        triton.attached(address=asked.triton, pid=asked.pids["triton"])
        if asked.triton
        else await enter(triton.start(build))
    )
    peers = []
    for name in PEERS:
        if name not in names:
            continue
        say(f"starting {name}")
        match name:
            case "triton":
                peers.append(direct)
            case "envoy":
                peers.append(await enter(envoy.start(build, direct)))
            case "raw-proxy" | "raw-proxy-malloc":
                peers.append(await enter(raw_proxy.start(build, direct, keep_memory=name.endswith("malloc"))))
            case "mlserver" | "mlserver-lean":
                peers.append(await enter(mlserver.start(build, lean=name.endswith("lean"))))
            case "headrace" if asked.headrace:
                peers.append(headrace.attached(address=asked.headrace, key=asked.key, pids=asked.pids, triton=direct))
            case "headrace":
                peers.append(await enter(headrace.start(build, direct)))
    return peers


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
