"""What a noisy tenant does to a quiet one: `python -m benchmarks.fairness --help`.

Two tenants of one gateway call one model. In each round the quiet one is alone, then beside a noisy one that offers
what it may, then beside one that offers a hundred times as much, and at last beside one that offers all that to another
gateway: what is the same there is the machine's doing, for it has to run the noisy one's client and its refusals too.
"""

import argparse
import asyncio
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, replace
from statistics import median

from benchmarks.cases import Case
from benchmarks.command import about, add_build_option, add_result_options, own_stack, run_to_end, say, write_results
from benchmarks.cpu import snapshot_ns
from benchmarks.load import LoadGenerator, Offered, load_generator
from benchmarks.peers import Peer, gateway
from benchmarks.report import table
from benchmarks.tenants import few

_CASE = Case(name="16 floats", floats=16, in_flight=1, calls=0, check_every=64)
_WARM_UP = 500
_ALONE, _SAME, _NOISE, _ELSEWHERE = "alone", "within its limit", "at 100 times it", "the same at another gateway"
_TIMES = {_ALONE: 0, _SAME: 1, _NOISE: 100, _ELSEWHERE: 100}
"""What the noisy tenant offers, in times of its limit."""
_TARGET = 2.0


@dataclass(frozen=True, kw_only=True)
class Window:
    """One measured window."""

    round: int
    beside: str
    quiet: Offered
    noisy: Offered | None
    cores: Mapping[str, float]
    """How many each process kept busy."""


async def _window(
    loads: Mapping[str, LoadGenerator], peer: Peer, asked: argparse.Namespace, *, round_number: int, beside: str
) -> Window:
    noisy: Offered | None = None
    noise = loads["noisy elsewhere" if beside == _ELSEWHERE else "noisy"]

    async def make_noise() -> None:
        nonlocal noisy
        if _TIMES[beside]:
            noisy = await noise.offer(rate=_TIMES[beside] * asked.limit, seconds=asked.seconds)

    pids = {"gateway": peer.processes["gateway"], "noisy client": noise.pid}
    before = snapshot_ns(pids)
    async with asyncio.TaskGroup() as group:
        group.create_task(make_noise())
        seen = group.create_task(loads["quiet"].offer(rate=asked.quiet, seconds=asked.seconds))
    after = snapshot_ns(pids)
    return Window(
        round=round_number,
        beside=beside,
        quiet=seen.result(),
        noisy=noisy,
        cores={name: (after[name] - before[name]) / 1e9 / asked.seconds for name in pids},
    )


def ratios(windows: Sequence[Window], beside: str, base: str = _ALONE) -> list[float]:
    """The quiet tenant's p99 beside somebody over its p99 alone, round by round."""
    alone = {one.round: one.quiet.p99_ms for one in windows if one.beside == base}
    return [one.quiet.p99_ms / alone[one.round] for one in windows if one.beside == beside]


def _page(asked: argparse.Namespace, command: str, peer: Peer, windows: Sequence[Window]) -> str:
    rows = []
    for beside in _TIMES:
        these = [one for one in windows if one.beside == beside]
        over = sorted(ratios(windows, beside))
        noisy = [one.noisy for one in these if one.noisy is not None]
        taken = sum(sum(each.accepted) for each in noisy)
        offered = taken + sum(each.unsent + sum(each.refused.values()) for each in noisy)
        rows.append(
            (
                beside,
                f"{offered}" if noisy else "-",
                f"{taken}" if noisy else "-",
                f"{median(one.quiet.p50_ms for one in these):.1f}",
                ", ".join(f"{one.quiet.p99_ms:.1f}" for one in these),
                "-" if beside == _ALONE else f"{over[0]:.2f} - **{median(over):.2f}** - {over[-1]:.2f}",
                "-" if beside != _NOISE else ("met" if median(over) <= _TARGET else "missed"),
                *(f"{median(one.cores[name] for one in these):.2f}" for name in ("gateway", "noisy client")),
            )
        )
    apart = sorted(ratios(windows, _NOISE, base=_ELSEWHERE))
    refused = sum(sum(one.quiet.refused.values()) for one in windows)
    head = ["the noisy one", "offered", "accepted", "quiet p50 ms", "quiet p99 ms", "p99 ÷ alone", f"≤ {_TARGET:.0f}"]
    head += ["gateway cores", "noisy client cores"]
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
            (
                "p99 beside the noise at the same gateway over p99 beside the same noise at another:"
                f" {apart[0]:.2f} - **{median(apart):.2f}** - {apart[-1]:.2f}.\n"
            ),
        ]
    )


async def _run(asked: argparse.Namespace, command: str) -> int:
    tenants = few(
        asked.build / "tenants-two", {"quiet": "concurrency: 1000", "noisy": f"calls_per_second: {asked.limit}"}
    )
    async with own_stack(asked.build) as stack, AsyncExitStack() as owned:
        gateways = []
        for name in ("one", "another"):
            key, settings = tenants.keys["noisy"], tenants.settings
            started = gateway.start(asked.build, stack, name=f"fairness-{name}", key=key, settings=settings)
            gateways.append(replace(await owned.enter_async_context(started), about=stack.about))
        loads = {}
        for name, tenant, peer in (
            ("quiet", "quiet", gateways[0]),
            ("noisy", "noisy", gateways[0]),
            ("noisy elsewhere", "noisy", gateways[1]),
        ):
            own = replace(peer, metadata=(("authorization", f"Bearer {tenants.keys[tenant]}"),))
            generator = load_generator(asked.build / "logs", name=name.replace(" ", "-"))
            loads[name] = await owned.enter_async_context(generator)
            await loads[name].prepare(own, _CASE, warm_up=_WARM_UP if tenant == "quiet" else 0, may_refuse=True)
        windows = []
        for number in range(asked.rounds):
            for beside in _TIMES:
                one = await _window(loads, gateways[0], asked, round_number=number, beside=beside)
                windows.append(one)
                say(f"round {number + 1}/{asked.rounds}  {beside:28}  quiet p99 {one.quiet.p99_ms:7.1f} ms")
        page = _page(asked, command, gateways[0], windows)
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
