"""Turns measurements into tables: medians per peer, and the ratios within each round against their targets."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median

from benchmarks.cases import Case
from benchmarks.rounds import Measurement

_OURS, _RAW_PROXY, _TUNED_PROXY = "Headrace", "raw proxy", "raw proxy, tuned malloc"
_MLSERVER, _LEAN_MLSERVER = "MLServer", "MLServer, lean"

_READING = "CPU is user plus system time, in microseconds per request. A p50 in brackets is perf_analyzer's."

Figure = Callable[[Measurement], float | None]


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """Headrace's figure over a peer's, taken within each round."""

    case: str
    what: str
    smallest: float
    middle: float
    largest: float
    target: float | None

    @property
    def verdict(self) -> str:
        """Judge the median: a target is for the middle of the rounds, the spread says how sure that is."""
        if self.target is None:
            return "no target"
        return "met" if self.middle <= self.target else f"missed by {self.middle / self.target - 1:.0%}"


def ratios(measurements: Sequence[Measurement], cases: Iterable[Case]) -> list[Ratio]:
    """Compare Headrace with the raw proxy and MLServer in every case that has both."""
    found = []
    for case in cases:
        questions: list[tuple[str, str, Figure, float | None]] = [
            ("CPU per request", _RAW_PROXY, lambda one: one.relay_cpu_us, case.cpu_by_raw_proxy),
            ("CPU per request", _MLSERVER, lambda one: one.relay_cpu_us, case.cpu_by_mlserver),
            ("CPU per request", _LEAN_MLSERVER, lambda one: one.relay_cpu_us, case.cpu_by_mlserver),
            ("CPU per request", _TUNED_PROXY, lambda one: one.relay_cpu_us, None),
            ("p50", _RAW_PROXY, lambda one: one.p50_ms, case.p50_by_raw_proxy),
            ("perf_analyzer's p50", _RAW_PROXY, lambda one: one.perf_analyzer_p50_ms, case.p50_by_raw_proxy),
        ]
        for what, peer, figure, target in questions:
            values = _by_round(measurements, case.name, peer, figure)
            if values:
                found.append(
                    Ratio(
                        case=case.name,
                        what=f"{what} ÷ {peer}",
                        smallest=min(values),
                        middle=median(values),
                        largest=max(values),
                        target=target,
                    )
                )
    return found


def _by_round(measurements: Sequence[Measurement], case: str, peer: str, figure: Figure) -> list[float]:
    def of(name: str) -> dict[int, float]:
        every = {one.round: figure(one) for one in measurements if one.case == case and one.peer == name}
        return {number: value for number, value in every.items() if value is not None}

    ours, theirs = of(_OURS), of(peer)
    return [ours[number] / theirs[number] for number in ours if number in theirs]


def markdown(measurements: Sequence[Measurement], cases: Sequence[Case], *, about: dict[str, str], command: str) -> str:
    """Write the whole result as a page."""
    rounds = 1 + max(one.round for one in measurements)
    parts = [
        "# Benchmark\n",
        f"`{command}`: {rounds} interleaved rounds, medians. {_READING}\n",
        table(["what", "is"], (about | {"other load": _other_load(measurements)}).items()),
    ]
    for case in cases:
        of_case = [one for one in measurements if one.case == case.name]
        if of_case:
            parts += [f"\n## {case.name}\n", _case_table(of_case)]
    compared = ratios(measurements, cases)
    if compared:
        parts += ["\n## Ratios\n", "Each is taken within a round; smallest, median and largest of the rounds.\n"]
        parts.append(_ratio_table(compared))
    return "\n".join(parts) + "\n"


def _other_load(measurements: Sequence[Measurement]) -> str:
    cores = [one.foreign_cores for one in measurements]
    return f"{median(cores):.2f} cores busy with something else (median window), {max(cores):.2f} (worst)"


def _case_table(measurements: Sequence[Measurement]) -> str:
    rows = []
    for peer in dict.fromkeys(one.peer for one in measurements):
        of_peer = [one for one in measurements if one.peer == peer]
        cpu = {name: median(one.cpu_us[name] for one in of_peer) for name in of_peer[0].cpu_us}
        client, triton = cpu.pop("client"), cpu.pop("triton", None)
        broker = cpu.pop("broker", None)
        parts = ", ".join(f"{name} {value:.0f}" for name, value in cpu.items()) if len(cpu) > 1 else ""
        relay = [one.relay_cpu_us for one in of_peer]
        spread = f"{median(relay):.0f} ({min(relay):.0f}-{max(relay):.0f})" if any(relay) else "-"
        analyzer = [one.perf_analyzer_p50_ms for one in of_peer if one.perf_analyzer_p50_ms is not None]
        rows.append(
            (
                peer,
                spread,
                parts or "-",
                _figure(broker),
                _figure(triton),
                _figure(client),
                f"{median(one.p50_ms for one in of_peer):.2f}" + (f" ({median(analyzer):.2f})" if analyzer else ""),
                f"{median(one.p99_ms for one in of_peer):.2f}",
                f"{median(one.calls_per_second for one in of_peer):.0f}",
            )
        )
    head = ["peer", "relay CPU µs", "of it", "broker", "Triton", "client", "p50 ms", "p99 ms", "calls/s"]
    return table(head, rows)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


def _ratio_table(compared: Iterable[Ratio]) -> str:
    rows = [
        (
            one.case,
            one.what,
            f"{one.smallest:.2f} - **{one.middle:.2f}** - {one.largest:.2f}",
            "-" if one.target is None else f"≤ {one.target}",
            one.verdict,
        )
        for one in compared
    ]
    return table(["case", "Headrace's", "ratio", "target", "verdict"], rows)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write rows as a table of Markdown."""
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines)


def as_json(
    measurements: Sequence[Measurement], cases: Sequence[Case], *, about: Mapping[str, str], command: str
) -> str:
    """Write every single measurement down, for whoever wants to compute something else from it."""
    compared = [asdict(one) | {"verdict": one.verdict} for one in ratios(measurements, cases)]
    whole = {"about": dict(about), "command": command, "measurements": [asdict(one) for one in measurements]}
    return json.dumps(whole | {"ratios": compared}, indent=1, ensure_ascii=False) + "\n"
