"""A broker that asks for a login: both clients bring it, and a wrong one is told as what it is."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any, Literal

import pytest

from headrace.bus.control import KafkaAnnouncements, Topics, wait_for_broker
from headrace.bus.log import KafkaConsumer, KafkaPublisher
from headrace.bus.protocols import LogError, LogUnavailableError, Record, TopicPartition
from headrace.bus.settings import KafkaSettings, TopicSettings
from headrace.bus.v1.announcement_pb2 import Announcement
from headrace.local import broker as kafka
from tests.integration.broker_fixture import running_broker

LIMIT = 1 << 20
SECONDS = 20.0
REFUSAL_SECONDS = 40.0
DELIVERY_SECONDS = 2.0
USER, PASSWORD = "alice", "right-5-pw"

Mechanism = Literal["PLAIN", "SCRAM-SHA-256"]


@pytest.fixture(scope="module")
def address(broker_install: kafka.BrokerInstall, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    users = kafka.Sasl(users={USER: PASSWORD})
    with running_broker(broker_install, tmp_path_factory.mktemp("sasl"), sasl=users) as address:
        yield address


@pytest.fixture(params=["PLAIN", "SCRAM-SHA-256"])
def mechanism(request: pytest.FixtureRequest) -> Mechanism:
    return request.param  # type: ignore[no-any-return]  # one of the two above


@pytest.fixture
def password_file(tmp_path: Path) -> Path:
    path = tmp_path / "password"
    path.write_text(f"{PASSWORD}\n", encoding="utf-8")
    return path


@pytest.fixture
def settings(address: str, mechanism: Mechanism, password_file: Path) -> KafkaSettings:
    return KafkaSettings(
        bootstrap_servers=address,
        security_protocol="SASL_PLAINTEXT",
        sasl_mechanism=mechanism,
        sasl_username=USER,
        sasl_password_file=password_file,
    )


class Intake:
    """Takes what a consumer hands over."""

    def __init__(self) -> None:
        self.first: asyncio.Future[Record] = asyncio.get_running_loop().create_future()

    def records(self, batch: Sequence[Record]) -> None:
        if not self.first.done():
            self.first.set_result(batch[0])

    def assigned(self, places: Collection[TopicPartition]) -> None: ...

    def revoked(self, places: Collection[TopicPartition]) -> Mapping[TopicPartition, int]:
        assert places is not None
        return {}

    def lost(self, places: Collection[TopicPartition]) -> None: ...


def publisher(settings: KafkaSettings, failures: "asyncio.Queue[tuple[bytes, LogError]]") -> KafkaPublisher:
    return KafkaPublisher(
        settings,
        client_id="test",
        max_message_bytes=LIMIT,
        delivery_seconds=DELIVERY_SECONDS,
        on_failure=lambda call_id, _attempt, error: failures.put_nowait((call_id, error)),
    )


async def test_a_request_passes_with_the_right_password(settings: KafkaSettings) -> None:
    name = f"headrace.test-{uuid.uuid4().hex}"
    failures: asyncio.Queue[tuple[bytes, LogError]] = asyncio.Queue(10)
    intake = Intake()
    async with asyncio.timeout(SECONDS):
        await wait_for_broker(settings, "test")
        await Topics(settings, TopicSettings(request_partitions=1), client_id="test").ensure_requests([name], name)
        async with (
            publisher(settings, failures) as sender,
            KafkaConsumer(settings, client_id="test", group=name, max_message_bytes=LIMIT, events=intake) as receiver,
        ):
            receiver.set_room(10)
            receiver.subscribe([name])
            sender.publish(TopicPartition(name, 0), b"id", b"envelope", b"payload")
            record = await intake.first

    assert (record.call_id, record.envelope, record.payload) == (b"id", b"envelope", b"payload")
    assert failures.empty()


async def test_an_announcement_passes_with_the_right_password(settings: KafkaSettings) -> None:
    key = f"test/{uuid.uuid4().hex}"
    async with asyncio.timeout(SECONDS):
        await Topics(settings, TopicSettings(), client_id="test").ensure_announcements()
        async with KafkaAnnouncements(settings, client_id="test") as log:
            await log.announce(key, Announcement())
            assert key in [said[0] async for said in _until_caught_up(log)]


async def _until_caught_up(log: KafkaAnnouncements) -> AsyncIterator[tuple[str, Announcement | None]]:
    words: Any = log.read()  # an async generator, promised as no more than an iterator
    async with aclosing(words):
        async for said in words:
            if said is None:
                return
            yield said


@pytest.fixture
def wrong(settings: KafkaSettings, password_file: Path) -> KafkaSettings:
    password_file.write_text("wrong-7-pw", encoding="utf-8")
    return settings


async def test_topics_and_announcements_tell_a_refused_login(
    wrong: KafkaSettings, caplog: pytest.LogCaptureFixture
) -> None:
    """In time, naming the user and the settings to look at, never the password."""
    async with asyncio.timeout(REFUSAL_SECONDS):
        with pytest.raises(LogUnavailableError, match=f"refuses the login of {USER}") as from_topics:
            await Topics(wrong, TopicSettings(), client_id="test").partition_counts(["a"])
        with pytest.raises(LogUnavailableError, match=f"refuses the login of {USER}") as from_announcements:
            await KafkaAnnouncements(wrong, client_id="test").__aenter__()

    for raised in (from_topics, from_announcements):
        assert "HEADRACE_KAFKA__SASL_USERNAME" in str(raised.value)
        assert "wrong-7-pw" not in f"{raised.value}{caplog.text}"


class Told(asyncio.Queue[str]):
    """What is logged of waiting for the broker, as it is."""

    @property
    def until_now(self) -> list[str]:
        return [self.get_nowait() for _ in range(self.qsize())]


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Told:
    queue = Told(100)
    emit = caplog.handler.emit

    def emitted(record: Any) -> None:  # Any: typed in the handler
        emit(record)
        if getattr(record, "event", None) == "broker_awaited":
            queue.put_nowait(record.getMessage())

    monkeypatch.setattr(caplog.handler, "emit", emitted)
    return queue


async def test_a_start_with_a_wrong_password_says_so_and_goes_on_once_it_is_mended(
    wrong: KafkaSettings, password_file: Path, told: Told
) -> None:
    """Said once, however often it is tried; the file is read again, so that mending it needs no restart."""
    async with asyncio.timeout(REFUSAL_SECONDS):
        waiting = asyncio.create_task(wait_for_broker(wrong, "test"))
        try:
            said = await told.get()
            assert f"refuses the login of {USER}" in said
            assert "HEADRACE_KAFKA__SASL_PASSWORD_FILE" in said
            assert not waiting.done()

            await asyncio.to_thread(password_file.write_text, PASSWORD, encoding="utf-8")
            await waiting
        finally:
            waiting.cancel()

    assert told.until_now == []


async def test_a_start_without_a_login_says_what_may_be_wrong(address: str, told: Told) -> None:
    plain = KafkaSettings(bootstrap_servers=address)
    async with asyncio.timeout(REFUSAL_SECONDS):
        waiting = asyncio.create_task(wait_for_broker(plain, "test"))
        try:
            assert "HEADRACE_KAFKA__SECURITY_PROTOCOL=PLAINTEXT" in await told.get()
        finally:
            waiting.cancel()


async def test_a_request_with_a_wrong_password_fails_in_its_time(
    wrong: KafkaSettings, caplog: pytest.LogCaptureFixture
) -> None:
    """The caller hears that the log is away; the operator reads why. Left alone, librdkafka gives up after 300 s."""
    failures: asyncio.Queue[tuple[bytes, LogError]] = asyncio.Queue(10)
    async with asyncio.timeout(REFUSAL_SECONDS), publisher(wrong, failures) as sender:
        sender.publish(TopicPartition("headrace.any", 0), b"id", b"envelope", b"payload")
        call_id, error = await failures.get()

    assert call_id == b"id"
    assert isinstance(error, LogUnavailableError)
    assert "authentication" in caplog.text.lower()
    assert "wrong-7-pw" not in caplog.text
