"""What Triton has gets its topics, whatever becomes of some of them, and the broker is asked no more than needed."""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager

import pytest

from headrace.bus.control import TopicMissingError, TopicRefusedError
from headrace.bus.protocols import LogUnavailableError
from router.topics import RequestTopics
from tests.unit.router.rig import settle

GROUP = "headrace.default.interactive"
SECONDS = 30.0
NEVER_SECONDS = 3600.0
OFTEN_SECONDS = 0.01


class Broker:
    """Makes topics of eight partitions, except where it is told otherwise."""

    def __init__(self) -> None:
        self.there: set[str] = set()
        self.refused: set[str] = set()
        self.refusal: type[Exception] = TopicRefusedError
        self.available = True
        self.asked: list[set[str]] = []
        """What each question was about."""
        self.groups: set[str] = set()
        self.answers = asyncio.Event()
        self.answers.set()
        self.changed = asyncio.Condition()

    async def ensure_requests(self, topics: Collection[str], group: str) -> None:
        self.groups.add(group)
        await self._answer()
        self.there |= set(topics) - self.refused
        if refused := set(topics) & self.refused:
            raise self.refusal(f"topics could not be created: {refused}")

    async def partition_counts(self, topics: Collection[str]) -> dict[str, int]:
        await self._answer()
        async with self.changed:
            self.asked.append(set(topics))
            self.changed.notify_all()
        return dict.fromkeys(self.there & set(topics), 8)

    async def _answer(self) -> None:
        await self.answers.wait()
        if not self.available:
            async with self.changed:
                self.asked.append(set())
                self.changed.notify_all()
            raise LogUnavailableError("away")

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(SECONDS), self.changed:
            await self.changed.wait_for(holds)


class Kept:
    """Topics that are looked after, and how often it was told that more is known."""

    def __init__(self, broker: Broker, *, retry_seconds: float, again_seconds: float) -> None:
        self.told: asyncio.Queue[dict[str, int]] = asyncio.Queue()
        self.topics = RequestTopics(
            broker,
            group=GROUP,
            changed=lambda: self.told.put_nowait(dict(self.topics.counts)),
            retry_seconds=retry_seconds,
            again_seconds=again_seconds,
        )

    async def next(self) -> dict[str, int]:
        """The counts at the next change."""
        async with asyncio.timeout(SECONDS):
            return await self.told.get()


@asynccontextmanager
async def kept(
    broker: Broker, *, retry_seconds: float = NEVER_SECONDS, again_seconds: float = NEVER_SECONDS
) -> AsyncIterator[Kept]:
    made = Kept(broker, retry_seconds=retry_seconds, again_seconds=again_seconds)
    task = asyncio.create_task(made.topics.keep(), name="topics")
    try:
        yield made
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_what_is_needed_is_made_and_what_may_be_missing_is_counted() -> None:
    broker = Broker()
    broker.there = {"loaded once"}
    async with kept(broker) as it:
        it.topics.want({"ready": True, "loaded once": False, "never loaded": False})
        assert await it.next() == {"ready": 8, "loaded once": 8, "never loaded": 0}

    assert broker.there == {"ready", "loaded once"}
    assert broker.groups == {GROUP}


async def test_a_model_that_is_loaded_gets_its_topic_at_once() -> None:
    """Also where the broker was asked in vain before, and is not to be asked again for long."""
    broker = Broker()
    async with kept(broker) as it:
        it.topics.want({"a": False})
        assert await it.next() == {"a": 0}
        it.topics.want({"a": True})
        assert await it.next() == {"a": 8}


@pytest.mark.parametrize("refusal", [TopicRefusedError, TopicMissingError])
async def test_a_topic_that_is_not_to_be_had_takes_no_other_with_it_and_is_told_once(
    refusal: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    """It is asked for again, and had as soon as somebody has made it."""
    broker = Broker()
    broker.refused, broker.refusal = {"a"}, refusal
    async with kept(broker, retry_seconds=OFTEN_SECONDS) as it:
        it.topics.want({"a": True, "b": True})
        assert await it.next() == {"a": 0, "b": 8}
        await broker.until(lambda: len(broker.asked) >= 3)
        assert broker.asked[1:3] == [{"a"}, {"a"}]

        broker.refused = set()
        assert await it.next() == {"a": 8, "b": 8}

    assert [getattr(record, "event", None) for record in caplog.records] == ["topics_missing"]


async def test_nobody_asks_again_when_nothing_new_is_wanted() -> None:
    """Triton's counts change each second: each is news of models, none of topics. New topics are asked for alone."""
    broker = Broker()
    async with kept(broker) as it:
        for _ in range(3):
            it.topics.want({"ready": True, "never loaded": False})
            await settle()
        await it.next()
        for _ in range(3):
            it.topics.want({"ready": True, "never loaded": False})
            await settle()
        it.topics.want({"ready": True, "never loaded": False, "new": True})
        await it.next()

    assert broker.asked == [{"ready", "never loaded"}, {"never loaded", "new"}]


async def test_what_may_be_missing_is_found_once_somebody_else_has_made_it() -> None:
    broker = Broker()
    async with kept(broker, again_seconds=OFTEN_SECONDS) as it:
        it.topics.want({"a": False})
        assert await it.next() == {"a": 0}
        broker.there = {"a"}
        assert await it.next() == {"a": 8}


async def test_a_broker_that_is_away_is_told_once_and_asked_again(caplog: pytest.LogCaptureFixture) -> None:
    """Of topics that it was not asked about nothing is known, not even that they are missing."""
    broker = Broker()
    broker.available = False
    async with kept(broker, retry_seconds=OFTEN_SECONDS) as it:
        it.topics.want({"a": True, "b": False})
        await broker.until(lambda: len(broker.asked) >= 3)
        assert it.topics.counts == {}
        broker.available = True
        assert await it.next() == {"a": 8, "b": 0}

    assert [getattr(record, "event", None) for record in caplog.records] == ["topics_failed"]


async def test_what_comes_while_the_broker_takes_its_time_is_asked_for_next() -> None:
    broker = Broker()
    broker.answers.clear()
    async with kept(broker) as it:
        it.topics.want({"a": True})
        await settle()
        it.topics.want({"a": True, "b": True})
        broker.answers.set()
        while await it.next() != {"a": 8, "b": 8}:
            pass
