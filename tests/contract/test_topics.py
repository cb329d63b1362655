"""Topics on a real broker are made as the delivery rules demand, by whoever comes first."""

import asyncio
import sys
import uuid
from collections.abc import AsyncIterator, Collection, Iterator

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from headrace.bus.control import TopicMissingError, TopicRefusedError, Topics, until_own_topics
from headrace.bus.protocols import LogUnavailableError
from headrace.bus.settings import KafkaSettings, TopicSettings
from headrace.bus.topics import ANNOUNCEMENTS_TOPIC, ENVELOPE_ROOM_BYTES, LARGEST_USAGE_BYTES, USAGE_TOPIC
from headrace.local import broker as kafka
from headrace.local.ports import FreePorts
from tests.integration.broker_fixture import started_broker

MEBIBYTE = 1 << 20
SETTINGS = TopicSettings(request_partitions=3, retention_seconds=600, max_message_bytes=2 * MEBIBYTE)

ENSURE = """\
import asyncio, sys
from headrace.bus.control import Topics
from headrace.bus.settings import KafkaSettings, TopicSettings

async def main(address, group, *names):
    topics = Topics(KafkaSettings(bootstrap_servers=address), TopicSettings(request_partitions=3), client_id="rival")
    print("ready", flush=True)
    sys.stdin.readline()
    await topics.ensure_requests(names, group)

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.fixture
def name() -> str:
    return f"headrace.test-{uuid.uuid4().hex}"


@pytest.fixture
async def admin(broker: str) -> AsyncIterator[AIOKafkaAdminClient]:
    client = AIOKafkaAdminClient(bootstrap_servers=broker)
    try:
        await client.start()
        yield client
    finally:
        await client.close()


def topics(broker: str, settings: TopicSettings = SETTINGS) -> Topics:
    return Topics(KafkaSettings(bootstrap_servers=broker), settings, client_id="test")


async def configured(admin: AIOKafkaAdminClient, topic: str) -> dict[str, str]:
    """What the broker holds of a topic's settings, by name."""
    answers = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)])
    [(_code, _message, _type, _name, entries)] = answers[0].resources
    return {entry[0]: entry[1] for entry in entries}


async def committed(broker: str, group: str, topic: str, partitions: int) -> list[int | None]:
    """The group's offset of each partition; None where it has none."""
    consumer = AIOKafkaConsumer(bootstrap_servers=broker, group_id=group, enable_auto_commit=False)
    try:
        await consumer.start()
        places = [TopicPartition(topic, partition) for partition in range(partitions)]
        consumer.assign(places)
        return [await consumer.committed(place) for place in places]
    finally:
        await consumer.stop()


async def test_request_topics_are_made_as_configured(broker: str, admin: AIOKafkaAdminClient, name: str) -> None:
    """Room for the largest request and its envelope, and deletion of what nobody waits for any more."""
    await topics(broker).ensure_requests([f"{name}.a", f"{name}.b"], name)

    for topic in (f"{name}.a", f"{name}.b"):
        assert await topics(broker).partition_counts([topic]) == {topic: 3}
        held = await configured(admin, topic)
        assert held["cleanup.policy"] == "delete"
        assert held["retention.ms"] == "600000"
        assert held["max.message.bytes"] == str(2 * MEBIBYTE + ENVELOPE_ROOM_BYTES)


async def test_every_partition_has_a_committed_offset_before_anything_is_in_it(broker: str, name: str) -> None:
    """Lag can be told from the first record on, and that record is not skipped."""
    await topics(broker).ensure_requests([name], name)

    assert await committed(broker, name, name, 3) == [0, 0, 0]


async def test_the_announcements_topic_is_compacted_and_has_one_partition(
    broker: str, admin: AIOKafkaAdminClient
) -> None:
    await topics(broker).ensure_announcements()
    await topics(broker).ensure_announcements()

    assert await topics(broker).partition_counts([ANNOUNCEMENTS_TOPIC]) == {ANNOUNCEMENTS_TOPIC: 1}
    held = await configured(admin, ANNOUNCEMENTS_TOPIC)
    assert held["cleanup.policy"] == "compact"
    assert int(held["segment.ms"]) <= 60_000  # what is not rolled is not compacted
    assert int(held["max.message.bytes"]) > MEBIBYTE


async def test_reports_of_usage_stay_for_a_week_in_one_partition(broker: str, admin: AIOKafkaAdminClient) -> None:
    """In one, so that what a source reports is read in the order in which it was reported."""
    await topics(broker).ensure_usage()
    await topics(broker).ensure_usage()

    assert await topics(broker).partition_counts([USAGE_TOPIC]) == {USAGE_TOPIC: 1}
    held = await configured(admin, USAGE_TOPIC)
    assert held["cleanup.policy"] == "delete"
    assert int(held["retention.ms"]) == 7 * 24 * 3600 * 1000
    assert int(held["max.message.bytes"]) > LARGEST_USAGE_BYTES


async def test_a_missing_topic_is_an_error_that_names_it_where_making_it_is_forbidden(broker: str, name: str) -> None:
    forbidden = topics(broker, SETTINGS.model_copy(update={"create": False}))
    await topics(broker).ensure_requests([f"{name}.there"], name)

    with pytest.raises(TopicMissingError, match=f"{name}.missing") as raised:
        await forbidden.ensure_requests([f"{name}.there", f"{name}.missing"], name)

    assert f"{name}.there" not in str(raised.value)
    assert await forbidden.partition_counts([f"{name}.missing"]) == {}
    await forbidden.ensure_requests([f"{name}.there"], name)


async def test_an_existing_topic_is_left_as_it_is(broker: str, admin: AIOKafkaAdminClient, name: str) -> None:
    """Also its group's offsets: going back to the start would run what ran before."""
    config = {"retention.ms": "777000", "cleanup.policy": "compact"}
    await admin.create_topics([NewTopic(name, num_partitions=5, replication_factor=1, topic_configs=config)])
    before = await configured(admin, name)

    await topics(broker).ensure_requests([name, f"{name}.new"], name)

    assert await configured(admin, name) == before
    assert await topics(broker).partition_counts([name]) == {name: 5}
    assert await committed(broker, name, name, 5) == [None] * 5
    assert await committed(broker, name, f"{name}.new", 3) == [0, 0, 0]


async def test_asking_again_changes_nothing(broker: str, admin: AIOKafkaAdminClient, name: str) -> None:
    await topics(broker).ensure_requests([name], name)
    before = await configured(admin, name)
    consumer = AIOKafkaConsumer(bootstrap_servers=broker, group_id=name, enable_auto_commit=False)
    try:
        await consumer.start()
        consumer.assign([TopicPartition(name, 0)])
        await consumer.commit({TopicPartition(name, 0): 7})
    finally:
        await consumer.stop()

    await topics(broker, TopicSettings(request_partitions=9)).ensure_requests([name], name)

    assert await configured(admin, name) == before
    assert await topics(broker).partition_counts([name]) == {name: 3}
    assert await committed(broker, name, name, 3) == [7, 0, 0]


async def test_several_that_make_the_same_topics_at_once_all_succeed(broker: str, name: str) -> None:
    """Replicas start together. Two processes here, and two owners in this one."""
    names = [f"{name}.{number}" for number in range(4)]
    rivals = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-c", ENSURE, broker, name, *names, stdin=-1, stdout=-1, stderr=-1
        )
        for _ in range(2)
    ]
    try:
        for rival in rivals:
            assert rival.stdout is not None
            assert await rival.stdout.readline() == b"ready\n"
        ours = (topics(broker).ensure_requests(names, name) for _ in range(2))
        *outputs, _, _ = await asyncio.gather(*(rival.communicate(b"\n") for rival in rivals), *ours)
    finally:
        for rival in rivals:
            if rival.returncode is None:
                rival.kill()
                await rival.wait()

    assert [rival.returncode for rival in rivals] == [0, 0], outputs
    assert await topics(broker).partition_counts(names) == dict.fromkeys(names, 3)
    for topic in names:
        assert await committed(broker, name, topic, 3) == [0, 0, 0]


async def test_a_topic_for_a_group_that_lives_is_made_all_the_same(broker: str, name: str) -> None:
    """Its members commit the starts of what they are assigned."""
    await topics(broker).ensure_requests([name], name)
    member = AIOKafkaConsumer(name, bootstrap_servers=broker, group_id=name, enable_auto_commit=False)
    try:
        await member.start()
        assert member.assignment()

        await topics(broker).ensure_requests([f"{name}.late"], name)
    finally:
        await member.stop()

    assert await topics(broker).partition_counts([f"{name}.late"]) == {f"{name}.late": 3}


@pytest.mark.parametrize("asked", [(), ("headrace.never-made",), ("headrace.bad/name",)])
async def test_what_does_not_exist_is_not_counted(broker: str, asked: Collection[str]) -> None:
    """Nor does asking make it."""
    for _ in range(2):
        assert await topics(broker).partition_counts(asked) == {}


async def test_a_topic_that_the_broker_refuses_is_told_with_its_reason(broker: str, name: str) -> None:
    with pytest.raises(LogUnavailableError, match=f"(?i){name}.*replica"):
        await topics(broker, SETTINGS.model_copy(update={"replication_factor": 3})).ensure_requests([name], name)


async def test_a_topic_that_the_broker_refuses_takes_no_other_with_it(
    broker: str, admin: AIOKafkaAdminClient, name: str
) -> None:
    """The others are made, with their starts, and the error names the one alone."""
    await admin.create_topics([NewTopic(f"{name}_b", num_partitions=1, replication_factor=1)])

    with pytest.raises(TopicRefusedError, match=f"{name}.b .*collides") as raised:
        await topics(broker).ensure_requests([f"{name}.a", f"{name}.b", f"{name}.c"], name)

    assert f"{name}.a" not in str(raised.value)
    made = [f"{name}.a", f"{name}.c"]
    assert await topics(broker).partition_counts([*made, f"{name}.b"]) == dict.fromkeys(made, 3)
    for topic in made:
        assert await committed(broker, name, topic, 3) == [0, 0, 0]


@pytest.fixture(scope="module")
def forthcoming(broker_install: kafka.BrokerInstall, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A broker that makes every topic that it is asked about, as Kafka does by default."""
    home, ports = tmp_path_factory.mktemp("kafka"), FreePorts("127.0.0.1")
    port = ports.take()
    kafka.prepare_storage(broker_install, home, port=port, controller_port=ports.take(), sasl=None)
    with (home / "server.properties").open("a") as settings:
        settings.write("auto.create.topics.enable=true\n")
    with started_broker(broker_install, home, port):
        yield f"127.0.0.1:{port}"


async def made_by_asking(broker: str, name: str) -> set[str]:
    """All topics, once the broker has made the one of this name because it was asked about it, as any before it."""
    admin = AIOKafkaAdminClient(bootstrap_servers=broker)
    try:
        await admin.start()
        async with asyncio.timeout(20):
            while name not in await admin.list_topics():
                await admin.describe_topics([name])
        return set(await admin.list_topics())
    finally:
        await admin.close()


async def test_asking_about_a_topic_never_makes_it(forthcoming: str, name: str) -> None:
    """Not even where the broker would: it has the broker's defaults then, and nobody wanted it."""
    forbidden = topics(forthcoming, SETTINGS.model_copy(update={"create": False}))
    with pytest.raises(TopicMissingError):
        await forbidden.ensure_requests([f"{name}.forbidden"], name)
    assert await topics(forthcoming).partition_counts([f"{name}.asked"]) == {}
    await topics(forthcoming).ensure_requests([f"{name}.made"], name)

    there = await made_by_asking(forthcoming, f"{name}.last")

    assert {topic for topic in there if topic.startswith(name)} == {f"{name}.made", f"{name}.last"}
    assert await topics(forthcoming).partition_counts([f"{name}.made"]) == {f"{name}.made": 3}


async def test_announcements_that_are_not_compacted_are_told(
    forthcoming: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What was announced is deleted in time from a topic that somebody made otherwise: models are forgotten."""
    kafka_settings = KafkaSettings(bootstrap_servers=forthcoming)
    await made_by_asking(forthcoming, ANNOUNCEMENTS_TOPIC)

    await until_own_topics(kafka_settings, topics(forthcoming), "test")

    assert [getattr(record, "event", None) for record in caplog.records] == ["announcements_not_compacted"]


async def test_announcements_as_we_make_them_are_nothing_to_tell(broker: str, caplog: pytest.LogCaptureFixture) -> None:
    await until_own_topics(KafkaSettings(bootstrap_servers=broker), topics(broker), "test")

    assert caplog.records == []


class Refused(Topics):
    """Topics of a broker that makes no topic of usage, for so many times."""

    times = 3

    async def ensure_usage(self) -> None:
        self.times -= 1
        if self.times:
            raise LogUnavailableError("no more topics")


async def test_topics_that_cannot_be_made_are_waited_for_and_told_once(
    broker: str, caplog: pytest.LogCaptureFixture
) -> None:
    settings = KafkaSettings(bootstrap_servers=broker)

    await until_own_topics(settings, Refused(settings, SETTINGS, client_id="test"), "test")

    assert [getattr(record, "event", None) for record in caplog.records] == ["broker_awaited"]


async def test_a_broker_that_is_away_is_told_in_time() -> None:
    address = f"127.0.0.1:{FreePorts('127.0.0.1').take()}"

    async with asyncio.timeout(45):
        with pytest.raises(LogUnavailableError, match=address):
            await topics(address).partition_counts(["a"])
        with pytest.raises(LogUnavailableError, match=address):
            await topics(address).ensure_announcements()
