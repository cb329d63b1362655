"""The aggregator's composition root, and its one loop: read a batch, sum it in one transaction, read on."""

import asyncio
import logging
import socket
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, aclosing
from datetime import UTC, datetime, timedelta
from typing import cast

from aggregator.settings import AggregatorSettings
from aggregator.summing import missing, readable
from headrace.bus.control import KafkaUsage, TopicMissingError, Topics, until_own_topics
from headrace.bus.protocols import UsageBatch, UsageLog
from headrace.bus.topics import USAGE_TOPIC
from headrace.runtime import logs
from headrace.runtime.admin_http import Readiness, admin_http
from headrace.runtime.lifecycle import Background, Unstartable, serve_until, unless
from headrace.runtime.settings import read_secret
from headrace.runtime.telemetry import BuildInfo, Counted, Gauge, Instrument, Telemetry
from headrace.store.engine import SchemaError, Store, StoreUnavailableError
from headrace.store.usage import Batch, OffsetMovedError, forget_before, next_offset, sum_batch, summed_sequence

_PARTITION = 0
_RETRY_SECONDS = 1.0
_SUM_SECONDS = 30.0
_FORGET_SECONDS = 3600.0
_log = logging.getLogger(__name__)


async def serve(settings: AggregatorSettings, stop: asyncio.Event) -> None:
    """Run until told to stop. What is under way then is summed later, by whoever comes next."""
    logs.configure(settings.log, process="aggregator")
    own = settings.aggregator
    client_id = f"headrace-aggregator-{own.id or socket.gethostname()}"
    assert settings.database.url is not None  # noqa: S101  the settings saw to it
    password = None if settings.database.password_file is None else read_secret(settings.database.password_file)
    store = Store(settings.database.url, password=password)
    summing = Summing(KafkaUsage(settings.kafka, client_id=client_id), store)
    background = Background()
    telemetry = Telemetry(*summing.instruments())
    async with AsyncExitStack() as owned:
        enter = owned.enter_async_context
        await enter(admin_http(own.admin.host, own.admin.port, readiness=summing.readiness, metrics=telemetry.parts))
        await enter(store)
        if not await unless(stop, _prepared(settings, store, client_id)):
            return
        await enter(background)
        background.spawn("summing", summing.keep())
        background.spawn("retention", _forget(store, timedelta(days=own.retention_days)))
        _log.info("the aggregator runs", extra={"event": "aggregator_started"})
        await serve_until(stop, background.failed())


class Summing:
    """Sums what is published, for as long as it is kept up."""

    def __init__(self, log: UsageLog, store: Store, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._usage = log
        self._store = store
        self._clock = clock
        self._away = ""
        self._ready = False
        self._refused: Batch | None = None
        self._accompanied = False
        self._next_offset = 0
        self._behind = 0
        self._lags_since: float | None = None
        self._summed_at = clock()
        self.outcomes: Counter[str] = Counter(summed=0, known=0, malformed=0, unknown_version=0, missing=0)
        """Reports by what became of them."""
        self.batches: Counter[str] = Counter(summed=0, moved=0, failed=0)
        """Batches by what became of them: `moved` were another aggregator's, `failed` are tried again."""

    def instruments(self) -> list[Instrument]:
        """What is measured."""
        return [
            BuildInfo("aggregator"),
            Counted("headrace_aggregator_reports_total", "Reports of usage by outcome.", "outcome", self.outcomes),
            Counted("headrace_aggregator_batches_total", "Transactions by outcome.", "outcome", self.batches),
            Gauge("headrace_aggregator_next_offset", "Up to where the topic is summed.", lambda: self._next_offset),
            Gauge("headrace_aggregator_lag", "Records that are known of and not summed.", lambda: self._behind),
            Gauge(
                "headrace_aggregator_lag_seconds",
                "Since when there are such records, or the database is away.",
                lambda: 0.0 if self._lags_since is None else self._clock() - self._lags_since,
            ),
            Gauge(
                "headrace_aggregator_batch_age_seconds",
                "Since when nothing was summed, also where nothing was used.",
                lambda: self._clock() - self._summed_at,
            ),
        ]

    def readiness(self) -> Readiness:
        """Whether the database took what there was."""
        if self._ready and not self._away:
            return Readiness(ready=True, text="ready")
        return Readiness(ready=False, text=self._away or "the broker or the database does not answer yet")

    async def keep(self) -> None:
        """Sum until cancelled. A database that is away is waited for, and then asked what it had taken."""
        while True:
            try:
                await self._sum()
            except StoreUnavailableError as exc:
                self.batches["failed"] += 1
                if self._away != str(exc):
                    _log.warning("usage is not summed: %s", exc, extra={"event": "database_away", "why": str(exc)})
                self._away = str(exc)
                self._see_lag()
            except OffsetMovedError:
                self.batches["moved"] += 1
                if not self._accompanied:
                    _log.info("another aggregator sums too", extra={"event": "offset_moved"})
                self._accompanied = True
            await asyncio.sleep(_RETRY_SECONDS)  # the pace of retries

    async def _sum(self) -> None:
        after = await self._store.run(lambda c: next_offset(c, USAGE_TOPIC, _PARTITION), read_only=True)
        if self._refused is None or self._refused.after != after:
            self._back()
        async with aclosing(cast("AsyncGenerator[UsageBatch]", self._usage.read(after))) as batches:
            async for batch in batches:
                if after is not None and batch.first_offset != after:
                    _log.error(
                        "the usage topic goes on at %d, and was summed up to %d: it was made anew, or what is"
                        " between was deleted before it was summed",
                        batch.first_offset,
                        after,
                        extra={"event": "usage_gap", "expected": after, "found": batch.first_offset},
                    )
                await self._take(batch, after)
                after = batch.next_offset

    async def _take(self, batch: UsageBatch, after: int | None) -> None:
        passed_over = Counter(malformed=batch.malformed)
        reports = readable(batch.reports, passed_over)
        stored = Batch(USAGE_TOPIC, _PARTITION, after, batch.next_offset, reports)
        now = datetime.now(UTC)
        self._behind = batch.behind + batch.next_offset - batch.first_offset
        self._see_lag()
        try:
            gone, new = await self._store.run(
                lambda c: (
                    missing(reports, lambda source: summed_sequence(c, source)),
                    sum_batch(c, stored, now=now),
                ),
                seconds=_SUM_SECONDS,
            )
        except StoreUnavailableError:
            self._refused = stored
            raise
        self._next_offset, self._behind, self._summed_at = batch.next_offset, batch.behind, self._clock()
        self._back()
        self.batches["summed"] += 1
        self.outcomes.update(passed_over, summed=new, known=len(reports) - new, missing=gone)
        if passed_over.total():
            malformed, newer = passed_over["malformed"], passed_over["unknown_version"]
            extra = {"event": "usage_unreadable", "malformed": malformed, "unknown_version": newer}
            _log.error("reports were passed over", extra=extra)
        if gone:
            _log.error("%d reports are missing", gone, extra={"event": "usage_missing", "reports": gone})

    def _back(self) -> None:
        if self._away:
            _log.info("usage is summed again", extra={"event": "database_back"})
        self._away = ""
        self._refused = None
        self._ready = True
        self._see_lag()

    def _see_lag(self) -> None:
        if not (self._behind or self._away):
            self._lags_since = None
        elif self._lags_since is None:
            self._lags_since = self._clock()


async def _prepared(settings: AggregatorSettings, store: Store, client_id: str) -> None:
    """Return once the database has its tables and the broker the topic; wait for either that is away."""
    topics = Topics(settings.kafka, settings.topics, client_id=client_id)
    told = ""
    while True:
        try:
            await asyncio.to_thread(store.check)
            await until_own_topics(settings.kafka, topics, client_id)
        except (SchemaError, TopicMissingError) as exc:
            raise Unstartable(str(exc)) from None
        except StoreUnavailableError as exc:
            if told != str(exc):
                _log.warning("%s; trying again", exc, extra={"event": "start_awaited", "why": str(exc)})
            told = str(exc)
            await asyncio.sleep(_RETRY_SECONDS)  # the pace of retries
        else:
            return


async def _forget(store: Store, age: timedelta) -> None:
    """Delete old usage, once an hour."""
    while True:
        try:
            while rows := await store.run(lambda c: forget_before(c, datetime.now(UTC) - age)):
                _log.info("%d rows of old usage are deleted", rows, extra={"event": "usage_forgotten", "rows": rows})
        except StoreUnavailableError as exc:
            _log.warning("old usage is not deleted: %s", exc, extra={"event": "usage_not_forgotten", "why": str(exc)})
        await asyncio.sleep(_FORGET_SECONDS)  # a clock
