"""The usage topic in memory."""

import asyncio
from collections.abc import AsyncIterator

from headrace.bus.protocols import LogUnavailableError, RecordTooLargeError, UsageBatch
from headrace.bus.topics import LARGEST_USAGE_BYTES
from headrace.bus.usage import read_reports
from headrace.bus.v1.usage_pb2 import UsageReport

MOST_RECORDS = 100
"""In one batch."""


class MemoryUsage:
    """See UsageLog."""

    def __init__(self) -> None:
        self.available = True
        """While False, publishing fails, and so readers hear nothing new."""
        self.records: list[bytes] = []
        """All that was ever published, at its offset."""
        self.start = 0
        """The first offset that is still there."""
        self._grown = asyncio.Event()

    async def publish(self, report: UsageReport) -> None:
        """See UsageLog.publish."""
        value = report.SerializeToString()
        await asyncio.sleep(0)
        if not self.available:
            raise LogUnavailableError("not published: told to fail")
        if len(value) > 2 * LARGEST_USAGE_BYTES:
            raise RecordTooLargeError("the report is larger than the log takes")
        self.append(value)

    def append(self, record: bytes) -> None:
        """Put something into the topic that may be no report."""
        self.records.append(record)
        self._wake()

    def forget(self, before: int) -> None:
        """Retention: what is before this offset is not there any more."""
        self.start = before
        self._wake()

    def make_anew(self) -> None:
        """The topic is deleted, and made again."""
        self.records.clear()
        self.start = 0
        self._wake()

    async def read(self, offset: int | None) -> AsyncIterator[UsageBatch]:
        """See UsageLog.read."""
        position = self.start if offset is None else offset
        while True:
            grown = self._grown
            if not self.start <= position <= len(self.records):
                position = self.start
            end = min(len(self.records), position + MOST_RECORDS)
            if end > position:
                reports, malformed = read_reports(self.records[position:end])
                first, position = position, end
                yield UsageBatch(
                    first_offset=first,
                    next_offset=end,
                    reports=reports,
                    malformed=malformed,
                    behind=len(self.records) - end,
                )
            else:
                await grown.wait()

    def _wake(self) -> None:
        grown, self._grown = self._grown, asyncio.Event()
        grown.set()
