"""What traces cost a gateway: `python -m benchmarks.telemetry --help`.

Gateways that differ in nothing but their settings stand on one log, before one router and one Triton, and take turns.
Metrics are counted by all of them: there is no gateway without.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, replace
from statistics import median

from benchmarks import otlp_receiver
from benchmarks.cases import CASES
from benchmarks.command import about, add_build_option, add_result_options, own_stack, run_to_end, say, write_results
from benchmarks.load import load_generator
from benchmarks.peers import Peer, gateway, headrace
from benchmarks.report import table
from benchmarks.rounds import Measurement, measure_all
from headrace.local import state

_TARGET = 1.05
_OFF, _ONE, _HONOURED, _ALL = "off", "1 %", "1 %, callers honoured", "100 %"
_MEANING = {
    _OFF: "no receiver: nothing is traced",
    _ONE: "one call of a hundred is traced, and its spans are sent to a receiver on this machine",
    _HONOURED: "the same, and every call is searched for a `traceparent`, of which there is none",
    _ALL: "every call is traced",
}
_JUDGED = (_ONE, _HONOURED)


@dataclass(frozen=True, kw_only=True)
class _Found:
    command: str
    about: Mapping[str, str]
    measurements: Sequence[Measurement]
    spans: Mapping[str, int]
    """What the receiver got of each gateway, warm-ups included."""


async def _gateways(asked: argparse.Namespace, stack: Peer, port: int, owned: AsyncExitStack) -> list[Peer]:
    [(_, bearer)] = stack.metadata
    alone = {"GATEWAY__IDENTITY__DEVELOPMENT_KEY_FILE": str(asked.build / headrace.STATE / state.GIVEN_KEY)}
    receiver = {"TRACES__ENDPOINT": f"http://127.0.0.1:{port}"}
    settings: dict[str, Mapping[str, str]] = {
        _OFF: {},
        _ONE: receiver | {"TRACES__SAMPLE_RATIO": "0.01"},
        _HONOURED: receiver | {"TRACES__SAMPLE_RATIO": "0.01", "TRACES__HONOUR_CALLERS": "true"},
        _ALL: receiver | {"TRACES__SAMPLE_RATIO": "1"},
    }
    peers = []
    for name, own in settings.items():
        say(f"starting the gateway `{name}`")
        key = bearer.removeprefix("Bearer ")
        started = gateway.start(asked.build, stack, name=_slug(name), key=key, settings={**alone, **own})
        peers.append(replace(await owned.enter_async_context(started), name=name, about=stack.about))
    return peers


def _slug(name: str) -> str:
    return name.replace(" %", "").replace(", ", "-").replace(" ", "-")


def ratios(measurements: Sequence[Measurement], case: str, name: str) -> list[float]:
    """A gateway's CPU per call over that of the one without traces, round by round."""
    by_round = {(one.round, one.peer): one.relay_cpu_us for one in measurements if one.case == case}
    return [cpu / by_round[number, _OFF] for (number, peer), cpu in by_round.items() if peer == name]


def _page(asked: argparse.Namespace, found: _Found) -> str:
    parts = [
        "# Telemetry\n",
        f"`{found.command}`: {asked.rounds} interleaved rounds. CPU is the gateway's, in µs per call.\n",
        table(["what", "is"], found.about.items()),
        "",
        table(
            ["gateway", "its settings", "spans received"],
            [(name, text, str(found.spans.get(name, 0))) for name, text in _MEANING.items()],
        ),
    ]
    for case in asked.cases:
        rows = []
        for name in _MEANING:
            of = [one for one in found.measurements if (one.case, one.peer) == (case.name, name)]
            cpu, over = [one.relay_cpu_us for one in of], sorted(ratios(found.measurements, case.name, name))
            rows.append(
                (
                    name,
                    f"{median(cpu):.0f} ({min(cpu):.0f}-{max(cpu):.0f})",
                    f"{over[0]:.3f} - **{median(over):.3f}** - {over[-1]:.3f}",
                    f"{median(one.p50_ms for one in of):.2f} / {median(one.p99_ms for one in of):.2f}",
                    ("met" if median(over) <= _TARGET else "missed") if name in _JUDGED else "-",
                )
            )
        head = ["gateway", "CPU µs", "÷ off, by round", "p50 / p99 ms", f"≤ {_TARGET}"]
        parts += [f"\n## {case.name}\n", table(head, rows)]
    return "\n".join(parts) + "\n"


async def _run(asked: argparse.Namespace, command: str) -> int:
    async with own_stack(asked.build) as stack, AsyncExitStack() as owned:
        port = await owned.enter_async_context(otlp_receiver.start(asked.build))
        peers = await _gateways(asked, stack, port, owned)
        load = await owned.enter_async_context(load_generator(asked.build / "logs"))
        measurements = await measure_all(
            load, peers, asked.cases, rounds=asked.rounds, scale=asked.scale, second_client=None, tell=say
        )
        sent = await otlp_receiver.counted(port)
    spans = {name: sent.get(f"benchmark-{_slug(name)}", 0) for name in _MEANING}
    found = _Found(command=command, about=about(peers), measurements=measurements, spans=spans)
    data = json.dumps(asdict(found), indent=1, ensure_ascii=False)
    write_results(asked, _page(asked, found), data + "\n", name="telemetry")
    return 0


def main(words: Sequence[str]) -> int:
    """Run the benchmark; 0 when everything was measured, 1 with one line of explanation otherwise."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.telemetry", description="Measure what traces cost a gateway, in turns."
    )
    parser.add_argument("--rounds", type=int, default=12, help="how often each has its turn (default %(default)s)")
    parser.add_argument(
        "--scale", type=float, default=0.15, help="of each case's number of calls (default %(default)s)"
    )
    parser.add_argument("--in-flight", default="32,128", help="calls at a time, some of 1, 8, 32, 128 (default 32,128)")
    add_build_option(parser)
    add_result_options(parser)
    asked = parser.parse_args(words)
    wanted = asked.in_flight.split(",")
    asked.cases = [case for case in CASES if case.floats == 16 and str(case.in_flight) in wanted]  # noqa: PLR2004
    if not asked.cases or asked.rounds < 1 or asked.scale <= 0:
        parser.error("nothing to measure: check --in-flight, --rounds and --scale")
    return run_to_end(_run(asked, shlex.join(["python", "-m", "benchmarks.telemetry", *words])))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
