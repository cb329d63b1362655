"""How long records wait while a group's members come and go: `python -m benchmarks.rebalances --help`.

Members are processes with the router's own consumer, on the Kafka of a stack that runs, or on another that asks for no
login. In every partition of two topics a record is written twenty times a second; how late each was read says how long
its partition was nobody's. Says of brokers whether `HEADRACE_KAFKA__GROUP_PROTOCOL=consumer` is right for them:
docs/adr/0023.
"""

import argparse
import asyncio
import json
import signal
import statistics
import sys
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import get_args

from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from benchmarks.command import run_to_end, say
from headrace.bus.log import KafkaConsumer, KafkaPublisher
from headrace.bus.protocols import Record, TopicPartition
from headrace.bus.settings import KafkaSettings

_PARTITIONS = 8
_PACE_SECONDS = 0.05
_MAX_MESSAGE_BYTES = 1 << 20
_ROOM = 500
_STOP_SECONDS = 60.0
_SETTLED_SECONDS = 120.0
"""More than the sessions of brokers that are not set up."""


class Member:
    """In a process of its own: says how late what it reads is, and what it owns."""

    def __init__(self) -> None:
        self.consumer: KafkaConsumer
        self._next: dict[TopicPartition, int] = {}

    def records(self, batch: Sequence[Record]) -> None:
        """See IntakeEvents."""
        now = time.time()
        self._say(read=[[*record.place, record.timestamp_millis / 1000, now] for record in batch])
        self._next.update({record.place: record.offset + 1 for record in batch})
        self.consumer.commit(self._next)
        self.consumer.set_room(_ROOM)

    def assigned(self, places: Collection[TopicPartition]) -> None:
        """See IntakeEvents."""
        self._say(gained=[*places])

    def revoked(self, places: Collection[TopicPartition]) -> Mapping[TopicPartition, int]:
        """See IntakeEvents."""
        self._say(gone=[*places])
        return {place: self._next.pop(place) for place in places if place in self._next}

    def lost(self, places: Collection[TopicPartition]) -> None:
        """See IntakeEvents."""
        self.revoked(places)

    def _say(self, **told: object) -> None:
        sys.stdout.write(json.dumps(told) + "\n")
        sys.stdout.flush()


async def _be_member(asked: argparse.Namespace) -> int:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    member = Member()
    kafka = KafkaSettings(bootstrap_servers=asked.kafka, group_protocol=asked.protocol)
    member.consumer = KafkaConsumer(
        kafka, client_id="rebalances", group=asked.group, max_message_bytes=_MAX_MESSAGE_BYTES, events=member
    )
    async with member.consumer:
        member.consumer.set_room(_ROOM)
        member.consumer.subscribe(asked.topics)
        await stop.wait()
    return 0


class Group:
    """The members, and what they said."""

    def __init__(self, asked: argparse.Namespace, group: str, topics: Sequence[str]) -> None:
        self.reads: list[tuple[TopicPartition, float, float]] = []
        """Each record's place, when it was written and when it was read."""
        self._own = ("--kafka", asked.kafka, "--protocol", asked.protocol, "--group", group, "--topics", *topics)
        self._topics = topics
        self._owned: dict[str, set[TopicPartition]] = {}
        self._processes: dict[str, asyncio.subprocess.Process] = {}
        self._listening: set[asyncio.Task[None]] = set()

    @property
    def spread(self) -> str:
        """How many partitions of each topic each member has."""
        return "  ".join(
            ":".join(str(sum(place.topic == topic for place in owned)) for topic in self._topics)
            for owned in self._owned.values()
        )

    @property
    def largest(self) -> str:
        """The member that has most partitions."""
        return max(self._owned, key=lambda name: len(self._owned[name]))

    async def settled(self) -> None:
        """Every partition is somebody's."""
        async with asyncio.timeout(_SETTLED_SECONDS):
            while sum(map(len, self._owned.values())) < len(self._topics) * _PARTITIONS:  # noqa: ASYNC110  as others tell
                await asyncio.sleep(_PACE_SECONDS)

    async def join(self, name: str) -> None:
        """One more."""
        words = (sys.executable, "-m", "benchmarks.rebalances", *self._own)
        process = await asyncio.create_subprocess_exec(*words, stdout=asyncio.subprocess.PIPE, limit=1 << 24)
        self._processes[name], self._owned[name] = process, set()
        if process.stdout is not None:
            self._listening.add(asyncio.create_task(self._listen(name, process.stdout)))

    async def leave(self, name: str) -> None:
        """As it should be done."""
        self._processes[name].terminate()
        await self._gone(name)

    async def kill(self, name: str) -> None:
        """Without a word."""
        self._processes[name].kill()
        await self._gone(name)

    async def _gone(self, name: str) -> None:
        async with asyncio.timeout(_STOP_SECONDS):
            await self._processes.pop(name).wait()
        del self._owned[name]

    async def end(self) -> None:
        """All of them."""
        for name in [*self._processes]:
            await self.kill(name)

    async def _listen(self, name: str, lines: AsyncIterator[bytes]) -> None:
        async for line in lines:
            told = json.loads(line)
            if "read" in told:
                self.reads += [(TopicPartition(topic, number), sent, at) for topic, number, sent, at in told["read"]]
            elif name in self._owned:
                self._owned[name].update(TopicPartition(*place) for place in told.get("gained", ()))
                self._owned[name].difference_update(TopicPartition(*place) for place in told.get("gone", ()))


async def _write(publisher: KafkaPublisher, places: Sequence[TopicPartition]) -> None:
    while True:
        for place in places:
            publisher.publish(place, uuid.uuid4().bytes, b"", b"")
        await asyncio.sleep(_PACE_SECONDS)


def lateness(
    reads: Sequence[tuple[TopicPartition, float, float]], places: Sequence[TopicPartition], since: float, now: float
) -> list[float]:
    """Of each partition how late a record of this time was read at most, in seconds; what is not read yet is late."""
    latest = dict.fromkeys(places, 0.0)
    unread = dict.fromkeys(places, since)
    for place, sent, at in reads:
        if since <= sent:
            latest[place] = max(latest[place], at - sent)
            unread[place] = max(unread[place], sent)
    return sorted(max(latest[place], now - unread[place] - _PACE_SECONDS) for place in places)


async def _measure(asked: argparse.Namespace) -> int:
    run = uuid.uuid4().hex[:8]
    topics = [f"rebalances-{run}-{letter}" for letter in "ab"]
    places = [TopicPartition(topic, number) for topic in topics for number in range(_PARTITIONS)]
    kafka = KafkaSettings(bootstrap_servers=asked.kafka)
    admin = AIOKafkaAdminClient(bootstrap_servers=asked.kafka)
    await admin.start()
    async with AsyncExitStack() as owned:
        owned.push_async_callback(admin.close)
        await admin.create_topics([NewTopic(topic, _PARTITIONS, 1) for topic in topics])
        owned.push_async_callback(admin.delete_topics, topics)
        publisher = KafkaPublisher(
            kafka,
            client_id="rebalances",
            max_message_bytes=_MAX_MESSAGE_BYTES,
            delivery_seconds=30,
            on_failure=lambda _, __, error: say(f"not written: {error}"),
        )
        await owned.enter_async_context(publisher)
        group = Group(asked, f"rebalances-{run}", topics)
        owned.push_async_callback(group.end)
        writing = asyncio.create_task(_write(publisher, places))
        owned.callback(writing.cancel)

        async def phase(what: str, change: Callable[[], Awaitable[None]]) -> None:
            since = time.time()
            await change()
            await asyncio.sleep(asked.seconds)  # the time that the phase is about
            await group.settled()
            late = lateness(group.reads, places, since, time.time())
            say(
                f"{what:24} latest {max(late):6.2f} s, median of partitions {statistics.median(late):6.2f} s;"
                f" {group.spread}"
            )

        async def back() -> None:
            await group.kill(group.largest)
            await asyncio.sleep(2)  # sooner than the group may notice
            await group.join("again")

        await phase("the first joins", lambda: group.join("first"))
        await phase("a second joins", lambda: group.join("second"))
        await phase("a third joins", lambda: group.join("third"))
        await phase("it leaves", lambda: group.leave("third"))
        await phase("one is killed and back", back)
        await phase("one is killed", lambda: group.kill(group.largest))
    return 0


def main(words: Sequence[str]) -> int:
    """Run the benchmark; 0 when everything was measured, 1 with one line of explanation otherwise."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.rebalances",
        description="Measure how late records are read while members of a group come, leave and are killed.",
    )
    parser.add_argument("--kafka", required=True, help="HOST:PORT; `headrace up --json` says that of a stack")
    parser.add_argument("--protocol", choices=get_args(KafkaSettings.model_fields["group_protocol"].annotation))
    parser.add_argument(
        "--seconds", type=float, default=15.0, help="to look at after each change (default %(default)s)"
    )
    parser.add_argument("--group", help=argparse.SUPPRESS)
    parser.add_argument("--topics", nargs="*", help=argparse.SUPPRESS)
    parser.set_defaults(protocol="consumer")
    asked = parser.parse_args(words)
    return run_to_end(_be_member(asked) if asked.group else _measure(asked))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
