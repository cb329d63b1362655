"""What knowing callers and holding them to limits costs: `python -m benchmarks.access --help`.

Gateways that differ in nothing but their settings stand on one log, before one router and one Triton, and take turns.
"""

import argparse
import asyncio
import json
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, replace
from statistics import median

from benchmarks import valkey
from benchmarks.cases import CASES, Case
from benchmarks.children import ChildFailedError, free_port
from benchmarks.command import (
    about,
    add_build_option,
    add_result_options,
    own_stack,
    run_to_end,
    say,
    write_results,
)
from benchmarks.load import LoadGenerator, load_generator
from benchmarks.peers import Peer, gateway, headrace
from benchmarks.report import table
from benchmarks.rounds import Measurement, measure_all
from benchmarks.tenants import many
from headrace.local import state
from headrace.local.options import DATABASE

_TENANTS, _KEYS = 1000, 100_000
_TARGET, _STALL_MS = 1.05, 10.0
_OFF, _LIMITS, _EVERY, _SHARED, _ALL = "off", "limits", "every limit", "shared limits", "shared limits, quotas"
_MEANING = {
    _OFF: "one key, no policy: who has the key may call everything",
    _LIMITS: "100,000 keys, a policy of 1,000 tenants: 2 rates of calls, 1 of bytes, 3 of calls at a time, a size",
    _EVERY: "the same, with 5 rates of calls, 5 of bytes, 5 of calls at a time",
    _SHARED: "as `limits`, counted for all gateways in a Valkey",
    _ALL: "the same, and two quotas, counted in a database",
}
_RATES = (10, 100, 1000)
_RATE_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True)
class _Found:
    command: str
    about: Mapping[str, str]
    measurements: Sequence[Measurement]
    traffic: Sequence[tuple[str, int, int]]
    late_ms: Mapping[str, Sequence[float]]


async def _gateways(asked: argparse.Namespace, stack: Peer, port: int, owned: AsyncExitStack) -> list[Peer]:
    say(f"writing {_KEYS} keys and {_TENANTS} tenants")
    limited = many(asked.build / "tenants", tenants=_TENANTS, keys=_KEYS)
    every = many(asked.build / "tenants-every", tenants=_TENANTS, keys=_KEYS, everywhere=True)
    counted = many(asked.build / "tenants-quotas", tenants=_TENANTS, keys=_KEYS, quotas=True)
    folder = asked.build / headrace.STATE
    shared = {"GATEWAY__SHARED_LIMITS__REDIS_URL": f"redis://127.0.0.1:{port}"}
    stored = {"DATABASE__URL": f"sqlite:///{folder / DATABASE}"}
    alone = {"GATEWAY__IDENTITY__DEVELOPMENT_KEY_FILE": str(folder / state.GIVEN_KEY)}
    [(_, bearer)] = stack.metadata
    key, every_key, counted_key = (next(iter(each.keys.values())) for each in (limited, every, counted))
    settings: dict[str, tuple[str, Mapping[str, str]]] = {
        _OFF: (bearer.removeprefix("Bearer "), alone),
        _LIMITS: (key, limited.settings),
        _EVERY: (every_key, every.settings),
        _SHARED: (key, limited.settings | shared),
        _ALL: (counted_key, counted.settings | shared | stored),
    }
    peers = []
    for name, (own_key, own) in settings.items():
        say(f"starting the gateway `{name}`")
        started = gateway.start(asked.build, stack, name=_slug(name), key=own_key, settings=own)
        peers.append(replace(await owned.enter_async_context(started), name=name, about=stack.about))
    return peers


def _slug(name: str) -> str:
    return name.replace(", ", "-").replace(" ", "-")


async def _traffic(load: LoadGenerator, peer: Peer, case: Case, port: int) -> list[tuple[str, int, int]]:
    """Count the store's commands while calls come at several rates: the rate, the calls, the commands."""
    await load.prepare(peer, case, warm_up=case.in_flight)
    found = []
    for rate in _RATES:
        before = await valkey.commands(port)
        offered = await load.offer(rate=rate, seconds=_RATE_SECONDS)
        found.append((f"{rate}", sum(offered.accepted), await valkey.commands(port) - before))
    before = await valkey.commands(port)
    seen = await load.run(case.calls)
    found.append((f"{case.calls / seen.seconds:.0f} (all it can)", case.calls, await valkey.commands(port) - before))
    return found


async def _stalls(asked: argparse.Namespace) -> dict[str, list[float]]:
    folder, stack = asked.build / "tenants-quotas", asked.build / headrace.STATE
    files = (folder / "tenants.yaml", folder / "keys.toml", stack / DATABASE)
    argv = [sys.executable, "-m", "benchmarks.reloading", *map(str, files)]
    process = await asyncio.create_subprocess_exec(*argv, stdout=subprocess.PIPE)
    async with asyncio.timeout(180):
        out, _ = await process.communicate()
    if process.returncode:
        raise ChildFailedError(f"benchmarks.reloading ended with {process.returncode}")
    late: dict[str, list[float]] = json.loads(out)
    return late


def ratios(measurements: Sequence[Measurement], case: str, name: str) -> list[float]:
    """A gateway's CPU per call over that of the one with everything off, round by round."""
    by_round = {(one.round, one.peer): one.relay_cpu_us for one in measurements if one.case == case}
    return [cpu / by_round[number, _OFF] for (number, peer), cpu in by_round.items() if peer == name]


def _page(asked: argparse.Namespace, found: "_Found") -> str:
    parts = [
        "# Access\n",
        f"`{found.command}`: {asked.rounds} interleaved rounds. CPU is the gateway's, in µs per call.\n",
        table(["what", "is"], found.about.items()),
        "",
        table(["gateway", "its settings"], _MEANING.items()),
    ]
    for case in asked.cases:
        rows = []
        for name in _MEANING:
            cpu = [one.relay_cpu_us for one in found.measurements if (one.case, one.peer) == (case.name, name)]
            over = sorted(ratios(found.measurements, case.name, name))
            spread = f"{over[0]:.3f} - **{median(over):.3f}** - {over[-1]:.3f}"
            verdict = "-" if name == _OFF else ("met" if median(over) <= _TARGET else "missed")
            rows.append((name, f"{median(cpu):.0f} ({min(cpu):.0f}-{max(cpu):.0f})", spread, verdict))
        head = ["gateway", "CPU µs", "÷ off, by round", f"≤ {_TARGET}"]
        parts += [f"\n## {case.name}\n", table(head, rows)]
    parts += [
        f"\n## Commands to the store, {_RATE_SECONDS:.0f} s at each rate\n",
        table(
            ["calls a second", "calls", "commands", "commands per call"],
            [(rate, str(calls), str(sent), f"{sent / calls:.4f}") for rate, calls, sent in found.traffic],
        ),
        "\n## The loop while a policy of 1,000 tenants is read again\n",
        "By how many ms a clock of 1 ms was late at most, round by round.\n",
        table(
            ["policy", "ms", f"≤ {_STALL_MS:.0f}"],
            [
                (name, ", ".join(f"{each:.1f}" for each in ms), "met" if max(ms) <= _STALL_MS else "missed")
                for name, ms in found.late_ms.items()
            ],
        ),
    ]
    return "\n".join(parts) + "\n"


async def _run(asked: argparse.Namespace, command: str) -> int:
    port = free_port()
    async with own_stack(asked.build) as stack, AsyncExitStack() as owned:
        await owned.enter_async_context(valkey.start(asked.build, port))
        peers = await _gateways(asked, stack, port, owned)
        say("reading the policy again and again")
        late = await _stalls(asked)
        load = await owned.enter_async_context(load_generator(asked.build / "logs"))
        measurements = await measure_all(
            load, peers, asked.cases, rounds=asked.rounds, scale=asked.scale, second_client=None, tell=say
        )
        say("counting what goes to the store")
        traffic = await _traffic(load, next(peer for peer in peers if peer.name == _SHARED), asked.cases[0], port)
    found = _Found(command=command, about=about(peers), measurements=measurements, traffic=traffic, late_ms=late)
    data = json.dumps(asdict(found), indent=1, ensure_ascii=False)
    write_results(asked, _page(asked, found), data + "\n", name="access")
    return 0


def main(words: Sequence[str]) -> int:
    """Run the benchmark; 0 when everything was measured, 1 with one line of explanation otherwise."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.access",
        description="Measure what identity, authorisation, limits and quotas cost a gateway, in turns.",
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
    return run_to_end(_run(asked, shlex.join(["python", "-m", "benchmarks.access", *words])))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
