"""Watches memory: `python -m benchmarks.soak --help`.

Two questions. Does the resident memory of gateway and router stay flat over many calls? And is it bounded, by limits
that can be stated, while very many large calls are in flight at once?
"""

import argparse
import asyncio
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import linear_regression, mean

from benchmarks.cases import Case
from benchmarks.command import add_stack_options, check_stack_options, measured, run_to_end, say
from benchmarks.cpu import rss_bytes
from benchmarks.load import LoadGenerator
from benchmarks.peers import Peer
from gateway.settings import BoundSettings
from headrace.bus.log import UNDER_WAY_BYTES
from router.settings import ReplyLinkSettings, WindowSettings

_MIB = 1024**2
_SAMPLES = 40
_WARM_UP_SHARE = 0.1
_FLAT_SHARE = 0.03
_FLAT_MIB = 4.0
_COPY_WINDOW = 128  # `headrace_window` of the model copy
_LARGE_BYTES = 4 * _MIB
_SAMPLE_SECONDS = 0.05
_ON_THEIR_WAY_MIB = 4 * _LARGE_BYTES / _MIB


@dataclass(frozen=True, kw_only=True)
class Growth:
    """How one process' memory went over a number of calls."""

    first_mib: float
    """Mean of the first quarter of the samples."""
    last_mib: float
    slope_kib_per_1000_calls: float

    @property
    def flat(self) -> bool:
        """Whether the last quarter is no more than 3 % or 4 MiB above the first: what a leak would soon exceed."""
        return self.last_mib - self.first_mib <= max(_FLAT_MIB, _FLAT_SHARE * self.first_mib)


def growth(calls: Sequence[int], mib: Sequence[float]) -> Growth:
    """Fit a line through the samples, and compare their first quarter with the last."""
    quarter = max(1, len(mib) // 4)
    return Growth(
        first_mib=mean(mib[:quarter]),
        last_mib=mean(mib[-quarter:]),
        slope_kib_per_1000_calls=linear_regression(calls, mib).slope * 1024 * 1000,
    )


def _sample(peer: Peer) -> dict[str, float]:
    return {name: rss_bytes(peer.processes[name]) / _MIB for name in peer.relay}


async def _many_calls(load: LoadGenerator, peer: Peer, asked: argparse.Namespace) -> bool:
    case = Case(name="soak", floats=16, in_flight=asked.in_flight, calls=asked.calls, check_every=64)
    await load.prepare(peer, case, warm_up=int(asked.calls * _WARM_UP_SHARE))
    done, samples = [0], [_sample(peer)]
    share = max(asked.in_flight, asked.calls // _SAMPLES)
    while done[-1] < asked.calls:
        seen = await load.run(share)
        done.append(done[-1] + share)
        samples.append(_sample(peer))
        say(f"{done[-1]:8} calls  {share / seen.seconds:6.0f}/s  " + _line(samples[-1]))
    sys.stdout.write(f"\n{done[-1]} calls of 16 floats, {asked.in_flight} in flight, {len(samples)} samples\n")
    all_flat = True
    for name in peer.relay:
        grown = growth(done, [sample[name] for sample in samples])
        all_flat = all_flat and grown.flat
        sys.stdout.write(
            f"  {name:8} first quarter {grown.first_mib:7.1f} MiB, last {grown.last_mib:7.1f} MiB,"
            f" slope {grown.slope_kib_per_1000_calls:+.1f} KiB per 1000 calls: {'flat' if grown.flat else 'GROWS'}\n"
        )
    return all_flat


def bounds_mib(idle: dict[str, float], *, in_flight: int) -> dict[str, float]:
    """State how much each process may hold at most, by its settings.

    Gateway: every waiting request, bounded by `bounds.request_bytes`; of a window of them the answer, as it came and as
    it is being sent; what of the requests the log's client has; and as much again of what is being received. Router:
    what is fetched and not begun; a window of requests with their answers; and answers that the gateway has not
    acknowledged. Both: the messages that are on their way from one buffer into another.
    """
    air = in_flight * _LARGE_BYTES / _MIB
    window = min(_COPY_WINDOW, in_flight) * _LARGE_BYTES / _MIB
    requests = min(air, BoundSettings().request_bytes / _MIB)
    waiting, unacknowledged = WindowSettings().waiting_bytes, ReplyLinkSettings().unacknowledged_bytes
    return {
        "gateway": idle["gateway"] + requests + 2 * window + 2 * min(air, UNDER_WAY_BYTES / _MIB) + _ON_THEIR_WAY_MIB,
        "router": idle["router"] + waiting / _MIB + 2 * window + unacknowledged / _MIB + _ON_THEIR_WAY_MIB,
    }


async def _large_calls(load: LoadGenerator, peer: Peer, asked: argparse.Namespace) -> bool:
    in_flight = asked.large_in_flight
    case = Case(name="large", floats=_LARGE_BYTES // 4, in_flight=in_flight, calls=asked.large_calls, check_every=16)
    idle = _sample(peer)
    await load.prepare(peer, case, warm_up=0, may_refuse=True)
    peak = dict(idle)
    watching = asyncio.create_task(_watch(peer, peak), name="watch memory")
    try:
        seen = await load.run(asked.large_calls)
    finally:
        watching.cancel()
        await asyncio.wait([watching])
    left = _sample(peer)
    bounds = bounds_mib(idle, in_flight=in_flight)
    sys.stdout.write(
        f"\n{asked.large_calls} calls of 4 MiB, {in_flight} in flight ({in_flight * 4} MiB of requests at once),"
        f" {seen.refused} refused as too much, p50 {seen.p50_ms:.0f} ms\n"
    )
    for name in peer.relay:
        within = "within" if peak[name] <= bounds[name] else "ABOVE"
        sys.stdout.write(
            f"  {name:8} idle {idle[name]:7.1f} MiB, peak {peak[name]:7.1f} MiB, afterwards {left[name]:7.1f} MiB:"
            f" {within} its bound of {bounds[name]:.0f} MiB\n"
        )
    has_room = in_flight * _LARGE_BYTES <= BoundSettings().request_bytes
    return all(peak[name] <= bounds[name] for name in peer.relay) and not (seen.refused and has_room)


async def _watch(peer: Peer, peak: dict[str, float]) -> None:
    while True:
        for name, mib in _sample(peer).items():
            peak[name] = max(peak[name], mib)
        await asyncio.sleep(_SAMPLE_SECONDS)


def _line(sample: dict[str, float]) -> str:
    return "  ".join(f"{name} {mib:7.1f} MiB" for name, mib in sample.items())


async def _run(asked: argparse.Namespace) -> int:
    fine = []
    async with measured(asked, ["headrace"]) as (load, [peer]):
        if asked.calls:
            fine.append(await _many_calls(load, peer, asked))
        if asked.large_calls:
            fine.append(await _large_calls(load, peer, asked))
    return 0 if all(fine) else 1


def main(words: Sequence[str]) -> int:
    """Run the soak; 0 when memory stayed flat and bounded, 1 otherwise."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.soak",
        description="Watch the resident memory of gateway and router over many calls, and under many large ones.",
    )
    parser.add_argument("--calls", type=int, default=200_000, help="small calls; 0: none (default %(default)s)")
    parser.add_argument("--in-flight", type=int, default=32, help="of them at a time (default %(default)s)")
    parser.add_argument("--large-calls", type=int, default=800, help="calls of 4 MiB; 0: none (default %(default)s)")
    parser.add_argument("--large-in-flight", type=int, default=200, help="of them at a time (default %(default)s)")
    add_stack_options(parser)
    asked = parser.parse_args(words)
    check_stack_options(parser, asked)
    return run_to_end(_run(asked))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
