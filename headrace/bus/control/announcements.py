"""The announcements topic on Kafka."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Self

from aiokafka import AIOKafkaConsumer
from aiokafka import TopicPartition as AioPartition
from aiokafka.errors import MessageSizeTooLargeError
from google.protobuf.message import DecodeError

from headrace.bus.control.client import REQUEST_SECONDS, RETRY_SECONDS, TROUBLE, client_config, producing, stop, text_of
from headrace.bus.protocols import LogUnavailableError, RecordTooLargeError
from headrace.bus.settings import KafkaSettings
from headrace.bus.topics import ANNOUNCEMENTS_TOPIC, LARGEST_ANNOUNCEMENT_BYTES
from headrace.bus.v1.announcement_pb2 import Announcement

_log = logging.getLogger(__name__)
_ANNOUNCEMENTS = AioPartition(ANNOUNCEMENTS_TOPIC, 0)


class KafkaAnnouncements:
    """The announcements topic on Kafka; see AnnouncementLog. Entering raises LogUnavailableError."""

    def __init__(self, kafka: KafkaSettings, *, client_id: str) -> None:
        self._kafka = kafka
        self._client_id = client_id

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as owned:
            self._producer = await owned.enter_async_context(
                producing(self._kafka, self._client_id, largest_bytes=LARGEST_ANNOUNCEMENT_BYTES)
            )
            self._owned = owned.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._owned.aclose()

    async def announce(self, key: str, announcement: Announcement | None) -> None:
        """See AnnouncementLog.announce."""
        value = None if announcement is None else announcement.SerializeToString()
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                await self._producer.send_and_wait(ANNOUNCEMENTS_TOPIC, value, key.encode(), partition=0)
        except MessageSizeTooLargeError:
            raise RecordTooLargeError("the announcement is larger than the log takes") from None
        except TROUBLE as exc:
            raise LogUnavailableError(f"not announced: {type(exc).__name__}") from None

    async def read(self) -> AsyncIterator[tuple[str, Announcement | None] | None]:
        """See AnnouncementLog.read."""
        async with AsyncExitStack() as owned:
            consumer, end = await self._from_the_start(owned)
            caught_up = False
            while True:
                if not caught_up and await consumer.position(_ANNOUNCEMENTS) >= end:
                    caught_up = True
                    yield None
                fetched = await consumer.getmany(_ANNOUNCEMENTS, timeout_ms=1000)
                for message in fetched.get(_ANNOUNCEMENTS, []):
                    said = _announcement(message.key, message.value)
                    if said is not None:
                        yield said

    async def _from_the_start(self, owned: AsyncExitStack) -> tuple[AIOKafkaConsumer, int]:
        """A consumer at the start of the topic, and where the topic ends now. Tries until the broker is there."""
        told = False
        while True:
            async with AsyncExitStack() as tried:
                consumer = AIOKafkaConsumer(
                    **client_config(self._kafka, self._client_id),
                    enable_auto_commit=False,
                    auto_offset_reset="earliest",
                    fetch_max_wait_ms=500,
                    max_partition_fetch_bytes=4 << 20,
                    retry_backoff_ms=50,
                )
                tried.push_async_callback(stop, consumer)
                try:
                    async with asyncio.timeout(REQUEST_SECONDS):
                        await consumer.start()
                        consumer.assign([_ANNOUNCEMENTS])
                        await consumer.seek_to_beginning(_ANNOUNCEMENTS)
                        end = (await consumer.end_offsets([_ANNOUNCEMENTS]))[_ANNOUNCEMENTS]
                except TROUBLE as exc:
                    if not told:
                        _log.warning(
                            "announcements can't be read yet: %s",
                            text_of(exc),
                            extra={"event": "announcements_awaited", "why": text_of(exc)},
                        )
                        told = True
                else:
                    owned.push_async_exit(tried.pop_all())
                    return consumer, end
            await asyncio.sleep(RETRY_SECONDS)  # the pace of retries, not a way to wait for an event


def _announcement(key: bytes | None, value: bytes | None) -> tuple[str, Announcement | None] | None:
    try:
        return (key or b"").decode(), None if value is None else Announcement.FromString(value)
    except (DecodeError, UnicodeDecodeError):
        _log.warning("an announcement could not be read", extra={"event": "announcement_malformed"})
        return None
