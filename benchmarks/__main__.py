"""The benchmark's command: `python -m benchmarks --help`."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from functools import partial

from benchmarks import report
from benchmarks.cases import CASES, Case
from benchmarks.command import (
    PEERS,
    about,
    add_result_options,
    add_stack_options,
    check_stack_options,
    measured,
    run_to_end,
    say,
    write_results,
)
from benchmarks.perf_analyzer import p50_ms
from benchmarks.rounds import measure_all

_QUICK_SCALE = 1 / 6
_EXAMPLES = """examples:
  python -m benchmarks                                 everything, about 15 minutes
  python -m benchmarks --quick                         the same in 2 minutes, rougher
  python -m benchmarks --peers raw-proxy,headrace --cases 32,128 --rounds 6
  python -m benchmarks --triton 127.0.0.1:9001 --headrace 127.0.0.1:8001 --key KEY \\
      --pids triton=101,gateway=102,router=103,broker=104

peers: triton (called directly), envoy (a plain proxy), raw-proxy (a minimal grpc.aio proxy), raw-proxy-malloc (the same
under the allocator settings that Headrace runs with), mlserver (an identity model, as it ships), mlserver-lean (with
everything off that it can do without), headrace (headrace up).
"""


def _arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure Headrace against its peers, in turns, on this machine's loopback.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, help="how often every peer has its turn (default 4; 2 with --quick)")
    parser.add_argument("--quick", action="store_true", help="a sixth of the calls")
    parser.add_argument("--scale", type=float, default=1.0, help="multiply every case's number of calls (default 1)")
    parser.add_argument("--peers", default=",".join(PEERS), help="default: %(default)s")
    parser.add_argument("--cases", default="", help="only these: numbers in flight, or sizes, such as `32,4 MiB`")
    parser.add_argument(
        "--perf-analyzer", action="store_true", help="take p50 at 1 in flight with NVIDIA's client as well"
    )
    add_stack_options(parser)
    add_result_options(parser)
    asked = parser.parse_args(words)
    check_stack_options(parser, asked)
    asked.rounds = asked.rounds or (2 if asked.quick else 4)
    asked.scale *= _QUICK_SCALE if asked.quick else 1
    asked.cases = [case for case in CASES if _wanted(case, asked.cases)]
    asked.peers = asked.peers.split(",")
    if unknown := set(asked.peers) - set(PEERS):
        parser.error(f"unknown peers: {', '.join(sorted(unknown))}; there are {', '.join(PEERS)}")
    if not asked.cases or asked.rounds < 1 or asked.scale <= 0:
        parser.error("nothing to measure: check --cases, --rounds and --scale")
    return asked


def _wanted(case: Case, asked: str) -> bool:
    words = [word.strip() for word in asked.split(",") if word.strip()]
    return not words or any(word in (str(case.in_flight), case.name.partition(",")[0]) for word in words)


async def _run(asked: argparse.Namespace, command: str) -> int:
    second_client = partial(p50_ms, logs=asked.build / "logs") if asked.perf_analyzer else None
    async with measured(asked, asked.peers) as (load, peers):
        measurements = await measure_all(
            load, peers, asked.cases, rounds=asked.rounds, scale=asked.scale, second_client=second_client, tell=say
        )
    described = about(peers)
    page = report.markdown(measurements, asked.cases, about=described, command=command)
    data = report.as_json(measurements, asked.cases, about=described, command=command)
    write_results(asked, page, data)
    return 0


def main(words: Sequence[str]) -> int:
    """Run the benchmark; 0 when every window was measured, 1 with one line of explanation otherwise."""
    return run_to_end(_run(_arguments(words), shlex.join(["python", "-m", "benchmarks", *words])))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
