"""Drives the load generator's process."""

import json
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.cases import Case
from benchmarks.children import ChildFailedError, child
from benchmarks.peers import Peer


class LoadFailedError(Exception):
    """A call failed or was answered wrongly."""


@dataclass(frozen=True, kw_only=True)
class Latencies:
    """What the callers saw in one measured window."""

    seconds: float
    p50_ms: float
    p99_ms: float
    max_ms: float
    checked: int
    """Answers that were compared byte by byte; all are compared by length."""
    refused: int
    """Calls that were refused as too much; only where the load allows it."""


@dataclass(frozen=True, kw_only=True)
class Offered:
    """What became of calls that were offered at a rate."""

    accepted: Sequence[int]
    """Calls that were answered, by the second in which they were due."""
    refused: Mapping[str, int]
    """Calls that were refused as too much, by reason."""
    unsent: int
    """Calls that were not made, because 2,000 were under way."""
    p50_ms: float
    """Of the answered ones, from when each was due."""
    p99_ms: float
    max_ms: float
    checked: int


class LoadGenerator:
    """Calls one peer at a time, from a process of its own.

    `prepare`, read the CPU clocks, `run`, read them again: preparing makes the channel and warms everything up, so that
    the measured window holds nothing but calls.
    """

    def __init__(self, process: Process) -> None:
        self._process = process
        self.pid = process.pid

    async def prepare(self, peer: Peer, case: Case, *, warm_up: int, may_refuse: bool = False) -> None:
        """Open a fresh channel to the peer, prove that it answers rightly, and make `warm_up` calls.

        With `may_refuse`, RESOURCE_EXHAUSTED counts as an answer.

        Raises:
            LoadFailedError: a call failed, or was answered wrongly.
        """
        await self._ask(
            do="prepare",
            within_seconds=120,
            address=peer.address,
            metadata=peer.metadata,
            floats=case.floats,
            in_flight=case.in_flight,
            check_every=case.check_every,
            warm_up=warm_up,
            may_refuse=may_refuse,
        )

    async def run(self, calls: int, *, within_seconds: float = 300) -> Latencies:
        """Make `calls` calls at the prepared peer.

        Raises:
            LoadFailedError: a call failed or was answered wrongly, or the time was over.
        """
        answer = await self._ask(do="run", within_seconds=within_seconds, calls=calls)
        del answer["ok"]
        return Latencies(**answer)

    async def offer(self, *, rate: float, seconds: float) -> Offered:
        """Offer calls to the prepared peer at a rate, for so long; the next one never waits for those before it.

        Raises:
            LoadFailedError: a call was neither answered rightly nor refused as too much, or the time was over.
        """
        answer = await self._ask(do="offer", within_seconds=seconds + 60, rate=rate, seconds=seconds)
        del answer["ok"]
        return Offered(**answer)

    async def _ask(self, **line: object) -> dict[str, Any]:
        assert self._process.stdin is not None  # noqa: S101  both were asked for as pipes
        assert self._process.stdout is not None  # noqa: S101
        self._process.stdin.write(json.dumps(line).encode() + b"\n")
        raw = await self._process.stdout.readline()  # it keeps to within_seconds itself; its death is an empty line
        if not raw:
            raise ChildFailedError("the load generator ended; its log is in build/benchmarks/logs")
        answer: dict[str, Any] = json.loads(raw)
        if not answer["ok"]:
            raise LoadFailedError(answer["error"])
        return answer


@asynccontextmanager
async def load_generator(logs: Path, *, name: str = "loader") -> AsyncIterator[LoadGenerator]:
    """Run a load generator until the body is left; `name` tells its log from those of others."""
    argv = [sys.executable, "-m", "benchmarks.loader"]
    async with child(argv, log=logs / f"{name}.log", pipes=True) as process:
        yield LoadGenerator(process)
