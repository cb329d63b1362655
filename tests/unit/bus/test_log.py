"""What the consumer's thread hands to the loop, without a broker."""

import asyncio
from collections.abc import Collection, Mapping, Sequence

from headrace.bus.log import KafkaConsumer
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
