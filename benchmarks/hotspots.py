"""Says where the time goes: `python -m benchmarks.hotspots --help`.

py-spy samples gateway and router while a load runs; the samples become two tables per process: by package or module,
and by function, with the time spent in it alone and together with what it called. Python code alone is what it sees
well; how the rest divides among gRPC's core, uvloop, librdkafka and the kernel, `--perf` tells.
"""

import argparse
import asyncio
import re
import shutil
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from benchmarks.cases import CASES, Case
from benchmarks.children import ChildFailedError, child
from benchmarks.command import add_stack_options, check_stack_options, measured, run_to_end, say
from benchmarks.load import LoadGenerator
from benchmarks.peers import Peer

_SHOWN = 25
_FRAME = re.compile(r"^(?P<function>.*) \((?P<file>.*?)(?::\d+)?\)$")
_STANDARD_LIBRARY = re.compile(r"^.*/python3\.\d+/")
_WAITING = re.compile(r"^(epoll_p?wait|p?poll|p?select|sem_\w*wait|pthread_cond_\w*wait)$")
_NATIVE = "native"
_SLACK_SECONDS = 60.0


def _frame(text: str) -> tuple[str, str]:
    """Split a sampled frame into its function and the file that it is in."""
    found = _FRAME.match(text)
    return (found["function"], found["file"]) if found else (text, _NATIVE)


def place(file: str) -> str:
    """Name the code that a file belongs to: an own module in full, a dependency by its package."""
    path = file.rpartition("site-packages/")[2]
    if path != file:
        return path.partition("/")[0].removesuffix(".py")
    for own in ("gateway/", "router/", "headrace/"):
        before, found, after = path.rpartition(own)
        if found and (not before or before.endswith("/")):
            return f"{own}{after}".removesuffix(".py").replace("/", ".")
    standard = _STANDARD_LIBRARY.split(path)[-1]
    return standard.removesuffix(".py").replace("/", ".") if path.endswith(".py") else path.rpartition("/")[2]


class Profile:
    """Samples of one process, counted."""

    def __init__(self, folded: Iterable[str]) -> None:
        """Read py-spy's raw format: frames from the outermost on, with semicolons, then how often it was seen.

        What waits in the kernel is left out: it takes no CPU.
        """
        self.samples = 0
        self.by_place: Counter[str] = Counter()
        self.alone: Counter[str] = Counter()
        self.together: Counter[str] = Counter()
        for line in folded:
            stack, _, count = line.rstrip().rpartition(" ")
            if not stack:
                continue
            names = [(place(file), function) for function, file in map(_frame, stack.split(";"))]
            if _WAITING.search(names[-1][1]):
                continue
            seen = int(count)
            self.samples += seen
            self.by_place[names[-1][0]] += seen
            self.alone[" ".join(names[-1])] += seen
            self.together.update(dict.fromkeys({" ".join(name) for name in names}, seen))

    def tables(self) -> str:
        """Write both tables in Markdown."""
        lines = ["| module or package | alone |", "| --- | --- |"]
        lines += [f"| {name} | {self._share(count)} |" for name, count in self.by_place.most_common(_SHOWN)]
        lines += ["", "| function | alone | with what it called |", "| --- | --- | --- |"]
        lines += [
            f"| {name} | {self._share(count)} | {self._share(self.together[name])} |"
            for name, count in self.alone.most_common(_SHOWN)
        ]
        return "\n".join(lines)

    def _share(self, count: int) -> str:
        return f"{count / self.samples:.1%}"


@asynccontextmanager
async def _within(seconds: float, what: str, log: Path) -> AsyncIterator[None]:
    """Give the body so much time. Raises ChildFailedError when it is over."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise ChildFailedError(f"{what} was not done after {seconds:.0f} s; see {log}") from None


async def _sample(name: str, pid: int, asked: argparse.Namespace) -> Path:
    build: Path = asked.build
    target, log = build / f"hotspots_{name}.folded", build / "logs" / f"py-spy_{name}.log"
    target.unlink(missing_ok=True)
    options = [
        "--format",
        "raw",
        "--function",
        "--full-filenames",
        "--rate",
        str(asked.rate),
        "--duration",
        str(asked.seconds),
    ]
    if asked.native:
        options.append("--native")
    if asked.nonblocking:
        options.append("--nonblocking")
    py_spy = str(Path(sys.executable).with_name("py-spy"))
    record = [py_spy, "record", *options, "--pid", str(pid), "--output", str(target)]
    async with child(record, log=log) as process, _within(asked.seconds + _SLACK_SECONDS, "py-spy", log):
        await process.wait()
    if process.returncode != 0 or not target.exists():
        raise ChildFailedError(f"py-spy gave no samples of {name}; see {log} (it may need root)")
    return target


async def _perf(name: str, pid: int, asked: argparse.Namespace) -> str:
    """Sample with perf: what is on a core, by library and by symbol, the kernel included."""
    build: Path = asked.build
    data, log = build / f"hotspots_{name}.perf", build / "logs" / f"perf_{name}.log"
    perf = shutil.which("perf")
    if perf is None:
        raise ChildFailedError("there is no `perf` on this machine: install linux-perf, or leave out --perf")
    record = [perf, "record", "-F", "499", "-p", str(pid), "-o", str(data), "--", "sleep", str(asked.seconds)]
    async with child(record, log=log) as process, _within(asked.seconds + _SLACK_SECONDS, "perf record", log):
        await process.wait()
    tables = []
    for heading, keys, shown in (("library", "dso", 12), ("library and symbol", "dso,symbol", _SHOWN)):
        report = [perf, "report", "--stdio", "-q", "-i", str(data), "--sort", keys, "--field-separator", "|"]
        async with child(report, log=log, pipes=True) as process, _within(_SLACK_SECONDS, "perf report", log):
            assert process.stdout is not None  # noqa: S101  it was asked for as a pipe
            lines = (await process.stdout.read()).decode(errors="replace").splitlines()
            await process.wait()
        rows = [[part.strip(" -") for part in line.split("|")] for line in lines if line.strip()]
        tables.append(f"| {heading} | on a core |\n| --- | --- |")
        tables[-1] += "".join(f"\n| {' '.join(rest)} | {share} |" for share, *rest in rows[:shown])
    return "\n\n".join(tables)


async def _keep_busy(load: LoadGenerator, calls: int) -> None:
    while True:
        seen = await load.run(calls)
        say(f"{calls / seen.seconds:.0f} calls/s, p50 {seen.p50_ms:.2f} ms")


async def _tables(name: str, pid: int, asked: argparse.Namespace) -> str:
    if asked.perf:
        return f"## {name}, {asked.case}, by perf\n\n{await _perf(name, pid, asked)}\n"
    path = await _sample(name, pid, asked)
    with path.open() as folded:
        profile = Profile(folded)
    return f"## {name}, {asked.case}: {profile.samples} samples, stacks in {path}\n\n{profile.tables()}\n"


async def _under_load(load: LoadGenerator, peer: Peer, case: Case, asked: argparse.Namespace) -> list[str]:
    await load.prepare(peer, case, warm_up=max(case.in_flight, case.calls // 10))
    async with asyncio.TaskGroup() as group:
        busy = group.create_task(_keep_busy(load, max(case.in_flight, case.calls // 10)), name="load")
        try:
            # One after the other: two samplers on two cores would sample each other.
            return [await _tables(name, peer.processes[name], asked) for name in asked.processes]
        finally:
            busy.cancel()


async def _run(asked: argparse.Namespace) -> int:
    case = next(case for case in CASES if case.name == asked.case)
    async with measured(asked, ["headrace"]) as (load, [peer]):
        sys.stdout.write("\n".join(await _under_load(load, peer, case, asked)))
    return 0


def main(words: Sequence[str]) -> int:
    """Profile; 0 when every process was sampled."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.hotspots", description="Sample gateway and router under load with py-spy."
    )
    names = [case.name for case in CASES]
    parser.add_argument("--case", default="16 floats, 32 in flight", choices=names, metavar="CASE", help=f"of {names}")
    parser.add_argument("--processes", nargs="+", default=["gateway", "router"], choices=["gateway", "router"])
    parser.add_argument("--seconds", type=int, default=15, help="per process (default %(default)s)")
    parser.add_argument("--rate", type=int, default=200, help="samples a second (default %(default)s)")
    parser.add_argument("--native", action="store_true", help="see into extensions, gRPC's core among them; slower")
    parser.add_argument("--nonblocking", action="store_true", help="don't pause the process; some samples are wrong")
    parser.add_argument("--perf", action="store_true", help="use perf: no Python functions, but all else, and exact")
    add_stack_options(parser)
    asked = parser.parse_args(words)
    check_stack_options(parser, asked)
    return run_to_end(_run(asked))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
