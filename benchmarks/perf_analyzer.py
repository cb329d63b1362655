"""NVIDIA's perf_analyzer as a second client, through `perf_analyzer.sh`, which fetches it."""

import asyncio
import re
from pathlib import Path

from benchmarks.children import ChildFailedError, child
from benchmarks.peers import Peer

_SCRIPT = Path(__file__).with_name("perf_analyzer.sh")
_P50 = re.compile(r"p50 latency: (\d+) usec")
_SECONDS = 300.0  # the first run fetches it; the script bounds the measurement itself


async def p50_ms(peer: Peer, *, logs: Path) -> float | None:
    """Take the median latency of 2000 calls of 16 floats, one at a time; None for a peer that it can't call.

    perf_analyzer asks for a model's configuration and statistics, which MLServer does not serve.

    Raises:
        ChildFailedError: it failed, or printed no median in time.
    """
    if peer.relay == ("mlserver",):
        return None
    key = dict(peer.metadata).get("authorization", "").removeprefix("Bearer ")
    load = ["-m", "copy", "--shape", "INPUT0:16", "--concurrency-range", "1", "--request-count", "2000"]
    log = logs / "perf_analyzer.log"
    async with child([str(_SCRIPT), peer.address, key, *load], log=log, pipes=True) as process:
        assert process.stdout is not None  # noqa: S101  it was asked for as a pipe
        try:
            async with asyncio.timeout(_SECONDS):
                said = (await process.stdout.read()).decode(errors="replace")
                await process.wait()
        except TimeoutError:
            raise ChildFailedError(f"perf_analyzer did not finish within {_SECONDS:.0f} s; see {log}") from None
    found = _P50.search(said)
    if found is None:
        raise ChildFailedError(f"perf_analyzer gave no median for {peer.name}; see {log}: {said.strip()[-300:]}")
    return int(found.group(1)) / 1000
