"""The request log without a broker: what the consumer's thread hands to the loop, and what a client says of brokers."""

import asyncio
import logging
from collections.abc import Collection, Mapping, Sequence

import pytest
from confluent_kafka import KafkaError

from headrace.bus.log import KafkaConsumer
from headrace.bus.log.client import Listener
from headrace.bus.protocols import Record, TopicPartition
from headrace.bus.settings import KafkaSettings


class Heard:
    """What the intake hears."""

    def __init__(self) -> None:
        self.batches: list[list[Record]] = []

    def records(self, batch: Sequence[Record]) -> None:
        self.batches.append(list(batch))

    def assigned(self, places: Collection[TopicPartition]) -> None: ...

    def revoked(self, places: Collection[TopicPartition]) -> Mapping[TopicPartition, int]:
        del places
        return {}

    def lost(self, places: Collection[TopicPartition]) -> None: ...


async def test_records_that_were_on_their_way_when_their_partition_left_are_dropped() -> None:
    """Another member reads them: to run them here as well would run them twice."""
    heard = Heard()
    consumer = KafkaConsumer(KafkaSettings(), client_id="c", group="g", max_message_bytes=1 << 20, events=heard)
    stays, leaves = (Record(TopicPartition("t", number), 0, b"id", b"", b"") for number in range(2))
    consumer._loop = asyncio.get_running_loop()
    consumer._assigned_on_loop([stays.place, leaves.place])

    consumer._revoked_on_loop([leaves.place])
    consumer._hand_over([stays, leaves])

    assert heard.batches == [[stays]]


def test_an_outage_is_told_once_a_minute_and_not_with_every_attempt_to_connect(
    caplog: pytest.LogCaptureFixture,
) -> None:
    now = [0.0]
    listener = Listener(lambda: now[0])
    away, refused = KafkaError(KafkaError._ALL_BROKERS_DOWN, "1/1"), KafkaError(KafkaError._AUTHENTICATION, "refused")

    for now[0] in (1000.0, 1059.0, 1060.0, 1061.0):
        listener(KafkaError(KafkaError._TRANSPORT, "connection refused"))
        listener(away)
    listener(refused)

    assert [record.args for record in caplog.records] == [("1/1",), ("1/1",), ("refused",)]
    assert {record.levelno for record in caplog.records} == {logging.WARNING}


def test_that_a_client_has_given_up_is_told_whatever_was_told_before(caplog: pytest.LogCaptureFixture) -> None:
    listener = Listener(lambda: 0.0)

    for fatal in (False, True):
        listener(KafkaError(KafkaError._FENCED, "fenced", fatal=fatal))

    assert [record.levelno for record in caplog.records] == [logging.WARNING, logging.ERROR]
