"""What a tenant gets of one limit through three gateways: `python -m benchmarks.shared_limits --help`.

Three gateways share their limits through a real Valkey, and a tenant offers each of them far more than its part. Once
with the Valkey there all the time, then in each mode with the Valkey killed when a third is over, and back after two.
"""

import argparse
import asyncio
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace

from benchmarks import valkey
from benchmarks.cases import Case
from benchmarks.children import free_port
from benchmarks.command import about, add_build_option, add_result_options, own_stack, run_to_end, say, write_results
from benchmarks.load import Offered, load_generator
from benchmarks.peers import Peer, gateway
from benchmarks.report import table
from benchmarks.tenants import few
from gateway.limits.balance import LEASE_SECONDS

_CASE = Case(name="16 floats", floats=16, in_flight=1, calls=0, check_every=64)
_GATEWAYS = 3
_MODES = ("local_share", "deny", "allow")
_TENANT = "shared"


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run: what came in, second by second, over all gateways."""

    name: str
    accepted: Sequence[int]
    refused: Mapping[str, int]
    unsent: int


def most(limit: float, seconds: float, gateways: int = _GATEWAYS) -> float:
    """The most that may come in, as `gateway.limits.leases` states it, with a burst of a second's worth."""
    lease = max(1.0, limit * LEASE_SECONDS)
    start = max(1.0, min(lease, limit) / gateways)
    return limit + limit * seconds + gateways * (lease + start)


def together(name: str, offers: Sequence[Offered]) -> Run:
    """Add up what was offered to each gateway."""
    refused: dict[str, int] = {}
    for offered in offers:
        for reason, count in offered.refused.items():
            refused[reason] = refused.get(reason, 0) + count
    accepted = [sum(parts) for parts in zip(*(offered.accepted for offered in offers), strict=True)]
    return Run(name=name, accepted=accepted, refused=refused, unsent=sum(offered.unsent for offered in offers))


async def _one(asked: argparse.Namespace, stack: Peer, mode: str, *, killed: bool) -> Run:
    port = free_port()
    tenants = few(asked.build / "tenants-one", {_TENANT: f"calls_per_second: {asked.limit}"})
    key = tenants.keys[_TENANT]
    settings = tenants.settings | {
        "GATEWAY__SHARED_LIMITS__REDIS_URL": f"redis://127.0.0.1:{port}",
        "GATEWAY__SHARED_LIMITS__WHEN_AWAY": mode,
    }
    async with AsyncExitStack() as owned:
        store = AsyncExitStack()
        owned.push_async_callback(store.aclose)
        await store.enter_async_context(valkey.start(asked.build, port))
        loads = []
        for number in range(_GATEWAYS):
            started = gateway.start(asked.build, stack, name=f"{mode}-{number}", key=key, settings=settings)
            peer = replace(await owned.enter_async_context(started), about=stack.about)
            load = await owned.enter_async_context(load_generator(asked.build / "logs", name=f"loader-{number}"))
            await load.prepare(peer, _CASE, warm_up=20, may_refuse=True)
            loads.append(load)
        await asyncio.sleep(2)  # the bucket is full again
        async with asyncio.TaskGroup() as group:
            offers = [
                group.create_task(load.offer(rate=asked.offered / _GATEWAYS, seconds=asked.seconds)) for load in loads
            ]
            if killed:
                await asyncio.sleep(asked.seconds / 3)  # the time that the run is about
                await store.aclose()
                await asyncio.sleep(asked.seconds / 3)
                await store.enter_async_context(valkey.start(asked.build, port))
        return together(f"{mode}, killed" if killed else mode, [each.result() for each in offers])


def _page(asked: argparse.Namespace, command: str, stack: Peer, runs: Sequence[Run]) -> str:
    third = round(asked.seconds / 3)
    rows = []
    for run in runs:
        parts = [run.accepted[:third], run.accepted[third : 2 * third], run.accepted[2 * third :]]
        shown = [f"{sum(part)}" for part in parts]
        refused = ", ".join(f"{reason} {count}" for reason, count in sorted(run.refused.items()))
        rows.append((run.name, f"{sum(run.accepted)}", *shown, refused, f"{run.unsent}"))
    head = ["mode", "accepted", "first third", "second", "last", "refused", "not sent"]
    seconds = [(run.name, " ".join(str(each) for each in run.accepted)) for run in runs]
    return "\n".join(
        [
            "# Shared limits\n",
            (
                f"`{command}`: {_GATEWAYS} gateways, a limit of {asked.limit:.0f} calls a second for all of them,"
                f" {asked.offered:.0f} a second offered for {asked.seconds:.0f} s. While the Valkey is there at most"
                f" {most(asked.limit, asked.seconds):.0f} may come in: `burst + rate * t + G * (lease + start)`."
                " Where it is killed, it is away for the second third.\n"
            ),
            table(["what", "is"], about([stack]).items()),
            "",
            table(head, rows),
            "\n## Accepted, second by second\n",
            table(["mode", "calls"], seconds),
            "",
        ]
    )


async def _run(asked: argparse.Namespace, command: str) -> int:
    runs = []
    async with own_stack(asked.build) as stack:
        for mode, killed in ((_MODES[0], False), *((mode, True) for mode in _MODES)):
            say(f"{mode}{', with the Valkey killed' if killed else ''}")
            runs.append(await _one(asked, stack, mode, killed=killed))
            say(f"  {sum(runs[-1].accepted)} accepted: {' '.join(str(each) for each in runs[-1].accepted)}")
        page = _page(asked, command, stack, runs)
    data = json.dumps([run.__dict__ for run in runs], indent=1)
    write_results(asked, page, data + "\n", name="shared-limits")
    return 0


def main(words: Sequence[str]) -> int:
    """Run the benchmark; 0 when everything was measured, 1 with one line of explanation otherwise."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.shared_limits",
        description="Measure what a tenant gets of a limit that three gateways share, with their store and without it.",
    )
    parser.add_argument("--seconds", type=float, default=30.0, help="of each run (default %(default)s)")
    parser.add_argument("--limit", type=float, default=100.0, help="calls a second (default %(default)s)")
    parser.add_argument("--offered", type=float, default=1000.0, help="calls a second offered (default %(default)s)")
    add_build_option(parser)
    add_result_options(parser)
    asked = parser.parse_args(words)
    return run_to_end(_run(asked, shlex.join(["python", "-m", "benchmarks.shared_limits", *words])))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
