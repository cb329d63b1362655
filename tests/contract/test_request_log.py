"""What every request log promises: see RequestPublisher and RequestConsumer. Run on the twin and on Kafka."""

import asyncio
import statistics
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from headrace.bus.protocols import LogUnavailableError, Record, RecordTooLargeError, SeenEnd, TopicPartition
from headrace.bus.settings import GroupProtocol
from tests.contract.log_carriers import (
    MAX_MESSAGE_BYTES,
    PATIENCE_SECONDS,
    Failures,
    KafkaCarrier,
    LogCarrier,
    MemoryCarrier,
    Taker,
)

A_WHILE_SECONDS = 0.4
"""Long enough for what must not come to come, if it did."""
SILENCE_SECONDS = 30.0
"""A member that has gone without a word is missed after 45 s, and said its last up to 2 s before it went."""


def carrier_of(name: str, request: pytest.FixtureRequest, owned: AsyncExitStack) -> LogCarrier:
    if name == "memory":
        return MemoryCarrier(owned)
    protocol: GroupProtocol = "classic" if name == "kafka-classic" else "consumer"
    return KafkaCarrier(owned, request.getfixturevalue("broker"), protocol)


@pytest.fixture(params=["memory", "kafka", "kafka-classic"])
async def carrier(request: pytest.FixtureRequest, members_last: None) -> AsyncIterator[LogCarrier]:
    del members_last  # it is there before any member is
    async with AsyncExitStack() as owned:
        yield carrier_of(request.param, request, owned)


@pytest.fixture
def group() -> str:
    return f"group-{uuid.uuid4().hex}"


async def published(carrier: LogCarrier, topic: str, count: int, *, partitions: int = 1, first: int = 0) -> list[bytes]:
    """Publish calls, in turn over the partitions. Returns their ids in the order in which a taker lists them."""
    publisher = await carrier.publisher(Failures())
    ids = [b"%06d" % number for number in range(first, first + count)]
    for number, call_id in enumerate(ids):
        publisher.publish(TopicPartition(topic, number % partitions), call_id, b"e" + call_id, b"p" + call_id)
    return [call_id for partition in range(partitions) for call_id in ids[partition::partitions]]


def fetched(taker: Taker) -> int:
    return sum(map(len, taker.records_of.values()))


async def until_fetched(taker: Taker, count: int) -> None:
    await taker.until(lambda: fetched(taker) >= count)


# Publishing.


async def test_records_arrive_whole_and_in_order_within_their_partition(carrier: LogCarrier, group: str) -> None:
    topic = await carrier.topic(3)
    taker = await carrier.taker(group, [topic])
    before = time.time_ns() // 1_000_000

    ids = await published(carrier, topic, 1500, partitions=3)
    await taker.until(lambda: fetched(taker) >= 1500)

    assert taker.ids == ids
    for place, records in taker.records_of.items():
        for offset, record in enumerate(records):
            call_id = record.call_id
            assert record == Record(place, offset, call_id, b"e" + call_id, b"p" + call_id)
            assert before <= record.timestamp_millis <= time.time_ns() // 1_000_000


async def test_what_waits_for_its_turn_arrives_whole_and_in_order(carrier: LogCarrier, group: str) -> None:
    topic = await carrier.topic(1)
    taker = await carrier.taker(group, [topic])
    publisher = await carrier.publisher(Failures(), one_by_one=True)
    ids = [b"%03d" % number for number in range(100)]

    for call_id in ids:
        publisher.publish(TopicPartition(topic, 0), call_id, b"e" + call_id, b"p" + call_id)
    await until_fetched(taker, 100)

    records = taker.records_of[TopicPartition(topic, 0)]
    assert [(each.call_id, each.envelope, each.payload) for each in records] == [
        (call_id, b"e" + call_id, b"p" + call_id) for call_id in ids
    ]


async def test_a_record_that_is_withdrawn_in_time_is_never_sent(carrier: LogCarrier, group: str) -> None:
    topic = await carrier.topic(1)
    taker = await carrier.taker(group, [topic])
    failures = Failures()
    publisher = await carrier.publisher(failures, one_by_one=True)

    for call_id in (b"first", b"withdrawn", b"last"):
        publisher.publish(TopicPartition(topic, 0), call_id, b"", b"payload")
    assert publisher.withdraw(b"withdrawn")
    assert not publisher.withdraw(b"withdrawn")
    await taker.until(lambda: b"last" in taker.ids)

    assert taker.ids == [b"first", b"last"]
    assert failures.told == []


async def test_withdrawing_what_has_arrived_has_no_effect(carrier: LogCarrier, group: str) -> None:
    topic = await carrier.topic(1)
    taker = await carrier.taker(group, [topic])
    failures = Failures()
    publisher = await carrier.publisher(failures)
    publisher.publish(TopicPartition(topic, 0), b"a", b"", b"")
    await until_fetched(taker, 1)

    assert not publisher.withdraw(b"a")
    publisher.publish(TopicPartition(topic, 0), b"b", b"", b"")
    await until_fetched(taker, 2)

    assert (taker.ids, failures.told) == ([b"a", b"b"], [])


async def test_empty_and_binary_parts_stay_as_they_are(carrier: LogCarrier, group: str) -> None:
    topic = await carrier.topic(1)
    place = TopicPartition(topic, 0)
    publisher = await carrier.publisher(Failures())
    taker = await carrier.taker(group, [topic])

    publisher.publish(place, bytes(range(16)), b"\x00\xff", b"")
    publisher.publish(place, b"\xff" * 16, b"", bytes(MAX_MESSAGE_BYTES))
    await taker.until(lambda: fetched(taker) == 2)

    assert [(record.call_id, record.envelope, record.payload) for record in taker.records_of[place]] == [
        (bytes(range(16)), b"\x00\xff", b""),
        (b"\xff" * 16, b"", bytes(MAX_MESSAGE_BYTES)),
    ]


async def test_a_record_that_is_too_large_is_refused_at_once(carrier: LogCarrier) -> None:
    topic = await carrier.topic(1)
    failures = Failures()
    publisher = await carrier.publisher(failures)

    with pytest.raises(RecordTooLargeError):
        publisher.publish(TopicPartition(topic, 0), b"c", b"", bytes(3 * MAX_MESSAGE_BYTES))

    assert failures.told == []


async def test_a_record_for_no_partition_fails_and_this_is_told_once(carrier: LogCarrier) -> None:
    topic = await carrier.topic(1)
    failures = Failures()
    publisher = await carrier.publisher(failures)

    for call_id in (b"one", b"two"):
        try:
            publisher.publish(TopicPartition(topic, 7), call_id, b"", b"")
        except LogUnavailableError:  # known at once where the topic is known already
            failures(call_id, 1, LogUnavailableError())
    await failures.until(2)
    await asyncio.sleep(A_WHILE_SECONDS)

    assert failures.told == [(b"one", LogUnavailableError), (b"two", LogUnavailableError)]


async def test_a_failure_names_the_attempt_that_failed(carrier: LogCarrier, group: str) -> None:
    """An earlier attempt's failure comes when the next one is on its way already."""
    topic = await carrier.topic(1)
    taker = await carrier.taker(group, [topic])
    failures = Failures()
    publisher = await carrier.publisher(failures)

    try:
        publisher.publish(TopicPartition(topic, 7), b"c", b"", b"", attempt=2)
    except LogUnavailableError:  # known at once where the topic is known already
        failures(b"c", 2, LogUnavailableError())
    publisher.publish(TopicPartition(topic, 0), b"c", b"", b"", attempt=3)
    await failures.until(1)
    await until_fetched(taker, 1)

    assert (failures.told, failures.attempts) == ([(b"c", LogUnavailableError)], [2])


# Room, pause and resume.


async def test_no_more_is_handed_over_than_there_is_room_for(carrier: LogCarrier, group: str) -> None:
    topic = await carrier.topic(2)
    await published(carrier, topic, 100, partitions=2)
    taker = await carrier.taker(group, [topic], room=None)

    said = 0
    for room in (3, 1, 7, 50):
        said += room
        taker.consumer.set_room(room)
        await until_fetched(taker, said)
        await asyncio.sleep(A_WHILE_SECONDS)
        assert fetched(taker) == said


async def test_room_is_what_may_come_from_now_on_and_does_not_add_up(carrier: LogCarrier, group: str) -> None:
    topic = await carrier.topic(1)
    taker = await carrier.taker(group, [topic], room=None)
    taker.consumer.set_room(500)
    await taker.until(lambda: bool(taker.owned))
    for _ in range(5):
        taker.consumer.set_room(2)
    await asyncio.sleep(0.2)  # a fetch may be under way with the room before

    await published(carrier, topic, 50)
    await taker.until(lambda: fetched(taker) >= 2)
    await asyncio.sleep(A_WHILE_SECONDS)

    assert fetched(taker) == 2


async def test_a_paused_topic_brings_nothing_and_holds_up_no_other(carrier: LogCarrier, group: str) -> None:
    full, other = await carrier.topic(1), await carrier.topic(1)
    taker = await carrier.taker(group, [full, other])
    await taker.until(lambda: len(taker.owned) == 2)

    taker.consumer.pause(full)
    await asyncio.sleep(0.2)  # a fetch may be under way
    await published(carrier, full, 20)
    await published(carrier, other, 20)
    await taker.until(lambda: fetched(taker) >= 20)
    await asyncio.sleep(A_WHILE_SECONDS)
    assert {place.topic for place in taker.records_of} == {other}

    taker.consumer.resume(full)
    await taker.until(lambda: fetched(taker) >= 40)
    assert len(taker.records_of[TopicPartition(full, 0)]) == 20


async def test_a_resumed_topic_is_read_again_soon(carrier: LogCarrier, group: str) -> None:
    """The middle one of several tries counts: a busy machine may stand still in any of them."""
    topic = await carrier.topic(1)
    taker = await carrier.taker(group, [topic])
    await lag_is(taker, 0, partitions=1)
    took = []
    for number in range(1, 6):
        taker.consumer.pause(topic)
        await asyncio.sleep(A_WHILE_SECONDS)  # the fetch that was under way is over
        await published(carrier, topic, 1)
        await asyncio.sleep(A_WHILE_SECONDS)  # nothing comes, and the client's thread sleeps
        assert fetched(taker) == number - 1
        resumed = time.monotonic()
        taker.consumer.resume(topic)
        await taker.until(lambda: fetched(taker) == number)  # noqa: B023
        took.append(time.monotonic() - resumed)

    assert statistics.median(took) < 0.3, took


async def test_pausing_and_resuming_loses_nothing_and_doubles_nothing(carrier: LogCarrier, group: str) -> None:
    topic = await carrier.topic(2)
    ids = await published(carrier, topic, 3000, partitions=2)
    taker = await carrier.taker(group, [topic], room=40)

    paused = 0
    while fetched(taker) < 3000:
        await until_fetched(taker, fetched(taker) + 1)
        taker.consumer.pause(topic)
        await asyncio.sleep(0.005)  # librdkafka throws away what it prefetched
        taker.consumer.resume(topic)
        paused += 1
    await asyncio.sleep(A_WHILE_SECONDS)

    assert taker.ids == ids
    assert paused > 5


async def test_a_topic_that_is_paused_often_is_read_from_all_its_partitions_in_turn(
    carrier: LogCarrier, group: str
) -> None:
    """Where a queue is long a router pauses after each few records: no partition may wait for the others to end."""
    topic = await carrier.topic(8)
    await published(carrier, topic, 800, partitions=8)
    taker = await carrier.taker(group, [topic], room=None)
    taker.consumer.set_room(2)
    await until_fetched(taker, 1)

    for _ in range(40):
        taker.consumer.pause(topic)
        await asyncio.sleep(0.02)  # librdkafka throws away what it prefetched
        taker.consumer.resume(topic)
        taker.consumer.set_room(2)
        await until_fetched(taker, fetched(taker) + 1)

    shares = sorted(len(records) for records in taker.records_of.values())
    assert len(shares) == 8
    assert shares[-1] <= 2 * shares[0] + 2, shares


async def test_a_pause_holds_for_partitions_that_come_later(carrier: LogCarrier, group: str) -> None:
    topic = await carrier.topic(1)
    await published(carrier, topic, 5)
    taker = await carrier.taker(group, [topic], room=None)
    taker.consumer.pause(topic)
    taker.consumer.set_room(100)
    await taker.until(lambda: bool(taker.owned))
    await asyncio.sleep(A_WHILE_SECONDS)
    assert fetched(taker) == 0

    taker.consumer.resume(topic)
    await taker.until(lambda: fetched(taker) == 5)


# Lag.


async def test_partitions_that_left_while_their_topic_was_paused_are_read_when_they_are_back(
    carrier: LogCarrier, group: str
) -> None:
    """A topic with a long queue is paused most of the time, also when a pod comes that takes a part and goes again."""
    topic = await carrier.topic(4)
    stays = await carrier.taker(group, [topic])
    await stays.until(lambda: len(stays.owned) == 4)
    stays.consumer.pause(topic)
    comes = await carrier.taker(group, [topic])
    await comes.until(lambda: len(comes.owned) == 2)
    await stays.until(lambda: len(stays.owned) == 2)
    stays.consumer.resume(topic)

    await carrier.leave(comes)
    await stays.until(lambda: len(stays.owned) == 4)
    ids = await published(carrier, topic, 40, partitions=4)

    await until_fetched(stays, 40)
    assert stays.ids == ids


async def lag_is(taker: Taker, wanted: int, *, partitions: int) -> None:
    """It is measured once in a while, and nothing tells when."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            lag = taker.consumer.lag
            if (sum(lag.values()), len(lag)) == (wanted, partitions):
                return
            await asyncio.sleep(0.05)  # the lag is looked at now and then, and nothing tells of it


async def test_what_is_not_handed_over_yet_is_the_lag(carrier: LogCarrier, group: str) -> None:
    topic = await carrier.topic(2)
    await published(carrier, topic, 7, partitions=2)
    taker = await carrier.taker(group, [topic], room=None)
    taker.consumer.set_room(2)
    await taker.until(lambda: fetched(taker) == 2)
    await lag_is(taker, 5, partitions=2)

    taker.consumer.set_room(100)

    await taker.until(lambda: fetched(taker) == 7)
    await lag_is(taker, 0, partitions=2)


async def test_the_lag_of_a_paused_topic_grows(carrier: LogCarrier, group: str) -> None:
    """A topic is paused where the queue is long: nothing of it is fetched then, and its end is not heard of."""
    topic = await carrier.topic(1)
    await published(carrier, topic, 2)
    taker = await carrier.taker(group, [topic])
    await taker.until(lambda: fetched(taker) == 2)
    taker.consumer.pause(topic)
    await lag_is(taker, 0, partitions=1)

    await published(carrier, topic, 9)

    await lag_is(taker, 9, partitions=1)


async def test_the_lag_of_another_members_partitions_is_not_told(carrier: LogCarrier, group: str) -> None:
    topic = await carrier.topic(2)
    first = await carrier.taker(group, [topic])
    await lag_is(first, 0, partitions=2)

    await carrier.taker(group, [topic])

    await first.until(lambda: len(first.owned) == 1)
    await lag_is(first, 0, partitions=1)


# How long what is not read has waited.


async def unread_is(taker: Taker, offsets: list[int]) -> list[SeenEnd]:
    """Where the one partition was seen to end, once this is so. Nothing tells when it is looked at."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            told = [*taker.consumer.unread.values()] or [()]
            if [each.offset for each in told[0]][-len(offsets) :] == offsets and len(told) == 1:
                return list(told[0])
            await asyncio.sleep(0.05)  # it is looked at now and then, and nothing tells of it


async def test_by_when_the_oldest_unread_record_was_there_is_told(carrier: LogCarrier, group: str) -> None:
    topic = await carrier.topic(1)
    taker = await carrier.taker(group, [topic])
    await lag_is(taker, 0, partitions=1)
    assert taker.consumer.unread == {}
    taker.consumer.pause(topic)
    await asyncio.sleep(0.2)  # a fetch may be under way

    before = time.time()
    await published(carrier, topic, 2)
    [first, *_] = await unread_is(taker, [2])
    told = time.time()
    await published(carrier, topic, 2)
    [*_, last] = await unread_is(taker, [4])

    assert before - 0.01 < first.at < told + 0.01
    assert first.at < last.at

    taker.consumer.resume(topic)
    await taker.until(lambda: fetched(taker) == 4)
    await lag_is(taker, 0, partitions=1)
    assert taker.consumer.unread == {}


# Offsets.


async def test_reading_starts_again_where_it_was_committed(carrier: LogCarrier, group: str) -> None:
    topic = await carrier.topic(1)
    place = TopicPartition(topic, 0)
    ids = await published(carrier, topic, 10)
    first = await carrier.taker(group, [topic])
    await first.until(lambda: fetched(first) == 10)
    first.commits_when_revoked = False

    first.consumer.commit({place: 4})
    await committed_soon(carrier, group, topic, {0: 4})
    await carrier.leave(first)
    second = await carrier.taker(group, [topic])
    await second.until(lambda: fetched(second) >= 6)

    assert second.ids == ids[4:]


async def committed_soon(carrier: LogCarrier, group: str, topic: str, wanted: dict[int, int]) -> None:
    """A commit goes its way in the background, and nothing tells of it but the broker."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while await carrier.committed(group, topic) != wanted:  # noqa: ASYNC110  the broker is asked, it tells nothing
            await asyncio.sleep(0.05)


async def test_every_partition_has_a_committed_offset_once_it_is_somebodys(carrier: LogCarrier, group: str) -> None:
    topic = await carrier.topic(4)
    taker = await carrier.taker(group, [topic])
    await taker.until(lambda: len(taker.owned) == 4)

    await committed_soon(carrier, group, topic, dict.fromkeys(range(4), 0))


async def test_an_offset_that_is_committed_already_is_left_alone(carrier: LogCarrier, group: str) -> None:
    topic = await carrier.topic(1)
    await published(carrier, topic, 3)
    first = await carrier.taker(group, [topic])
    await first.until(lambda: fetched(first) == 3)
    await carrier.leave(first)

    second = await carrier.taker(group, [topic])
    await second.until(lambda: bool(second.owned))
    await asyncio.sleep(A_WHILE_SECONDS)

    assert await carrier.committed(group, topic) == {0: 3}
    assert fetched(second) == 0


async def test_a_commit_for_a_partition_of_another_has_no_effect(carrier: LogCarrier, group: str) -> None:
    ours, theirs = await carrier.topic(1), await carrier.topic(1)
    taker = await carrier.taker(group, [ours])
    other = await carrier.taker(group, [theirs])
    await other.until(lambda: bool(other.owned))
    await taker.until(lambda: bool(taker.owned))

    await committed_soon(carrier, group, theirs, {0: 0})

    taker.consumer.commit({TopicPartition(theirs, 0): 7, TopicPartition(ours, 0): 5})

    await committed_soon(carrier, group, ours, {0: 5})
    assert await carrier.committed(group, theirs) == {0: 0}


# Groups.


async def test_a_member_that_joins_takes_its_share_and_the_rest_stays(carrier: LogCarrier, group: str) -> None:
    topic = await carrier.topic(4)
    first = await carrier.taker(group, [topic])
    await first.until(lambda: len(first.owned) == 4)
    await published(carrier, topic, 400, partitions=4)
    await first.until(lambda: fetched(first) == 400)

    second = await carrier.taker(group, [topic])
    await second.until(lambda: len(second.owned) == 2)
    await published(carrier, topic, 400, partitions=4, first=400)
    await second.until(lambda: fetched(first) + fetched(second) >= 800)

    revoked = [places for kind, places in first.told if kind == "revoked"]
    assert revoked == [frozenset(second.owned)]
    assert first.owned.isdisjoint(second.owned)
    # What the first one returned when it let go is where the second one began: nothing twice, nothing left out.
    assert sorted(first.ids + second.ids) == [b"%06d" % number for number in range(800)]
    assert first.trespassers == second.trespassers == []


@pytest.mark.parametrize("carrier", ["memory", "kafka"], indirect=True)
async def test_members_share_each_topic_not_their_sum(carrier: LogCarrier, group: str) -> None:
    """Each model gets its part of every router, whoever came first; the classic protocol promises less."""
    topics = [await carrier.topic(4) for _ in range(3)]
    first = await carrier.taker(group, topics)
    await first.until(lambda: len(first.owned) == 12)
    takers = [first, await carrier.taker(group, topics)]

    def shared(share: int) -> bool:
        return all(sum(place.topic == topic for place in taker.owned) == share for taker in takers for topic in topics)

    await first.until(lambda: shared(2))
    takers += [await carrier.taker(group, topics), await carrier.taker(group, topics)]
    await first.until(lambda: shared(1))
    for taker in takers[2:]:
        await carrier.leave(taker)
    del takers[2:]
    await first.until(lambda: shared(2))


async def test_nothing_of_a_revoked_partition_is_handed_over_under_traffic(carrier: LogCarrier, group: str) -> None:
    topic = await carrier.topic(4)
    publisher = await carrier.publisher(Failures())
    first = await carrier.taker(group, [topic], room=20)
    await first.until(lambda: len(first.owned) == 4)
    stop = asyncio.Event()
    sent = 0

    async def traffic() -> None:
        nonlocal sent
        while not stop.is_set():
            for partition in range(4):
                publisher.publish(TopicPartition(topic, partition), b"%06d" % sent, b"", bytes(200))
                sent += 1
            await asyncio.sleep(0.001)

    flowing = asyncio.create_task(traffic())
    try:
        await first.until(lambda: fetched(first) > 100)
        second = await carrier.taker(group, [topic], room=20)
        await second.until(lambda: fetched(second) > 100)
        await carrier.leave(second)
        before = fetched(first)
        await first.until(lambda: len(first.owned) == 4 and fetched(first) > before + 100)
    finally:
        stop.set()
        await flowing
    await first.until(lambda: fetched(first) + fetched(second) >= sent)

    assert first.trespassers == second.trespassers == []
    assert sorted(first.ids + second.ids) == [b"%06d" % number for number in range(sent)]


async def test_what_a_leaving_member_had_is_anothers_before_it_could_be_missed(carrier: LogCarrier, group: str) -> None:
    topic = await carrier.topic(4)
    first, second = await carrier.taker(group, [topic]), await carrier.taker(group, [topic])
    await first.until(lambda: len(first.owned) == 2)
    await second.until(lambda: len(second.owned) == 2)

    async with asyncio.timeout(SILENCE_SECONDS):
        await carrier.leave(second)
        await first.until(lambda: len(first.owned) == 4)

    assert second.told[-1][0] == "revoked"
    assert second.owned == set()


async def test_a_subscription_replaces_the_one_before_and_leaves_what_both_have(
    carrier: LogCarrier, group: str
) -> None:
    stays, goes, comes = [await carrier.topic(1) for _ in range(3)]
    taker = await carrier.taker(group, [stays, goes])
    await taker.until(lambda: len(taker.owned) == 2)

    taker.consumer.subscribe([stays, comes])
    await taker.until(lambda: taker.owned == {TopicPartition(stays, 0), TopicPartition(comes, 0)})

    assert ("revoked", frozenset({TopicPartition(goes, 0)})) in taker.told
    assert not any(TopicPartition(stays, 0) in places for kind, places in taker.told if kind == "revoked")
    taker.consumer.subscribe([])
    await taker.until(lambda: taker.owned == set())


async def test_a_member_may_leave_in_the_middle_of_traffic(carrier: LogCarrier, group: str) -> None:
    topic = await carrier.topic(1)
    await published(carrier, topic, 2000)
    taker = await carrier.taker(group, [topic], room=10)
    await taker.until(lambda: fetched(taker) > 50)

    await carrier.leave(taker)
    handed = fetched(taker)
    await asyncio.sleep(A_WHILE_SECONDS)

    assert fetched(taker) == handed
    assert taker.trespassers == []
    assert await carrier.committed(group, topic) == {0: handed}
