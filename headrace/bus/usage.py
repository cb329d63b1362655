"""Counts what tenants use, and reports it: exactly once in the end, however often the log is away.

A meter adds up, and once a second closes what it has into reports with the next numbers. A report is published until
the log has it, the same bytes under the same number, and the next one is made only then: a report that arrives twice
is known by its number, and none overtakes another.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from google.protobuf.message import DecodeError

from headrace.bus.protocols import LogError, UsageLog
from headrace.bus.v1.usage_pb2 import UsageEntry, UsageReport

REPORT_SECONDS = 1.0
SCHEMA_VERSION = 1
MAX_ENTRIES = 100_000
"""Kinds of usage that are told apart at a time. Then no further keys are, and at twice as many no further models."""
_HOUR = 3600
_MOST_IN_A_REPORT = 250
"""Far below what the log takes, whatever the names; to make one holds up the loop for a millisecond or two."""
_log = logging.getLogger(__name__)

_Kind = tuple[int, str, str, str]
"""Hour, tenant, key, model."""


class UsageMeter:
    """What one process counts. `closed` is told the number and entries of every report, when it is made."""

    def __init__(
        self,
        source: str,
        *,
        clock: Callable[[], float] = time.time,
        closed: Callable[[int, Sequence[UsageEntry]], None] = lambda *_: None,
    ) -> None:
        """`source` names this run of the process, and no other."""
        self._source = source
        self._clock = clock
        self._closed = closed
        self._sequence = 0
        self._sums: dict[_Kind, list[float]] = {}
        self._closing: deque[tuple[_Kind, list[float]]] = deque()
        self._due: deque[UsageReport] = deque()
        self._reachable = True

    def add(
        self,
        tenant: str,
        model: str,
        *,
        key_id: str = "",
        calls: int = 0,
        request_bytes: int = 0,
        response_bytes: int = 0,
        model_micros: int = 0,
    ) -> None:
        """Count something that ended now."""
        now = self._clock()
        kind = (int(now // _HOUR), tenant, key_id, model)
        sums = self._sums.get(kind)
        if sums is None:
            sums = self._sums_of(kind)
        sums[0] += calls
        sums[1] += request_bytes
        sums[2] += response_bytes
        sums[3] += model_micros
        sums[4] = now

    def close(self) -> list[UsageReport]:
        """Make reports of all that was counted, to be published; those that still are come first."""
        self._closing.extend(self._sums.items())
        self._sums = {}
        while self._closing:
            self._due.append(self._report())
        return list(self._due)

    async def keep(self, log: UsageLog) -> None:
        """Report until cancelled. A log that is away is told once, and nothing is lost."""
        while True:
            await asyncio.sleep(REPORT_SECONDS)  # a clock
            try:
                await self.flush(log)
            except LogError as exc:
                if self._reachable:
                    _log.warning(
                        "usage is not published yet: %s", exc, extra={"event": "usage_not_published", "why": str(exc)}
                    )
                self._reachable = False
            else:
                if not self._reachable:
                    _log.info("usage is published again", extra={"event": "usage_published_again"})
                self._reachable = True

    async def flush(self, log: UsageLog) -> None:
        """Publish all that was counted until now, and return when the log has it. Raises a LogError.

        What was not published, also where this is cancelled, is kept, and published first the next time. Never twice
        at once.
        """
        # What is closed already goes first: while the log is away sums grow, and the number of reports does not.
        await self._publish(log)
        self._closing.extend(self._sums.items())
        self._sums = {}
        await self._publish(log)

    async def end(self, log: UsageLog, *, seconds: float) -> None:
        """Publish what is left. What the log does not take in so many seconds is in no sum, which is told."""
        try:
            async with asyncio.timeout(seconds):
                await self.flush(log)
        except (TimeoutError, LogError):
            _log.warning("the last usage was not published: the log is away", extra={"event": "usage_lost"})

    async def _publish(self, log: UsageLog) -> None:
        while self._due or self._closing:
            if not self._due:
                self._due.append(self._report())
            await log.publish(self._due[0])
            self._due.popleft()

    def _report(self) -> UsageReport:
        entries = [_entry(*self._closing.popleft()) for _ in range(min(len(self._closing), _MOST_IN_A_REPORT))]
        self._sequence += 1
        self._closed(self._sequence, entries)
        return UsageReport(schema_version=SCHEMA_VERSION, source=self._source, sequence=self._sequence, entries=entries)

    def _sums_of(self, kind: _Kind) -> list[float]:
        hour, tenant, _, model = kind
        if len(self._sums) >= MAX_ENTRIES:
            kind = (hour, tenant, "", model)
            if kind not in self._sums and len(self._sums) >= 2 * MAX_ENTRIES:
                kind = (hour, tenant, "", "")
        return self._sums.setdefault(kind, [0, 0, 0, 0, 0.0])


def read_reports(records: Iterable[bytes]) -> tuple[list[UsageReport], int]:
    """The reports among the values of some records, and how many are none."""
    reports, malformed = [], 0
    for record in records:
        try:
            reports.append(UsageReport.FromString(record))
        except DecodeError:
            malformed += 1
    return reports, malformed


def _entry(kind: _Kind, sums: Sequence[float]) -> UsageEntry:
    hour, tenant, key_id, model = kind
    calls, request_bytes, response_bytes, model_micros = map(int, sums[:4])
    return UsageEntry(
        tenant=tenant,
        key_id=key_id,
        model=model,
        hour_unix_seconds=hour * _HOUR,
        calls=calls,
        request_bytes=request_bytes,
        response_bytes=response_bytes,
        model_micros=model_micros,
        last_unix_micros=int(sums[4] * 1e6),
    )
