"""Topics: made where they are missing, with what the delivery rules demand of them."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager

from aiokafka import AIOKafkaConsumer
from aiokafka import TopicPartition as AioPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaError, TopicAlreadyExistsError, for_code
from aiokafka.protocol.metadata import MetadataRequest
from aiokafka.structs import OffsetAndMetadata

from headrace.bus.control.client import REQUEST_SECONDS, RETRY_SECONDS, TROUBLE, client_config, reason, wait_for_broker
from headrace.bus.protocols import LogUnavailableError
from headrace.bus.settings import KafkaSettings, TopicSettings
from headrace.bus.topics import (
    ANNOUNCEMENTS_TOPIC,
    ENVELOPE_ROOM_BYTES,
    LARGEST_ANNOUNCEMENT_BYTES,
    LARGEST_USAGE_BYTES,
    USAGE_TOPIC,
)

_log = logging.getLogger(__name__)
USAGE_RETENTION_SECONDS = 7 * 86_400


class TopicMissingError(Exception):
    """A topic is missing and the settings forbid to create it."""


class TopicRefusedError(LogUnavailableError):
    """The broker refuses to make topics; the text says each with its reason. All others are there."""


class Topics:
    """Makes the topics that we need, with what the delivery rules demand of them."""

    def __init__(self, kafka: KafkaSettings, settings: TopicSettings, *, client_id: str) -> None:
        self._kafka = kafka
        self._settings = settings
        self._client_id = client_id
        self._lock = asyncio.Lock()

    async def ensure_announcements(self) -> None:
        """Make the announcements topic where it is missing. Raises LogUnavailableError, TopicMissingError."""
        await self._ensure(
            [
                NewTopic(
                    ANNOUNCEMENTS_TOPIC,
                    num_partitions=1,
                    replication_factor=self._settings.replication_factor,
                    topic_configs={
                        "cleanup.policy": "compact",
                        # Short segments and eager cleaning: a new reader reads little.
                        "segment.bytes": str(1 << 20),
                        "segment.ms": "10000",
                        "min.cleanable.dirty.ratio": "0.01",
                        "max.compaction.lag.ms": "30000",
                        "delete.retention.ms": "60000",
                        "max.message.bytes": str(LARGEST_ANNOUNCEMENT_BYTES),
                    },
                )
            ],
            group=None,
        )

    async def ensure_usage(self) -> None:
        """Make the usage topic where it is missing. Raises LogUnavailableError, TopicMissingError."""
        await self._ensure(
            [
                NewTopic(
                    USAGE_TOPIC,
                    num_partitions=1,  # reports of one source stay in order
                    replication_factor=self._settings.replication_factor,
                    topic_configs={
                        "cleanup.policy": "delete",
                        "retention.ms": str(USAGE_RETENTION_SECONDS * 1000),
                        "max.message.bytes": str(2 * LARGEST_USAGE_BYTES),
                    },
                )
            ],
            group=None,
        )

    async def ensure_requests(self, topics: Collection[str], group: str) -> None:
        """Make request topics where they are missing, each partition with the group's offset committed at its start.

        Raises LogUnavailableError, TopicMissingError, TopicRefusedError.
        """
        limit = str(self._settings.max_message_bytes + ENVELOPE_ROOM_BYTES)
        await self._ensure(
            [
                NewTopic(
                    topic,
                    num_partitions=self._settings.request_partitions,
                    replication_factor=self._settings.replication_factor,
                    topic_configs={
                        "cleanup.policy": "delete",
                        "retention.ms": str(self._settings.retention_seconds * 1000),
                        "max.message.bytes": limit,
                    },
                )
                for topic in topics
            ],
            group=group,
        )

    async def partition_counts(self, topics: Collection[str]) -> dict[str, int]:
        """How many partitions each topic has; missing ones are left out. Raises LogUnavailableError."""
        if not topics:
            return {}
        # The admin client's own question allows the broker to make what it is asked about.
        request = MetadataRequest(list(topics), allow_auto_topic_creation=False)
        client = AIOKafkaClient(**client_config(self._kafka, self._client_id))
        async with self._errand(client.bootstrap, client.close):
            response = await client.send(client.get_random_node(), request)
        return {topic: len(partitions) for code, topic, _, partitions in response.topics if code == 0 and partitions}

    async def warn_unless_compacted(self) -> None:
        """Say it where the announcements topic was made by somebody who did not know what it is for.

        Raises LogUnavailableError.
        """
        resource = ConfigResource(ConfigResourceType.TOPIC, ANNOUNCEMENTS_TOPIC, {"cleanup.policy": ""})
        async with self._admin() as admin:
            (response,) = await admin.describe_configs([resource])
        for _code, _text, _type, _name, entries in response.resources:  # without entries where we may not ask
            for entry in entries:
                if "compact" not in entry[1]:
                    _log.warning(
                        "%s has %s=%s and loses what was announced; set it to compact",
                        ANNOUNCEMENTS_TOPIC,
                        *entry[:2],
                        extra={"event": "announcements_not_compacted", "cleanup_policy": entry[1]},
                    )

    async def _ensure(self, topics: list[NewTopic], group: str | None) -> None:
        async with self._lock:
            existing = await self.partition_counts([topic.name for topic in topics])
            missing = [topic for topic in topics if topic.name not in existing]
            if not missing:
                return
            if not self._settings.create:
                names = ", ".join(topic.name for topic in missing)
                raise TopicMissingError(f"missing topics: {names}; create them or allow it by HEADRACE_TOPICS__CREATE")
            async with self._admin() as admin:
                response = await admin.create_topics(missing, timeout_ms=round(REQUEST_SECONDS * 1000))
            refused = {
                name: text or for_code(code).__name__
                for name, code, text in response.topic_errors
                if code and for_code(code) is not TopicAlreadyExistsError
            }
            made = [topic for topic in missing if topic.name not in refused]
            if group is not None and made:
                await self._commit_starts(made, group)
            if refused:
                raise TopicRefusedError(
                    "; ".join(f"topic {name} could not be created: {text}" for name, text in sorted(refused.items()))
                )

    async def _commit_starts(self, topics: list[NewTopic], group: str) -> None:
        places = [AioPartition(topic.name, part) for topic in topics for part in range(topic.num_partitions)]
        consumer = AIOKafkaConsumer(
            **client_config(self._kafka, self._client_id), group_id=group, enable_auto_commit=False
        )
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                await consumer.start()
                consumer.assign(places)
                await consumer.commit({place: OffsetAndMetadata(0, "") for place in places})
        except TROUBLE as exc:
            # The group lives already: then the router that is assigned the partition commits its start.
            extra = {"event": "starts_left_to_the_group", "why": type(exc).__name__}
            _log.info("starts not committed: %s", type(exc).__name__, extra=extra)
        finally:
            await consumer.stop()

    @asynccontextmanager
    async def _admin(self) -> AsyncIterator[AIOKafkaAdminClient]:
        client = AIOKafkaAdminClient(**client_config(self._kafka, self._client_id))
        async with self._errand(client.start, client.close):
            yield client

    @asynccontextmanager
    async def _errand(
        self, start: Callable[[], Awaitable[None]], close: Callable[[], Awaitable[None]]
    ) -> AsyncIterator[None]:
        """A client for one errand: the broker's whereabouts are never stale."""
        try:
            try:
                async with asyncio.timeout(REQUEST_SECONDS):
                    await start()
            except TROUBLE as exc:
                raise LogUnavailableError(await reason(self._kafka, self._client_id, exc)) from None
            yield
        except (KafkaError, OSError) as exc:
            raise LogUnavailableError(f"the broker refused: {type(exc).__name__}") from None
        finally:
            await close()


async def until_own_topics(kafka: KafkaSettings, topics: Topics, client_id: str) -> None:
    """Return once the broker answers and has what every process needs; a broker that goes away between is awaited.

    Raises TopicMissingError.
    """
    said = ""
    while True:
        await wait_for_broker(kafka, client_id)
        try:
            await topics.ensure_announcements()
            await topics.warn_unless_compacted()
            await topics.ensure_usage()
        except LogUnavailableError as exc:
            if said != str(exc):
                said = str(exc)
                _log.warning("topics are awaited: %s", exc, extra={"event": "broker_awaited", "why": said})
            await asyncio.sleep(RETRY_SECONDS)  # the pace of retries
        else:
            return
