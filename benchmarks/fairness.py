"""What a noisy tenant does to a quiet one: `python -m benchmarks.fairness --help`.

Two tenants of one gateway call one model. In each round the quiet one is alone, then beside a noisy one that offers
what it may, and then beside one that offers a hundred times as much.
"""

import argparse
import asyncio
import json
import shlex
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, replace
from statistics import median

from benchmarks.cases import Case
from benchmarks.command import about, add_build_option, add_result_options, own_stack, run_to_end, say, write_results
from benchmarks.load import LoadGenerator, Offered, load_generator
from benchmarks.peers import Peer, gateway
from benchmarks.report import table
from benchmarks.tenants import few

_CASE = Case(name="16 floats", floats=16, in_flight=1, calls=0, check_every=64)
_WARM_UP = 500
_TIMES = (0, 1, 100)
"""What the noisy tenant offers, in times of its limit."""
_TARGET = 2.0


@dataclass(frozen=True, kw_only=True)
class Window:
    """One measured window."""

    round: int
    times: int
    quiet: Offered
    noisy: Offered | None


async def _window(
    quiet: LoadGenerator, noisy: LoadGenerator, asked: argparse.Namespace, *, round_number: int, times: int
) -> Window:
    beside: Offered | None = None

    async def make_noise() -> None:
        nonlocal beside
        if times:
            beside = await noisy.offer(rate=times * asked.limit, seconds=asked.seconds)

    async with asyncio.TaskGroup() as group:
        group.create_task(make_noise())
        seen = group.create_task(quiet.offer(rate=asked.quiet, seconds=asked.seconds))
    return Window(round=round_number, times=times, quiet=seen.result(), noisy=beside)


def ratios(windows: Sequence[Window], times: int) -> list[float]:
    """The quiet tenant's p99 beside the noisy one over its p99 alone, round by round."""
    alone = {one.round: one.quiet.p99_ms for one in windows if not one.times}
    return [one.quiet.p99_ms / alone[one.round] for one in windows if one.times == times]


def _page(asked: argparse.Namespace, command: str, peer: Peer, windows: Sequence[Window]) -> str:
    rows = []
    for times in _TIMES:
        these = [one for one in windows if one.times == times]
        over = sorted(ratios(windows, times))
        noisy = [one.noisy for one in these if one.noisy is not None]
        taken = sum(sum(each.accepted) for each in noisy)
        offered = taken + sum(each.unsent + sum(each.refused.values()) for each in noisy)
        rows.append(
            (
                f"{times}",
                f"{offered}" if noisy else "-",
                f"{taken}" if noisy else "-",
                f"{median(one.quiet.p50_ms for one in these):.1f}",
                ", ".join(f"{one.quiet.p99_ms:.1f}" for one in these),
                f"{over[0]:.2f} - **{median(over):.2f}** - {over[-1]:.2f}" if times else "-",
                "-" if times != _TIMES[-1] else ("met" if median(over) <= _TARGET else "missed"),
            )
        )
    refused = sum(sum(one.quiet.refused.values()) for one in windows)
    head = ["times its limit", "offered", "accepted", "quiet p50 ms", "quiet p99 ms", "p99 ÷ alone", f"≤ {_TARGET:.0f}"]
    return "\n".join(
        [
            "# Fairness\n",
            (
                f"`{command}`: {asked.rounds} rounds of {asked.seconds:.0f} s windows. The quiet tenant offers"
                f" {asked.quiet:.0f} calls a second, the noisy one may make {asked.limit:.0f}. Latencies count from"
                f" when a call was due. Of the quiet tenant's calls {refused} were refused.\n"
            ),
            table(["what", "is"], about([peer]).items()),
            "",
            table(head, rows),
            "",
        ]
    )


async def _run(asked: argparse.Namespace, command: str) -> int:
    tenants = few(
        asked.build / "tenants-two", {"quiet": "concurrency: 1000", "noisy": f"calls_per_second: {asked.limit}"}
    )
    async with own_stack(asked.build) as stack, AsyncExitStack() as owned:
        peers, loads = {}, {}
        first: Peer | None = None
        for name, key in tenants.keys.items():
            if first is None:
                started = gateway.start(asked.build, stack, name="fairness", key=key, settings=tenants.settings)
                first = await owned.enter_async_context(started)
            peers[name] = replace(first, name=name, metadata=(("authorization", f"Bearer {key}"),), about=stack.about)
            loads[name] = await owned.enter_async_context(load_generator(asked.build / "logs", name=name))
            warm_up = _WARM_UP if name == "quiet" else 0
            await loads[name].prepare(peers[name], _CASE, warm_up=warm_up, may_refuse=True)
        windows = []
        for number in range(asked.rounds):
            for times in _TIMES:
                one = await _window(loads["quiet"], loads["noisy"], asked, round_number=number, times=times)
                windows.append(one)
                say(
                    f"round {number + 1}/{asked.rounds}  noisy at {times:3} times  quiet p99 {one.quiet.p99_ms:7.1f} ms"
                )
        page = _page(asked, command, peers["quiet"], windows)
    data = json.dumps([asdict(one) for one in windows], indent=1)
    write_results(asked, page, data + "\n", name="fairness")
    return 0


def main(words: Sequence[str]) -> int:
    """Run the benchmark; 0 when everything was measured, 1 with one line of explanation otherwise."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.fairness",
        description="Measure what a tenant far above its limit does to the latency of another.",
    )
    parser.add_argument("--rounds", type=int, default=6, help="default %(default)s")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each window (default %(default)s)")
    parser.add_argument("--quiet", type=float, default=50.0, help="calls a second of the quiet tenant (default 50)")
    parser.add_argument("--limit", type=float, default=10.0, help="calls a second of the noisy tenant (default 10)")
    add_build_option(parser)
    add_result_options(parser)
    asked = parser.parse_args(words)
    return run_to_end(_run(asked, shlex.join(["python", "-m", "benchmarks.fairness", *words])))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
