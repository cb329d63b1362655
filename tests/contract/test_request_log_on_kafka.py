"""What only a real broker does to the request log: it refuses, it is away, it is killed."""

import asyncio
import os
import signal
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, get_args

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer

from headrace.bus.log import consumer
from headrace.bus.log.consumer import _NONE_SECONDS
from headrace.bus.protocols import LogUnavailableError, RecordTooLargeError, TopicPartition
from headrace.bus.settings import GroupProtocol
from headrace.local import broker as kafka
from headrace.local.ports import FreePorts
from tests.contract.log_carriers import PATIENCE_SECONDS, Failures, KafkaCarrier
from tests.integration.broker_fixture import started_broker

CLIENT_LEAVE_SECONDS = 45.0
"""How long librdkafka by itself waits for a broker that is away before it leaves its group."""


@pytest.fixture
async def carrier(broker: str) -> AsyncIterator[KafkaCarrier]:
    async with AsyncExitStack() as owned:
        yield KafkaCarrier(owned, broker)


async def test_a_record_that_the_broker_finds_too_large_fails_once_and_is_not_retried(carrier: KafkaCarrier) -> None:
    topic = await carrier.topic(1, **{"max.message.bytes": "1000"})
    failures = Failures()
    publisher = await carrier.publisher(failures, delivery_seconds=600)

    publisher.publish(TopicPartition(topic, 0), b"c", b"", bytes(2000))
    await failures.until(1)

    assert failures.told == [(b"c", RecordTooLargeError)]


@pytest.mark.parametrize("protocol", get_args(GroupProtocol))
async def test_members_that_get_no_partition_are_told_so_once(broker: str, protocol: GroupProtocol) -> None:
    """A router that is one too many is ready all the same, also one that hears of its models again and again."""
    async with AsyncExitStack() as owned:
        carrier = KafkaCarrier(owned, broker, protocol)
        topic, group = await carrier.topic(1), f"group-{uuid.uuid4().hex}"
        takers = [await carrier.taker(group, [topic]) for _ in range(3)]

        async def told_again() -> None:
            while True:
                await asyncio.sleep(0.5)  # the pace of what is told
                for taker in takers:
                    taker.consumer.subscribe([topic])

        telling = asyncio.create_task(told_again())
        try:
            await takers[0].until(lambda: all(taker.told for taker in takers))
        finally:
            telling.cancel()

        assert sum(taker.told == [("assigned", frozenset())] for taker in takers) >= 1


@pytest.mark.usefixtures("members_last")  # a group that has lost its members takes in whoever comes
async def test_the_classic_protocol_may_follow_the_newer_one_member_by_member_and_not_the_other_way(
    broker: str,
) -> None:
    async with AsyncExitStack() as owned:
        classic, newer = (KafkaCarrier(owned, broker, each) for each in get_args(GroupProtocol))
        topic, group = await classic.topic(4), f"group-{uuid.uuid4().hex}"
        first = await newer.taker(group, [topic])
        await first.until(lambda: len(first.owned) == 4)
        second = await classic.taker(group, [topic])
        await first.until(lambda: len(first.owned) == 2)
        await second.until(lambda: len(second.owned) == 2)

        await newer.leave(first)
        await second.until(lambda: len(second.owned) == 4)
        third = await newer.taker(group, [topic])

        async with asyncio.timeout(PATIENCE_SECONDS):
            with pytest.raises(LogUnavailableError, match="into its group"):
                await newer.failed(third)
        assert len(second.owned) == 4


async def test_a_protocol_that_the_broker_does_not_know_ends_the_member(
    broker_install: kafka.BrokerInstall, tmp_path: Path
) -> None:
    """The client gives up for good: its owner must hear of it, or it would wait for ever."""
    ports = FreePorts("127.0.0.1")
    port = ports.take()
    kafka.prepare_storage(broker_install, tmp_path, port=port, controller_port=ports.take(), sasl=None)
    with (tmp_path / "server.properties").open("a") as properties:
        properties.write("group.coordinator.rebalance.protocols=classic\n")
    async with AsyncExitStack() as owned:
        life = started_broker(broker_install, tmp_path, port)
        await asyncio.to_thread(life.__enter__)
        owned.callback(life.__exit__, None, None, None)
        carrier = KafkaCarrier(owned, f"127.0.0.1:{port}")
        topic = await carrier.topic(1)
        taker = await carrier.taker("g", [topic])

        async with asyncio.timeout(PATIENCE_SECONDS):
            with pytest.raises(LogUnavailableError, match="into its group"):
                await carrier.failed(taker)


async def test_a_backlog_that_is_older_than_its_reader_is_told_at_a_quarter_of_its_age(carrier: KafkaCarrier) -> None:
    """The log knows when its records were written, of a partition that nothing has been read of as well."""
    topic = await carrier.topic(3)
    producer = Producer({"bootstrap.servers": carrier.kafka.bootstrap_servers, "log_level": 2})
    now = time.time()
    for partition, ages in enumerate([(100, 90, 10, 2), (50,)]):
        for age in ages:
            producer.produce(topic, b"", partition=partition, timestamp=round((now - age) * 1000))
    await asyncio.to_thread(producer.flush)
    taker = await carrier.taker(f"group-{uuid.uuid4().hex}", [], room=None)
    taker.consumer.pause(topic)
    taker.consumer.set_room(100)
    taker.consumer.subscribe([topic])
    places = [TopicPartition(topic, partition) for partition in (0, 1, 2)]

    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            unread = taker.consumer.unread
            if unread.keys() == set(places[:2]):
                break
            await asyncio.sleep(0.05)  # it is looked at now and then, and nothing tells of it

    assert 25 <= now - unread[places[0]][0].at <= 100
    assert 12.5 <= now - unread[places[1]][0].at <= 50
    assert (unread[places[0]][0].offset, unread[places[0]][-1].offset) == (2, 4)
    assert {each.offset for each in unread[places[1]]} == {1}
    assert taker.ids == []


async def test_where_partitions_begin_is_committed_as_soon_as_the_brokers_let_it(
    carrier: KafkaCarrier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new topic's partitions may have no leader yet, and autoscalers see no work where nothing is committed."""
    leaderless = {0}
    refusals = ["a rebalance is in progress"]

    class Reluctant(Consumer):
        def get_watermark_offsets(self, partition: Any, *args: Any, **more: Any) -> Any:
            if partition.partition in leaderless and not more.get("cached"):
                raise KafkaException(KafkaError(KafkaError.NOT_LEADER_FOR_PARTITION))
            return super().get_watermark_offsets(partition, *args, **more)

        def commit(self, *args: Any, **more: Any) -> Any:
            if refusals:
                raise KafkaException(KafkaError(KafkaError.REBALANCE_IN_PROGRESS, refusals.pop()))
            return super().commit(*args, **more)

    async def until_committed(wanted: dict[int, int]) -> None:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while await carrier.committed(group, topic) != wanted:  # noqa: ASYNC110  the broker tells nothing
                await asyncio.sleep(0.05)

    monkeypatch.setattr(consumer, "Consumer", Reluctant)
    topic, group = await carrier.topic(2), f"group-{uuid.uuid4().hex}"
    taker = await carrier.taker(group, [topic])
    await taker.until(lambda: len(taker.owned) == 2)

    await until_committed({1: 0})
    assert refusals == []
    leaderless.clear()
    await until_committed({0: 0, 1: 0})


async def test_publishing_never_waits_for_a_broker_that_is_away() -> None:
    nowhere = f"127.0.0.1:{FreePorts('127.0.0.1').take()}"
    async with AsyncExitStack() as owned:
        carrier = KafkaCarrier(owned, nowhere)
        failures = Failures()
        publisher = await carrier.publisher(failures, delivery_seconds=0.5)

        ids = [b"%d" % number for number in range(1000)]
        batches = []
        for first in range(0, 1000, 100):
            started = time.monotonic()
            for call_id in ids[first : first + 100]:
                publisher.publish(TopicPartition("t", 0), call_id, b"", bytes(100))
            batches.append(time.monotonic() - started)
        assert min(batches) < 1.0  # a machine that stands still does so in some of them
        await failures.until(1000)

    assert sorted(failures.told) == sorted((call_id, LogUnavailableError) for call_id in ids)


async def test_what_waits_its_turn_fails_with_what_it_waits_behind_when_the_broker_is_away() -> None:
    """Each after its time, but not one after the other."""
    nowhere = f"127.0.0.1:{FreePorts('127.0.0.1').take()}"
    async with AsyncExitStack() as owned:
        carrier = KafkaCarrier(owned, nowhere)
        failures = Failures()
        publisher = await carrier.publisher(failures, one_by_one=True, delivery_seconds=0.5)
        ids = [b"%d" % number for number in range(100)]

        for call_id in ids:
            publisher.publish(TopicPartition("t", 0), call_id, b"", b"payload", attempt=2)
        await failures.until(100)

    assert sorted(failures.told) == sorted((call_id, LogUnavailableError) for call_id in ids)
    assert set(failures.attempts) == {2}


@pytest.mark.usefixtures("members_last")  # librdkafka's leave of the classic protocol waits as long as a session lasts
@pytest.mark.parametrize("protocol", get_args(GroupProtocol))
async def test_a_frozen_broker_shares_nothing_and_holds_up_no_leave(
    broker_install: kafka.BrokerInstall, tmp_path: Path, protocol: GroupProtocol
) -> None:
    """Who has not joined is not one too many, and who has need not wait for an answer."""
    ports = FreePorts("127.0.0.1")
    port = ports.take()
    kafka.prepare_storage(broker_install, tmp_path, port=port, controller_port=ports.take(), sasl=None)
    async with AsyncExitStack() as owned:
        life = started_broker(broker_install, tmp_path, port)
        process = await asyncio.to_thread(life.__enter__)
        owned.callback(life.__exit__, None, None, None)
        carrier = KafkaCarrier(owned, f"127.0.0.1:{port}", protocol)
        topic = await carrier.topic(1)
        publisher = await carrier.publisher(Failures())
        taker = await carrier.taker("g", [topic])
        publisher.publish(TopicPartition(topic, 0), b"c", b"", b"")
        await taker.until(lambda: taker.ids == [b"c"])

        process.send_signal(signal.SIGSTOP)
        # The order is only begun when it is given: all of the broker's threads have stopped when this returns.
        await asyncio.to_thread(os.waitid, os.P_PID, process.pid, os.WSTOPPED)
        try:
            late = await carrier.taker("other", [topic])
            await asyncio.sleep(_NONE_SECONDS + 2)  # what must not come would have come
            assert late.told == []
            async with asyncio.timeout(CLIENT_LEAVE_SECONDS - 10):
                await carrier.leave(taker)
            assert taker.owned == set()
        finally:
            process.send_signal(signal.SIGCONT)


async def test_leaving_does_not_wait_for_a_broker_that_is_away() -> None:
    nowhere = f"127.0.0.1:{FreePorts('127.0.0.1').take()}"
    async with asyncio.timeout(CLIENT_LEAVE_SECONDS - 10), AsyncExitStack() as owned:
        carrier = KafkaCarrier(owned, nowhere)
        publisher = await carrier.publisher(Failures())
        publisher.publish(TopicPartition("t", 0), b"c", b"", b"")
        await carrier.taker("g", ["t"])


async def test_a_killed_broker_comes_back_and_the_log_goes_on(
    broker_install: kafka.BrokerInstall, tmp_path: Path
) -> None:
    """Publisher and consumer find it again by themselves: nothing is lost, and nothing fails."""
    ports = FreePorts("127.0.0.1")
    port = ports.take()
    kafka.prepare_storage(broker_install, tmp_path, port=port, controller_port=ports.take(), sasl=None)
    group = f"group-{uuid.uuid4().hex}"
    async with AsyncExitStack() as owned:
        first_life = started_broker(broker_install, tmp_path, port)
        process = await asyncio.to_thread(first_life.__enter__)
        carrier = KafkaCarrier(owned, f"127.0.0.1:{port}")
        topic = await carrier.topic(2)
        failures = Failures()
        publisher = await carrier.publisher(failures, delivery_seconds=60)
        taker = await carrier.taker(group, [topic])
        publisher.publish(TopicPartition(topic, 0), b"before", b"", b"")
        await taker.until(lambda: taker.ids == [b"before"])

        process.kill()
        await asyncio.to_thread(first_life.__exit__, None, None, None)
        for number in range(20):
            publisher.publish(TopicPartition(topic, number % 2), b"during-%02d" % number, b"", b"")
        second_life = started_broker(broker_install, tmp_path, port)
        await asyncio.to_thread(second_life.__enter__)
        owned.callback(second_life.__exit__, None, None, None)

        await taker.until(lambda: len(set(taker.ids)) == 21)

        assert failures.told == []
        assert sorted(set(taker.ids)) == [b"before", *(b"during-%02d" % number for number in range(20))]
        assert taker.trespassers == []
