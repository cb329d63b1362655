"""Measures the peers in turns: every case of a round, every peer of a case, round after round."""

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from benchmarks.cases import Case
from benchmarks.cpu import busy_seconds, rss_bytes, snapshot_ns, sum_of
from benchmarks.load import LoadGenerator
from benchmarks.peers import Peer

_WARM_UP_SHARE = 0.1
_FIRST_CALLS = 2000
"""What a peer answers before anything is measured: a broker's JVM compiles its code while it runs."""

SecondClient = Callable[[Peer], Awaitable[float | None]]
"""Takes p50 at one call in flight in its own way, in milliseconds; None where it can't call this peer."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One measured window: one peer, one case, one round."""

    round: int
    case: str
    peer: str
    calls: int
    seconds: float
    calls_per_second: float
    p50_ms: float
    p99_ms: float
    max_ms: float
    checked: int
    cpu_us: Mapping[str, float]
    """User plus system microseconds per call, by component; the load generator's as `client`."""
    relay_cpu_us: float
    """The sum over the components that stand between client and model; 0 for the model server itself."""
    foreign_cores: float
    """How many cores everything else on the machine kept busy meanwhile: what is far above 0.1 blurs the figures."""
    rss_mib: Mapping[str, float]
    """Resident memory at the window's end, by component."""
    perf_analyzer_p50_ms: float | None = None
    """p50 as NVIDIA's client saw it right after the window; its own part of it is smaller than our client's."""


def turns(peers: Sequence[Peer], round_number: int) -> Iterator[Peer]:
    """Order the peers of a round: each round begins with another, so that nobody always follows the same neighbour."""
    begin = round_number % len(peers)
    yield from (*peers[begin:], *peers[:begin])


async def measure(load: LoadGenerator, peer: Peer, case: Case, *, round_number: int, calls: int) -> Measurement:
    """Measure one window.

    Raises:
        LoadFailedError: a call failed or was answered wrongly; there is no figure then.
        ProcessGoneError: a process that is measured ended.
    """
    await load.prepare(peer, case, warm_up=max(case.in_flight, int(calls * _WARM_UP_SHARE)))
    pids = {**peer.processes, "client": load.pid}
    busy, before = busy_seconds(), snapshot_ns(pids)
    seen = await load.run(calls)
    after, busy = snapshot_ns(pids), busy_seconds() - busy
    cpu_us = {name: (after[name] - before[name]) / calls / 1000 for name in pids}
    return Measurement(
        round=round_number,
        case=case.name,
        peer=peer.name,
        calls=calls,
        seconds=seen.seconds,
        calls_per_second=calls / seen.seconds,
        p50_ms=seen.p50_ms,
        p99_ms=seen.p99_ms,
        max_ms=seen.max_ms,
        checked=seen.checked,
        cpu_us=cpu_us,
        relay_cpu_us=sum_of(cpu_us, peer.relay),
        foreign_cores=max(0.0, busy / seen.seconds - sum(cpu_us.values()) * calls / seen.seconds / 1e6),
        rss_mib={name: rss_bytes(pid) / 1024**2 for name, pid in peer.processes.items()},
    )


async def measure_all(
    load: LoadGenerator,
    peers: Sequence[Peer],
    cases: Sequence[Case],
    *,
    rounds: int,
    scale: float,
    second_client: SecondClient | None,
    tell: Callable[[str], None],
) -> list[Measurement]:
    """Measure every peer in every case, `rounds` times, A B C A B C ...

    Ratios are later taken within a round, where both sides met the same machine: it may be shared and change its pace.
    """
    measurements = []
    for peer in peers:
        tell(f"warming up {peer.name}")
        await load.prepare(peer, cases[0], warm_up=min(_FIRST_CALLS, cases[0].calls))
    for round_number in range(rounds):
        for case in cases:
            calls = max(2 * case.in_flight, int(case.calls * scale))
            for peer in turns(peers, round_number):
                done = await measure(load, peer, case, round_number=round_number, calls=calls)
                if second_client and case.in_flight == 1:
                    done = replace(done, perf_analyzer_p50_ms=await second_client(peer))
                measurements.append(done)
                tell(
                    f"round {round_number + 1}/{rounds}  {case.name:24}  {peer.name:16}"
                    f"  {done.calls_per_second:8.0f}/s  p50 {done.p50_ms:8.2f} ms  relay {done.relay_cpu_us:8.0f} µs"
                )
    return measurements
