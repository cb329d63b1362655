"""What a carrier of announcements promises, on the twin and on Kafka; and that the real one outlives its broker."""

import asyncio
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self, cast

import pytest
from confluent_kafka import Producer

from headrace.bus.control import KafkaAnnouncements, KafkaUsage, Topics, until_entered, wait_for_broker
from headrace.bus.memory.announcements import MemoryAnnouncements
from headrace.bus.protocols import AnnouncementLog, LogUnavailableError, RecordTooLargeError
from headrace.bus.settings import KafkaSettings, TopicSettings
from headrace.bus.topics import ANNOUNCEMENTS_TOPIC, LARGEST_ANNOUNCEMENT_BYTES
from headrace.bus.v1.announcement_pb2 import Announcement, GatewayHeartbeat
from headrace.local import broker as kafka
from headrace.local.ports import FreePorts
from tests.integration.broker_fixture import MortalBroker

Said = tuple[str, Announcement | None]

SECONDS = 60.0
ANNOUNCE_SECONDS = 30.0
"""How long announcing may take to fail: a heartbeat must not hang on a log that is away."""


def beat(number: int) -> Announcement:
    return Announcement(gateway=GatewayHeartbeat(incarnation=7, beat=number))


@dataclass
class Reading:
    """What one reader heard of the keys with our prefix, and when it said that it had caught up."""

    prefix: str
    words: list[Said] = field(default_factory=list)
    caught_up: int = 0
    held: dict[str, Announcement] | None = None
    """What held when the reader had caught up."""
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    @property
    def newest(self) -> dict[str, Announcement]:
        said: dict[str, Announcement | None] = dict(self.words)
        return {key: announcement for key, announcement in said.items() if announcement is not None}

    async def follow(self, log: AnnouncementLog) -> None:
        async with aclosing(cast("AsyncGenerator[Said | None]", log.read())) as words:
            async for word in words:
                async with self.changed:
                    if word is None:
                        self.caught_up += 1
                        self.held = self.newest
                    elif word[0].startswith(self.prefix):
                        self.words.append(word)
                    self.changed.notify_all()

    async def until(self, holds: Callable[[Self], bool]) -> None:
        async with asyncio.timeout(SECONDS), self.changed:
            await self.changed.wait_for(lambda: holds(self))

    async def until_newest(self, wanted: dict[str, Announcement]) -> None:
        await self.until(lambda it: it.newest == wanted)


@asynccontextmanager
async def reading(log: AnnouncementLog, prefix: str) -> AsyncIterator[Reading]:
    reader = Reading(prefix)
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(reader.follow(log), name="reader")
        yield reader
        task.cancel()


@pytest.fixture
def prefix() -> str:
    return f"test-{uuid.uuid4().hex}/"


@pytest.fixture(params=["memory", "kafka"])
def address(request: pytest.FixtureRequest) -> str | None:
    """Where the broker is; None for the twin."""
    return None if request.param == "memory" else cast("str", request.getfixturevalue("broker"))


@pytest.fixture
async def log(address: str | None) -> AsyncIterator[AnnouncementLog]:
    if address is None:
        yield MemoryAnnouncements()
        return
    settings = KafkaSettings(bootstrap_servers=address)
    await Topics(settings, TopicSettings(), client_id="test").ensure_announcements()
    async with KafkaAnnouncements(settings, client_id="test") as announcements:
        yield announcements


async def test_a_late_reader_gets_the_newest_word_on_each_key_and_then_that_it_has_caught_up(
    log: AnnouncementLog, prefix: str
) -> None:
    """Older words may come before it, never after it."""
    for number in (1, 2, 3):
        await log.announce(f"{prefix}a", beat(number))
    await log.announce(f"{prefix}b", beat(9))

    async with reading(log, prefix) as reader:
        await reader.until(lambda it: it.caught_up > 0)

    assert reader.held == {f"{prefix}a": beat(3), f"{prefix}b": beat(9)}
    assert [word for word in reader.words if word[0] == f"{prefix}a"][-1][1] == beat(3)


async def test_what_was_taken_back_does_not_hold(log: AnnouncementLog, prefix: str) -> None:
    """A reader that heard it hears that it was taken back; a late one does not hold it, until it is said again."""
    async with reading(log, prefix) as early:
        await log.announce(f"{prefix}a", beat(1))
        await log.announce(f"{prefix}a", None)
        await early.until(lambda it: (f"{prefix}a", None) in it.words)

        async with reading(log, prefix) as late:
            await late.until(lambda it: it.caught_up > 0)
            assert late.held == {}

            await log.announce(f"{prefix}a", beat(2))
            await late.until_newest({f"{prefix}a": beat(2)})
            await early.until_newest({f"{prefix}a": beat(2)})


async def test_taking_back_what_nobody_said_is_allowed(log: AnnouncementLog, prefix: str) -> None:
    await log.announce(f"{prefix}a", None)
    await log.announce(f"{prefix}b", beat(1))

    async with reading(log, prefix) as reader:
        await reader.until(lambda it: it.caught_up > 0)

    assert reader.held == {f"{prefix}b": beat(1)}


async def test_a_reader_that_comes_before_anything_was_said_hears_all_in_order(
    log: AnnouncementLog, prefix: str
) -> None:
    async with reading(log, prefix) as reader:
        await reader.until(lambda it: it.caught_up > 0)
        assert reader.held == {}
        for number in range(1, 6):
            await log.announce(f"{prefix}a", beat(number))
            await reader.until_newest({f"{prefix}a": beat(number)})

    assert reader.words == [(f"{prefix}a", beat(number)) for number in range(1, 6)]


async def test_a_reader_says_once_that_it_has_caught_up(log: AnnouncementLog, prefix: str) -> None:
    """However much is said afterwards, by however many."""
    await log.announce(f"{prefix}a", beat(1))
    async with reading(log, prefix) as reader, reading(log, prefix) as other:
        await reader.until(lambda it: it.caught_up > 0)
        await asyncio.gather(*(log.announce(f"{prefix}{number}", beat(number)) for number in range(20)))
        await reader.until(lambda it: len(it.newest) == 21)
        await other.until(lambda it: len(it.newest) == 21 and it.caught_up > 0)

    assert (reader.caught_up, other.caught_up) == (1, 1)
    assert reader.newest == other.newest


async def test_an_announcement_comes_out_as_it_went_in(log: AnnouncementLog, prefix: str) -> None:
    """Also an empty one, which is not the same as one that was taken back, and under a key of any text."""
    described = Announcement()
    described.model.model = "Modell-ß"
    described.model.versions.add(version="1", metadata=bytes(range(256)), config=b"\x00" * 300_000)
    said = {f"{prefix}empty": Announcement(), f"{prefix}größe/%2F ~": described}
    for key, announcement in said.items():
        await log.announce(key, announcement)

    async with reading(log, prefix) as reader:
        await reader.until(lambda it: it.caught_up > 0)

    assert reader.held == said


async def test_what_is_too_large_is_told_apart_from_a_log_that_is_away(log: AnnouncementLog, prefix: str) -> None:
    """Saying it again is of no use, and all else is taken as before."""
    described = Announcement()
    described.model.versions.add(config=bytes(LARGEST_ANNOUNCEMENT_BYTES))
    with pytest.raises(RecordTooLargeError):
        await log.announce(f"{prefix}large", described)
    await log.announce(f"{prefix}a", beat(1))

    async with reading(log, prefix) as reader:
        await reader.until(lambda it: it.caught_up > 0)

    assert reader.held == {f"{prefix}a": beat(1)}


async def test_the_twin_refuses_while_it_is_told_to_and_its_reader_goes_on_after(prefix: str) -> None:
    log = MemoryAnnouncements()
    async with reading(log, prefix) as reader:
        await log.announce(f"{prefix}a", beat(1))
        log.available = False
        with pytest.raises(LogUnavailableError):
            await log.announce(f"{prefix}a", beat(2))
        log.available = True
        await log.announce(f"{prefix}a", beat(3))
        await reader.until_newest({f"{prefix}a": beat(3)})

    assert reader.words == [(f"{prefix}a", beat(1)), (f"{prefix}a", beat(3))]


async def test_what_cannot_be_read_is_passed_over(broker: str, prefix: str) -> None:
    """A record that somebody else put there must not take the announcements of all others away."""
    settings = KafkaSettings(bootstrap_servers=broker)
    await Topics(settings, TopicSettings(), client_id="test").ensure_announcements()
    stranger = Producer({"bootstrap.servers": broker})
    for key, value in [(b"\xff", b""), (f"{prefix}noise".encode(), b"\xff\xff")]:
        stranger.produce(ANNOUNCEMENTS_TOPIC, value, key, 0)
    assert await asyncio.to_thread(stranger.flush, SECONDS) == 0

    async with KafkaAnnouncements(settings, client_id="test") as log, reading(log, prefix) as reader:
        await log.announce(f"{prefix}a", beat(1))
        await reader.until(lambda it: it.caught_up > 0 and f"{prefix}a" in it.newest)

    assert reader.words == [(f"{prefix}a", beat(1))]


@pytest.fixture
async def mortal(broker_install: kafka.BrokerInstall, tmp_path: Path) -> AsyncIterator[MortalBroker]:
    broker = MortalBroker(broker_install, tmp_path)
    try:
        await broker.start()
        await Topics(broker.settings, TopicSettings(), client_id="test").ensure_announcements()
        yield broker
    finally:
        await broker.stop()


async def test_announcements_outlive_a_killed_broker(mortal: MortalBroker, prefix: str) -> None:
    """Announcing fails in time while it is away; readers of before and of meanwhile hear all that holds after it."""
    async with (
        KafkaAnnouncements(mortal.settings, client_id="test") as log,
        reading(log, prefix) as before,
    ):
        await log.announce(f"{prefix}a", beat(1))
        await log.announce(f"{prefix}b", beat(2))
        await before.until(lambda it: it.caught_up > 0 and len(it.newest) == 2)

        await mortal.kill()
        async with reading(log, prefix) as meanwhile:
            async with asyncio.timeout(ANNOUNCE_SECONDS):
                with pytest.raises(LogUnavailableError):
                    await log.announce(f"{prefix}lost", beat(3))
            assert meanwhile.words == []
            assert meanwhile.caught_up == 0

            await mortal.start()
            await wait_for_broker(mortal.settings, "test")
            await _announce_once_it_can(log, f"{prefix}a", beat(4))
            wanted = {f"{prefix}a": beat(4), f"{prefix}b": beat(2)}
            for reader in (before, meanwhile):
                await reader.until(lambda it: it.newest.items() >= wanted.items())
            await meanwhile.until(lambda it: it.caught_up > 0)

    assert (before.caught_up, meanwhile.caught_up) == (1, 1)


async def _announce_once_it_can(log: AnnouncementLog, key: str, announcement: Announcement) -> None:
    async with asyncio.timeout(SECONDS):
        while True:
            try:
                await log.announce(key, announcement)
            except LogUnavailableError:
                continue  # each try takes its time: there is nothing to spin on
            return


async def test_leaving_does_not_wait_for_a_broker_that_is_away(mortal: MortalBroker, prefix: str) -> None:
    """A process is told to stop while the log is away: it must end in its grace period."""
    async with AsyncExitStack() as owned:
        log = await owned.enter_async_context(KafkaAnnouncements(mortal.settings, client_id="test"))
        reader = await owned.enter_async_context(reading(log, prefix))
        await reader.until(lambda it: it.caught_up > 0)
        await mortal.kill()
        with pytest.raises(LogUnavailableError):
            await log.announce(f"{prefix}a", None)
        leaving = owned.pop_all()

    async with asyncio.timeout(ANNOUNCE_SECONDS):
        await leaving.aclose()


async def test_a_log_that_is_not_there_is_told_on_entering() -> None:
    address = f"127.0.0.1:{FreePorts('127.0.0.1').take()}"
    log = KafkaAnnouncements(KafkaSettings(bootstrap_servers=address), client_id="test")

    async with asyncio.timeout(ANNOUNCE_SECONDS):
        with pytest.raises(LogUnavailableError, match=address):
            await log.__aenter__()


async def test_a_broker_that_goes_away_while_a_process_starts_is_awaited(
    mortal: MortalBroker, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What it lacked is told once, and not with every try."""
    log = KafkaAnnouncements(mortal.settings, client_id="test")
    await mortal.kill()

    async with AsyncExitStack() as owned, asyncio.timeout(SECONDS):
        entering = asyncio.create_task(until_entered(owned, log, KafkaUsage(mortal.settings, client_id="test")))
        while "does not answer" not in caplog.text:  # noqa: ASYNC110  a line in the log tells nobody
            await asyncio.sleep(0.05)
        assert not entering.done()
        await mortal.start()
        await entering

        await _announce_once_it_can(log, f"{prefix}a", beat(1))

    told = [record.message for record in caplog.records if "trying again" in record.message]
    assert len(told) == len(set(told))
