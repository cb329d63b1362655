"""What a carrier of usage promises, on the twin and on Kafka; and that the real one outlives its broker."""

import asyncio
import logging
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import AsyncExitStack, aclosing, suppress
from itertools import pairwise
from pathlib import Path
from typing import Protocol, cast

import pytest
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from confluent_kafka import Producer

from headrace.bus.control import KafkaUsage, Topics
from headrace.bus.memory.usage import MemoryUsage
from headrace.bus.protocols import LogUnavailableError, RecordTooLargeError, UsageBatch, UsageLog
from headrace.bus.settings import KafkaSettings, TopicSettings
from headrace.bus.topics import LARGEST_USAGE_BYTES, USAGE_TOPIC
from headrace.bus.v1.usage_pb2 import UsageEntry, UsageReport
from headrace.local import broker as kafka
from headrace.local.ports import FreePorts
from tests.integration.broker_fixture import MortalBroker, running_broker

SECONDS = 60.0
"""How long what must come may take, with a start of the broker in between."""
PUBLISH_SECONDS = 30.0
"""How long publishing may take to fail."""


@pytest.fixture
def source() -> str:
    """Ours, in a topic that all tests share."""
    return f"gateway/{uuid.uuid4().hex}/1"


@pytest.fixture(params=["memory", "kafka"])
async def log(request: pytest.FixtureRequest) -> AsyncIterator[UsageLog]:
    if request.param == "memory":
        yield MemoryUsage()
        return
    settings = KafkaSettings(bootstrap_servers=request.getfixturevalue("broker"))
    await Topics(settings, TopicSettings(), client_id="test").ensure_usage()
    async with KafkaUsage(settings, client_id="test") as usage:
        yield usage


def report(source: str, sequence: int, tenant: str = "acme") -> UsageReport:
    return UsageReport(
        schema_version=1, source=source, sequence=sequence, entries=[UsageEntry(tenant=tenant, calls=sequence)]
    )


class Reader:
    """Reads on and on, and keeps what it read of one source."""

    def __init__(self, log: UsageLog, source: str, offset: int | None = None) -> None:
        self._batches = cast("AsyncGenerator[UsageBatch]", log.read(offset))
        self._source = source
        self.found: list[UsageReport] = []
        self.batches: list[UsageBatch] = []

    async def until(self, number: int) -> list[int]:
        """The numbers of the reports of the source, once there are so many."""
        async with asyncio.timeout(SECONDS):
            while len(self.found) < number:
                batch = await anext(self._batches)
                self.batches.append(batch)
                self.found += [each for each in batch.reports if each.source == self._source]
        return [each.sequence for each in self.found]

    async def aclose(self) -> None:
        await self._batches.aclose()


async def test_reports_come_as_they_were_and_in_their_order(log: UsageLog, source: str) -> None:
    published = [report(source, sequence) for sequence in (1, 2, 2, 3)]
    for each in published:
        await log.publish(each)

    async with aclosing(Reader(log, source)) as reader:
        await reader.until(4)

    assert reader.found == published


async def test_batches_follow_each_other_without_a_gap(log: UsageLog, source: str) -> None:
    async with aclosing(Reader(log, source)) as reader:
        for sequence in range(1, 4):
            await log.publish(report(source, sequence))
            await reader.until(sequence)

    assert len(reader.batches) >= 3
    for before, after in pairwise(reader.batches):
        assert before.next_offset == after.first_offset


async def test_reading_goes_on_where_a_batch_ended(log: UsageLog, source: str) -> None:
    await log.publish(report(source, 1))
    async with aclosing(Reader(log, source)) as first:
        await first.until(1)
    end = first.batches[-1].next_offset

    await log.publish(report(source, 2))
    async with aclosing(Reader(log, source, end)) as second:
        assert await second.until(1) == [2]

    assert second.batches[0].first_offset == end


async def test_a_reader_hears_what_comes_while_it_reads(log: UsageLog, source: str) -> None:
    async with aclosing(Reader(log, source)) as reader:
        reading = asyncio.ensure_future(reader.until(2))
        for sequence in (1, 2):
            await log.publish(report(source, sequence))

        assert await reading == [1, 2]


async def test_a_reader_at_the_end_hears_only_what_comes(log: UsageLog, source: str) -> None:
    """The offset after the last record is one that the topic has."""
    await log.publish(report(source, 1))
    async with aclosing(Reader(log, source)) as first:
        await first.until(1)
    end = first.batches[-1].next_offset

    async with aclosing(Reader(log, source, end)) as second:
        reading = asyncio.ensure_future(second.until(1))
        await log.publish(report(source, 2))
        assert await reading == [2]

    assert second.batches[0].first_offset == end


async def test_a_batch_says_how_many_records_follow_it(log: UsageLog, source: str) -> None:
    for sequence in range(1, 5):
        await log.publish(report(source, sequence))

    async with aclosing(Reader(log, source)) as reader:
        await reader.until(4)

    assert reader.batches[-1].behind == 0
    for before, after in pairwise(reader.batches):
        assert before.behind >= after.next_offset - after.first_offset


async def test_from_an_offset_that_is_not_there_yet_reading_begins_at_the_start(log: UsageLog, source: str) -> None:
    await log.publish(report(source, 1))

    async with aclosing(Reader(log, source, 1 << 40)) as reader:
        assert await reader.until(1) == [1]

    assert reader.batches[0].first_offset < 1 << 40


async def test_a_report_that_is_too_large_is_told_so(log: UsageLog, source: str) -> None:
    with pytest.raises(RecordTooLargeError):
        await log.publish(report(source, 1, tenant="t" * (3 * LARGEST_USAGE_BYTES)))
    await log.publish(report(source, 2, tenant="t" * LARGEST_USAGE_BYTES))

    async with aclosing(Reader(log, source)) as reader:
        assert await reader.until(1) == [2]


class Topic(Protocol):
    """A usage topic of the test's own, and what may happen to it."""

    @property
    def log(self) -> UsageLog:
        """Its carrier."""
        ...

    async def put(self, record: bytes) -> None:
        """A record that may be no report."""
        ...

    async def forget(self, before: int) -> None:
        """Retention passes."""
        ...

    async def make_anew(self) -> None:
        """Somebody deletes it, and it is made again."""
        ...


class MemoryTopic:
    def __init__(self) -> None:
        self.log = MemoryUsage()

    async def put(self, record: bytes) -> None:
        self.log.append(record)

    async def forget(self, before: int) -> None:
        self.log.forget(before)

    async def make_anew(self) -> None:
        self.log.make_anew()


class KafkaTopic:
    def __init__(self, settings: KafkaSettings, log: KafkaUsage, admin: AIOKafkaAdminClient) -> None:
        self.log = log
        self._settings = settings
        self._admin = admin

    async def put(self, record: bytes) -> None:
        producer = Producer({"bootstrap.servers": self._settings.bootstrap_servers})
        producer.produce(USAGE_TOPIC, record, partition=0)
        assert await asyncio.to_thread(producer.flush, SECONDS) == 0

    async def forget(self, before: int) -> None:
        await self._admin.delete_records({TopicPartition(USAGE_TOPIC, 0): RecordsToDelete(before_offset=before)})

    async def make_anew(self) -> None:
        await self._admin.delete_topics([USAGE_TOPIC])
        topics = Topics(self._settings, TopicSettings(), client_id="test")
        async with asyncio.timeout(SECONDS):
            while await topics.partition_counts([USAGE_TOPIC]):  # noqa: ASYNC110  a broker tells nobody that it is done
                await asyncio.sleep(0.01)
            while not await topics.partition_counts([USAGE_TOPIC]):
                with suppress(LogUnavailableError):
                    await topics.ensure_usage()


@pytest.fixture(scope="module")
def own_broker(broker_install: kafka.BrokerInstall, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A broker whose topics may be deleted."""
    with running_broker(broker_install, tmp_path_factory.mktemp("kafka")) as address:
        yield address


@pytest.fixture(params=["memory", "kafka"])
async def topic(request: pytest.FixtureRequest) -> AsyncIterator[Topic]:
    if request.param == "memory":
        yield MemoryTopic()
        return
    settings = KafkaSettings(bootstrap_servers=request.getfixturevalue("own_broker"))
    await Topics(settings, TopicSettings(), client_id="test").ensure_usage()
    admin = AIOKafkaAdminClient(bootstrap_servers=settings.bootstrap_servers)
    async with AsyncExitStack() as owned:
        await admin.start()
        owned.push_async_callback(admin.close)
        made = KafkaTopic(settings, await owned.enter_async_context(KafkaUsage(settings, client_id="test")), admin)
        await made.make_anew()
        yield made


async def test_what_is_no_report_is_counted_and_passed_over(topic: Topic, source: str) -> None:
    await topic.put(b"\xff\xff\xff")
    await topic.log.publish(report(source, 1))

    async with aclosing(Reader(topic.log, source)) as reader:
        await reader.until(1)

    assert sum(batch.malformed for batch in reader.batches) == 1
    assert reader.batches[-1].next_offset == 2


async def test_where_retention_took_the_offset_away_reading_begins_at_what_is_left(topic: Topic, source: str) -> None:
    for sequence in range(1, 7):
        await topic.log.publish(report(source, sequence))
    await topic.forget(4)

    async with aclosing(Reader(topic.log, source, 2)) as reader:
        assert await reader.until(2) == [5, 6]

    assert reader.batches[0].first_offset == 4


async def test_a_topic_that_is_made_anew_under_a_reader_is_read_from_its_start(topic: Topic, source: str) -> None:
    async with aclosing(Reader(topic.log, source)) as reader:
        for sequence in range(1, 6):
            await topic.log.publish(report(source, sequence))
        await reader.until(5)
        waiting = asyncio.ensure_future(reader.until(7))
        await topic.make_anew()
        await publish_once_it_can(topic.log, report(source, 6))
        await publish_once_it_can(topic.log, report(source, 7))
        await waiting

    found = [each.sequence for each in reader.found]
    assert list(dict.fromkeys(found)) == list(range(1, 8))
    assert reader.batches[-1].next_offset < 5


async def publish_once_it_can(log: UsageLog, each: UsageReport) -> None:
    async with asyncio.timeout(SECONDS):
        while True:
            try:
                await log.publish(each)
            except LogUnavailableError:
                continue  # each try takes its time: there is nothing to spin on
            return


@pytest.fixture
async def mortal(broker_install: kafka.BrokerInstall, tmp_path: Path) -> AsyncIterator[MortalBroker]:
    broker = MortalBroker(broker_install, tmp_path)
    try:
        await broker.start()
        await Topics(broker.settings, TopicSettings(), client_id="test").ensure_usage()
        yield broker
    finally:
        await broker.stop()


async def test_usage_outlives_a_killed_broker(
    mortal: MortalBroker, source: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Publishing fails in time while it is away; a reader says once that it waits, and goes on where it was."""
    async with (
        KafkaUsage(mortal.settings, client_id="test") as log,
        aclosing(Reader(log, source)) as reader,
    ):
        with caplog.at_level(logging.INFO):
            await log.publish(report(source, 1))
            await reader.until(1)

            await mortal.kill()
            waiting = asyncio.ensure_future(reader.until(2))
            for _ in range(2):
                async with asyncio.timeout(PUBLISH_SECONDS):
                    with pytest.raises(LogUnavailableError):
                        await log.publish(report(source, 2))

            await mortal.start()
            await publish_once_it_can(log, report(source, 2))
            await waiting

    for before, after in pairwise(reader.batches):
        assert before.next_offset == after.first_offset
    events = [getattr(record, "event", "") for record in caplog.records]
    assert [event for event in events if event.startswith("usage")] == ["usage_awaited", "usage_read_again"]


async def test_leaving_does_not_wait_for_a_broker_that_is_away(mortal: MortalBroker, source: str) -> None:
    """A process is told to stop while the log is away: it must end in its grace period."""
    async with AsyncExitStack() as owned:
        log = await owned.enter_async_context(KafkaUsage(mortal.settings, client_id="test"))
        reader = await owned.enter_async_context(aclosing(Reader(log, source)))
        await log.publish(report(source, 1))
        await reader.until(1)
        await mortal.kill()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await log.publish(report(source, 2))
        leaving = owned.pop_all()

    async with asyncio.timeout(PUBLISH_SECONDS):
        await leaving.aclose()


async def test_a_log_that_is_not_there_is_told_on_entering() -> None:
    address = f"127.0.0.1:{FreePorts('127.0.0.1').take()}"
    log = KafkaUsage(KafkaSettings(bootstrap_servers=address), client_id="test")

    async with asyncio.timeout(PUBLISH_SECONDS):
        with pytest.raises(LogUnavailableError, match=address):
            await log.__aenter__()
