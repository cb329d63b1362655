"""The usage topic on Kafka."""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from typing import Any, Self

from aiokafka import AIOKafkaConsumer
from aiokafka import TopicPartition as AioPartition
from aiokafka.errors import MessageSizeTooLargeError, OffsetOutOfRangeError

from headrace.bus.control.client import REQUEST_SECONDS, RETRY_SECONDS, TROUBLE, client_config, producing, stop, text_of
from headrace.bus.protocols import LogUnavailableError, RecordTooLargeError, UsageBatch
from headrace.bus.settings import KafkaSettings
from headrace.bus.topics import LARGEST_USAGE_BYTES, USAGE_TOPIC
from headrace.bus.usage import read_reports
from headrace.bus.v1.usage_pb2 import UsageReport

_log = logging.getLogger(__name__)
_USAGE = AioPartition(USAGE_TOPIC, 0)
_MOST_RECORDS = 100
"""In a batch, so that to sum one takes no time to speak of."""


class KafkaUsage:
    """The usage topic on Kafka; see UsageLog. Needs entering to publish, not to read.

    Entering raises LogUnavailableError.
    """

    def __init__(self, kafka: KafkaSettings, *, client_id: str) -> None:
        self._kafka = kafka
        self._client_id = client_id

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as owned:
            self._producer = await owned.enter_async_context(
                producing(self._kafka, self._client_id, largest_bytes=2 * LARGEST_USAGE_BYTES)
            )
            self._owned = owned.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._owned.aclose()

    async def publish(self, report: UsageReport) -> None:
        """See UsageLog.publish."""
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                await self._producer.send_and_wait(
                    USAGE_TOPIC, report.SerializeToString(), report.source.encode(), partition=0
                )
        except MessageSizeTooLargeError:
            raise RecordTooLargeError("the report is larger than the log takes") from None
        except TROUBLE as exc:
            raise LogUnavailableError(f"not published: {type(exc).__name__}") from None

    async def read(self, offset: int | None) -> AsyncIterator[UsageBatch]:
        """See UsageLog.read."""
        position, told = offset, False
        while True:
            try:
                async with AsyncExitStack() as owned:
                    consumer, position = await self._consumer(owned, position)
                    while True:
                        fetched = await consumer.getmany(_USAGE, timeout_ms=1000, max_records=_MOST_RECORDS)
                        messages = fetched.get(_USAGE)
                        if not messages:
                            # The client waits for an absent broker without a word.
                            async with asyncio.timeout(REQUEST_SECONDS):
                                await consumer.end_offsets([_USAGE])
                        if told:
                            told = False
                            _log.info("usage is read again", extra={"event": "usage_read_again"})
                        if messages:
                            behind = (consumer.highwater(_USAGE) or 0) - messages[-1].offset - 1
                            batch = _batch(position, messages, behind)
                            position = batch.next_offset
                            yield batch
            except OffsetOutOfRangeError:
                position = None
            except TROUBLE as exc:
                if not told:
                    told = True
                    _log.warning(
                        "usage can't be read: %s", text_of(exc), extra={"event": "usage_awaited", "why": text_of(exc)}
                    )
            await asyncio.sleep(RETRY_SECONDS)  # the pace of retries, not a way to wait for an event

    async def _consumer(self, owned: AsyncExitStack, offset: int | None) -> tuple[AIOKafkaConsumer, int]:
        """A consumer at the offset, or at the start."""
        consumer = AIOKafkaConsumer(
            **client_config(self._kafka, self._client_id),
            enable_auto_commit=False,
            auto_offset_reset="none",
            fetch_max_wait_ms=500,
            max_partition_fetch_bytes=8 * LARGEST_USAGE_BYTES,
            retry_backoff_ms=50,
        )
        owned.push_async_callback(stop, consumer)
        async with asyncio.timeout(REQUEST_SECONDS):
            await consumer.start()
            consumer.assign([_USAGE])
            if offset is None:
                offset = (await consumer.beginning_offsets([_USAGE]))[_USAGE]
        consumer.seek(_USAGE, offset)
        return consumer, offset


def _batch(position: int, messages: Sequence[Any], behind: int) -> UsageBatch:  # Any: aiokafka is untyped
    reports, malformed = read_reports(message.value or b"" for message in messages)
    return UsageBatch(
        first_offset=position,
        next_offset=messages[-1].offset + 1,
        reports=reports,
        malformed=malformed,
        behind=max(0, behind),
    )
