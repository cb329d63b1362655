"""The request topics of what Triton has: made where they are missing, and counted, apart from what must not wait."""

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from typing import Protocol

from headrace.bus.control import TopicMissingError, TopicRefusedError
from headrace.bus.protocols import LogUnavailableError

_RETRY_SECONDS = 2.0
_AGAIN_SECONDS = 30.0
_log = logging.getLogger(__name__)


class MakesTopics(Protocol):
    """What is asked of the broker; see Topics."""

    async def ensure_requests(self, topics: Collection[str], group: str) -> None:
        """See Topics.ensure_requests."""
        ...

    async def partition_counts(self, topics: Collection[str]) -> dict[str, int]:
        """See Topics.partition_counts."""
        ...


class RequestTopics:
    """Looks after the topics that are wanted. `changed` is called when more is known of them."""

    def __init__(
        self,
        topics: MakesTopics,
        *,
        group: str,
        changed: Callable[[], None],
        retry_seconds: float = _RETRY_SECONDS,
        again_seconds: float = _AGAIN_SECONDS,
    ) -> None:
        """Again after `retry_seconds` for what is needed, and after `again_seconds` for what may never be."""
        self._topics = topics
        self._group = group
        self._changed = changed
        self._retry_seconds = retry_seconds
        self._again_seconds = again_seconds
        self._wanted: Mapping[str, bool] = {}
        self._asked: set[tuple[str, bool]] = set()
        self._due = asyncio.Event()
        self._trouble = ""
        self.counts: dict[str, int] = {}
        """Partitions by topic: 0 where it was missing when the broker was last asked, nothing before it was asked."""

    def want(self, topics: Mapping[str, bool]) -> None:
        """These topics alone, from now on. True where it is needed, and so made; False where it may be missing."""
        self._wanted = topics
        if self._lacking() - self._asked:
            self._due.set()

    async def keep(self) -> None:
        """Ask for what is lacking, again and again, until cancelled."""
        while True:
            lacking = self._lacking()
            soon = self._trouble or any(needed for _, needed in lacking)
            seconds = self._retry_seconds if soon else self._again_seconds
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds if lacking else None):
                    await self._due.wait()
            self._due.clear()
            await self._ask()

    def _lacking(self) -> set[tuple[str, bool]]:
        return {each for each in self._wanted.items() if not self.counts.get(each[0])}

    async def _ask(self) -> None:
        lacking = self._asked = self._lacking()
        trouble, refused = "", False
        known = dict(self.counts)
        try:
            try:
                if needed := sorted(topic for topic, needed in lacking if needed):
                    await self._topics.ensure_requests(needed, self._group)
            except (TopicMissingError, TopicRefusedError) as exc:
                trouble, refused = str(exc), True  # these are lacking, and the others are there
            asked = [topic for topic, _ in lacking]
            self.counts |= dict.fromkeys(asked, 0) | await self._topics.partition_counts(asked)
        except LogUnavailableError as exc:
            trouble, refused = str(exc), False
        if trouble and trouble != self._trouble:
            if refused:
                _log.error("topics are lacking: %s", trouble, extra={"event": "topics_missing", "why": trouble})
            else:
                _log.error("topics can't be asked for: %s", trouble, extra={"event": "topics_failed", "why": trouble})
        self._trouble = trouble
        if self.counts != known:
            self._changed()
