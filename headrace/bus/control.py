"""Everything slow and asyncio-shaped that we ask of the broker: topics and announcements. The only user of aiokafka.

Upgrading the client: run the contract suite of announcements and topics, and the tests of the broker's login.
"""

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Self

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka import TopicPartition as AioPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.client import AIOKafkaClient
from aiokafka.conn import collect_hosts, create_conn
from aiokafka.errors import (
    KafkaError,
    MessageSizeTooLargeError,
    SaslAuthenticationFailed,
    TopicAlreadyExistsError,
    UnsupportedSaslMechanismError,
    for_code,
)
from aiokafka.protocol.metadata import MetadataRequest
from aiokafka.structs import OffsetAndMetadata
from google.protobuf.message import DecodeError

from headrace.bus.protocols import LogUnavailableError, RecordTooLargeError
from headrace.bus.settings import KafkaSettings, TopicSettings
from headrace.bus.topics import ANNOUNCEMENTS_TOPIC, ENVELOPE_ROOM_BYTES, LARGEST_ANNOUNCEMENT_BYTES
from headrace.bus.v1.announcement_pb2 import Announcement
from headrace.runtime.settings import read_secret

_log = logging.getLogger(__name__)
_REQUEST_SECONDS = 5.0
_RETRY_SECONDS = 0.25
_RETRY_MAX_SECONDS = 0.5
_ANNOUNCEMENTS = AioPartition(ANNOUNCEMENTS_TOPIC, 0)
_TROUBLE = (KafkaError, OSError, TimeoutError)


class TopicMissingError(Exception):
    """A topic is missing and the settings forbid to create it."""


class TopicRefusedError(LogUnavailableError):
    """The broker refuses to make topics; the text says each with its reason. All others are there."""


def _client_config(kafka: KafkaSettings, client_id: str) -> dict[str, Any]:  # Any: keyword arguments of three clients
    # aiokafka logs every attempt to reach an absent broker as an error; our own callers say it once.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    config: dict[str, Any] = {
        "bootstrap_servers": kafka.bootstrap_servers,
        "client_id": client_id,
        "security_protocol": kafka.security_protocol,
        "request_timeout_ms": round(_REQUEST_SECONDS * 1000),
    }
    if kafka.security_protocol.endswith("SSL"):
        context = ssl.create_default_context(cafile=kafka.ssl_ca_file and str(kafka.ssl_ca_file))
        if kafka.ssl_certificate_file is not None:
            context.load_cert_chain(kafka.ssl_certificate_file, kafka.ssl_key_file)
        config["ssl_context"] = context
    if kafka.sasl_mechanism is not None and kafka.sasl_password_file is not None:
        config |= {
            "sasl_mechanism": kafka.sasl_mechanism,
            "sasl_plain_username": kafka.sasl_username,
            "sasl_plain_password": read_secret(kafka.sasl_password_file),
        }
    return config


async def wait_for_broker(kafka: KafkaSettings, client_id: str) -> None:
    """Return once the broker answers. Tries for ever, and says each reason once: a process may start before its broker.

    A refused login is waited out as well: the password's file is read again for every try.
    """
    delay, said = _RETRY_SECONDS, ""
    while True:
        admin = AIOKafkaAdminClient(**_client_config(kafka, client_id))
        try:
            async with asyncio.timeout(_REQUEST_SECONDS):
                await admin.start()
                return
        except _TROUBLE as exc:
            reason = await _reason(kafka, client_id, exc)
            if reason != said:
                _log.warning("%s; trying again", reason, extra={"event": "broker_awaited"})
                said = reason
        finally:
            await admin.close()
        await asyncio.sleep(delay)  # the pace of retries, not a way to wait for an event
        delay = min(delay * 2, _RETRY_MAX_SECONDS)


async def _reason(kafka: KafkaSettings, client_id: str, exc: BaseException) -> str:
    """Why no broker let us in. The client only ever says that none did, so one is asked once more, by hand."""
    config = _client_config(kafka, client_id)
    reasons = []
    for host, port, _ in collect_hosts(config.pop("bootstrap_servers"), randomize=False):
        try:
            async with asyncio.timeout(_REQUEST_SECONDS):
                connection = await create_conn(host, port, **config)
            connection.close()
        except (SaslAuthenticationFailed, UnsupportedSaslMechanismError) as refusal:
            return (
                f"the broker at {host}:{port} refuses the login of {kafka.sasl_username}: {_text(refusal)};"
                " check HEADRACE_KAFKA__SASL_MECHANISM, HEADRACE_KAFKA__SASL_USERNAME"
                " and HEADRACE_KAFKA__SASL_PASSWORD_FILE"
            )
        except _TROUBLE as trouble:
            reasons.append(f"the broker at {host}:{port} does not answer: {_text(trouble)}")
        else:
            reasons.append(
                f"the broker at {host}:{port} lets us connect and serves nothing: {_text(exc)};"
                f" unless it is just starting, HEADRACE_KAFKA__SECURITY_PROTOCOL={kafka.security_protocol} is not"
                " what it asks for"
            )
    return reasons[0]


def _text(exc: BaseException) -> str:
    texts = [text for text in exc.args if isinstance(text, str)]
    return f"{type(exc).__name__}: {texts[0]}" if texts else type(exc).__name__


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
        client = AIOKafkaClient(**_client_config(self._kafka, self._client_id))
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
                        extra={"event": "announcements_not_compacted"},
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
                response = await admin.create_topics(missing, timeout_ms=round(_REQUEST_SECONDS * 1000))
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
            **_client_config(self._kafka, self._client_id), group_id=group, enable_auto_commit=False
        )
        try:
            async with asyncio.timeout(_REQUEST_SECONDS):
                await consumer.start()
                consumer.assign(places)
                await consumer.commit({place: OffsetAndMetadata(0, "") for place in places})
        except _TROUBLE as exc:
            # The group lives already: then the router that is assigned the partition commits its start.
            _log.info("starts not committed: %s", type(exc).__name__, extra={"event": "starts_left_to_the_group"})
        finally:
            await consumer.stop()

    @asynccontextmanager
    async def _admin(self) -> AsyncIterator[AIOKafkaAdminClient]:
        client = AIOKafkaAdminClient(**_client_config(self._kafka, self._client_id))
        async with self._errand(client.start, client.close):
            yield client

    @asynccontextmanager
    async def _errand(
        self, start: Callable[[], Awaitable[None]], close: Callable[[], Awaitable[None]]
    ) -> AsyncIterator[None]:
        """A client for one errand: the broker's whereabouts are never stale."""
        try:
            try:
                async with asyncio.timeout(_REQUEST_SECONDS):
                    await start()
            except _TROUBLE as exc:
                raise LogUnavailableError(await _reason(self._kafka, self._client_id, exc)) from None
            yield
        except (KafkaError, OSError) as exc:
            raise LogUnavailableError(f"the broker refused: {type(exc).__name__}") from None
        finally:
            await close()


async def until_announcements(kafka: KafkaSettings, topics: Topics, client_id: str) -> None:
    """Return once the broker answers and has the announcements topic; a broker that goes away between is awaited.

    Raises TopicMissingError.
    """
    while True:
        await wait_for_broker(kafka, client_id)
        try:
            await topics.ensure_announcements()
            await topics.warn_unless_compacted()
        except LogUnavailableError as exc:
            _log.warning("the announcements topic is awaited: %s", exc, extra={"event": "broker_awaited"})
            await asyncio.sleep(_RETRY_SECONDS)  # the pace of retries
        else:
            return


class KafkaAnnouncements:
    """The announcements topic on Kafka; see AnnouncementLog. Entering raises LogUnavailableError."""

    def __init__(self, kafka: KafkaSettings, *, client_id: str) -> None:
        self._kafka = kafka
        self._client_id = client_id

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as owned:
            self._producer = AIOKafkaProducer(
                **_client_config(self._kafka, self._client_id),
                acks="all",
                linger_ms=0,
                max_request_size=LARGEST_ANNOUNCEMENT_BYTES,
                metadata_max_age_ms=30_000,
            )
            owned.push_async_callback(self._producer.stop)
            try:
                async with asyncio.timeout(_REQUEST_SECONDS):
                    await self._producer.start()
            except _TROUBLE as exc:
                raise LogUnavailableError(await _reason(self._kafka, self._client_id, exc)) from None
            self._owned = owned.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._owned.aclose()

    async def announce(self, key: str, announcement: Announcement | None) -> None:
        """See AnnouncementLog.announce."""
        value = None if announcement is None else announcement.SerializeToString()
        try:
            async with asyncio.timeout(_REQUEST_SECONDS):
                await self._producer.send_and_wait(ANNOUNCEMENTS_TOPIC, value, key.encode(), partition=0)
        except MessageSizeTooLargeError:
            raise RecordTooLargeError("the announcement is larger than the log takes") from None
        except _TROUBLE as exc:
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
                    **_client_config(self._kafka, self._client_id),
                    enable_auto_commit=False,
                    auto_offset_reset="earliest",
                    fetch_max_wait_ms=500,
                    max_partition_fetch_bytes=4 << 20,
                    retry_backoff_ms=50,
                )
                tried.push_async_callback(consumer.stop)
                try:
                    async with asyncio.timeout(_REQUEST_SECONDS):
                        await consumer.start()
                        consumer.assign([_ANNOUNCEMENTS])
                        await consumer.seek_to_beginning(_ANNOUNCEMENTS)
                        end = (await consumer.end_offsets([_ANNOUNCEMENTS]))[_ANNOUNCEMENTS]
                except _TROUBLE as exc:
                    if not told:
                        _log.warning(
                            "announcements can't be read yet: %s", _text(exc), extra={"event": "announcements_awaited"}
                        )
                        told = True
                else:
                    owned.push_async_exit(tried.pop_all())
                    return consumer, end
            await asyncio.sleep(_RETRY_SECONDS)  # the pace of retries, not a way to wait for an event


def _announcement(key: bytes | None, value: bytes | None) -> tuple[str, Announcement | None] | None:
    try:
        return (key or b"").decode(), None if value is None else Announcement.FromString(value)
    except (DecodeError, UnicodeDecodeError):
        _log.warning("an announcement could not be read", extra={"event": "announcement_malformed"})
        return None
