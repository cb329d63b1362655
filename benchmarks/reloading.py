"""How long a loop stands still while its gateway reads a changed policy: `python -m benchmarks.reloading --help`.

A clock rings every millisecond on the loop that the gateway's own parts for access run on; what is told is by how much
the latest ring of each round was late, with the policy changed once in the round and without. A process of its own,
with nothing else on its loop.
"""

import argparse
import asyncio
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import uvloop

from gateway.access import Access
from gateway.policy.model import Policy
from gateway.settings import GatewaySection, IdentitySettings, ReplySettings
from headrace.runtime.reload import LOOK_SECONDS
from headrace.store.settings import DatabaseSettings

_RING_SECONDS = 0.001
_ROUND_SECONDS = LOOK_SECONDS + 1.0
_LONGEST_SECONDS = 30.0


async def _latest_ms(seconds: float, done: Callable[[], bool] = lambda: True) -> float:
    """By how much the clock was late at most, for so long, and until it is done."""
    latest, begun = 0.0, time.perf_counter()
    while (passed := time.perf_counter() - begun) < seconds or not done():
        if passed > _LONGEST_SECONDS:
            raise RuntimeError("the policy was not read")
        due = time.perf_counter() + _RING_SECONDS
        await asyncio.sleep(_RING_SECONDS)  # the clock
        latest = max(latest, time.perf_counter() - due)
    return latest * 1000


def _changed(access: Access, before: Policy) -> bool:
    return access.admission.policy is not before


async def _measure(policy_file: Path, key_file: Path, database: Path, rounds: int) -> dict[str, list[float]]:
    settings = GatewaySection(
        reply=ReplySettings(advertised_host="127.0.0.1"),
        identity=IdentitySettings(key_file=key_file),
        policy_file=policy_file,
    )
    late: dict[str, list[float]] = {"unchanged": [], "changed": []}
    stored = DatabaseSettings(url=f"sqlite:///{database}")
    async with Access(settings, stored, pool="default", source="benchmark", gateways=lambda: 1) as access:
        await asyncio.sleep(_ROUND_SECONDS)  # the database is read meanwhile
        for _ in range(rounds):
            late["unchanged"].append(await _latest_ms(_ROUND_SECONDS))
            before = access.admission.policy
            os.utime(policy_file)
            late["changed"].append(await _latest_ms(_ROUND_SECONDS, partial(_changed, access, before)))
    return late


def main(words: Sequence[str]) -> int:
    """Measure, and print one JSON object: milliseconds by round."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reloading", description=__doc__)
    parser.add_argument("policy_file", type=Path)
    parser.add_argument("key_file", type=Path)
    parser.add_argument("database", type=Path, help="a file of SQLite, as `headrace up` has one")
    parser.add_argument("--rounds", type=int, default=6, help="default %(default)s")
    asked = parser.parse_args(words)
    late = uvloop.run(_measure(asked.policy_file, asked.key_file, asked.database.absolute(), asked.rounds))
    sys.stdout.write(json.dumps(late) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
