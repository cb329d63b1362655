"""The aggregator between a usage topic in memory and a database of its own: each report counts once, whatever dies."""

import asyncio
import logging
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from enum import Enum, auto
from pathlib import Path
from typing import Any, TypeVar

import pytest
import sqlalchemy as sa

from aggregator import app
from aggregator.app import Summing, serve
from aggregator.settings import AdminSettings, AggregatorSection, AggregatorSettings
from headrace.bus.memory.usage import MemoryUsage
from headrace.bus.settings import KafkaSettings
from headrace.bus.topics import USAGE_TOPIC
from headrace.bus.usage import UsageMeter
from headrace.bus.v1.usage_pb2 import UsageEntry, UsageReport
from headrace.runtime.lifecycle import Unstartable
from headrace.runtime.telemetry import Telemetry
from headrace.store.engine import Store, StoreUnavailableError
from headrace.store.schema import usage, usage_totals
from headrace.store.settings import DatabaseSettings
from headrace.store.usage import next_offset

HOUR = 1_799_999_200 - 1_799_999_200 % 3600
DAY = 86_400
SECONDS = 20.0
T = TypeVar("T")


class Fate(Enum):
    """What becomes of a transaction."""

    KEPT = auto()
    REFUSED = auto()
    UNDONE = auto()
    ANSWER_LOST = auto()
    KILLED_BEFORE_THE_END = auto()
    KILLED_AFTER_THE_END = auto()


class KilledError(Exception):
    """The process is no more."""


class FatefulStore(Store):
    """A database whose next transactions end as the test says."""

    fates: tuple[Fate, ...] = ()
    before_writing: Callable[[], Awaitable[object]] | None = None

    async def run(self, work: Callable[[sa.Connection], T], *, seconds: float = 5.0, read_only: bool = False) -> T:
        fate = Fate.KEPT
        if self.before_writing is not None and not read_only:
            await self.before_writing()
        if self.fates and not read_only:
            fate, *rest = self.fates
            self.fates = tuple(rest)
        if fate is Fate.REFUSED:
            raise StoreUnavailableError("told to refuse")
        if fate in {Fate.UNDONE, Fate.KILLED_BEFORE_THE_END}:

            def undone(c: sa.Connection) -> T:
                work(c)
                raise KilledError

            try:
                return await super().run(undone, seconds=seconds)
            except KilledError:
                if fate is Fate.UNDONE:
                    raise StoreUnavailableError("told to undo") from None
                raise
        done = await super().run(work, seconds=seconds, read_only=read_only)
        if fate is Fate.ANSWER_LOST:
            raise StoreUnavailableError("told to lose the answer")
        if fate is Fate.KILLED_AFTER_THE_END:
            raise KilledError
        return done


def report(
    sequence: int, calls: int = 1, *, source: str = "gateway/a/1", version: int = 1, hour: int = HOUR
) -> UsageReport:
    entry = UsageEntry(tenant="acme", model="simple", hour_unix_seconds=hour, calls=calls)
    return UsageReport(schema_version=version, source=source, sequence=sequence, entries=[entry])


class Bench:
    """A topic, a database, and who looks into it."""

    def __init__(self, path: Path) -> None:
        self._url = f"sqlite:///{path}"
        self.store = FatefulStore(self._url)
        self.log = MemoryUsage()

    def another_store(self) -> FatefulStore:
        return FatefulStore(self._url)

    @asynccontextmanager
    async def summing(self, store: Store | None = None) -> AsyncIterator[Summing]:
        summing = Summing(self.log, store or self.store)
        keeping = asyncio.ensure_future(summing.keep())
        try:
            yield summing
        finally:
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(SECONDS):
            while not await asyncio.to_thread(holds):  # noqa: ASYNC110  a database tells nobody
                await asyncio.sleep(0.002)

    async def until_summed(self) -> None:
        await self.until(lambda: self.offset() == len(self.log.records))

    def offset(self) -> int | None:
        with self.store.transaction(read_only=True) as c:
            return next_offset(c, USAGE_TOPIC, 0)

    def calls(self) -> int:
        with self.store.transaction(read_only=True) as c:
            return int(c.execute(sa.select(sa.func.coalesce(sa.func.sum(usage.c.calls), 0))).scalar_one())

    def rows(self, table: sa.Table) -> dict[tuple[Any, ...], tuple[int, ...]]:
        """Amounts by key."""
        with self.store.transaction(read_only=True) as c:
            keys = len(table.primary_key)
            return {tuple(row[:keys]): tuple(row[keys:]) for row in c.execute(sa.select(table))}


@pytest.fixture
async def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    monkeypatch.setattr(app, "_RETRY_SECONDS", 0.001)
    made = Bench(tmp_path / "headrace.db")
    async with made.store:
        await asyncio.to_thread(made.store.upgrade)
        yield made


def events(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [getattr(record, "event", "") for record in caplog.records]


async def test_what_is_published_is_summed(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """Batch after batch, without asking again where the last one ended."""
    with caplog.at_level(logging.INFO):
        async with bench.summing() as summing:
            for sequence in range(1, 6):
                await bench.log.publish(report(sequence, sequence))
                await bench.until_summed()
            await bench.until(lambda: summing.outcomes["summed"] == 5)
            assert summing.readiness().ready

    assert bench.calls() == 15
    assert summing.outcomes == Counter(summed=5)
    assert summing.batches == Counter(summed=5)
    assert events(caplog) == []


class Sources:
    """Some processes that count, report, and sometimes miss that the log has what they published."""

    def __init__(self, bench: Bench, chance: random.Random) -> None:
        self.now = float(HOUR)
        self._bench = bench
        self._chance = chance
        self._meters = [UsageMeter(f"gateway/{number}/1", clock=lambda: self.now) for number in range(3)]
        self.used: dict[tuple[Any, ...], tuple[int, ...]] = {}
        self.totals: dict[tuple[Any, ...], tuple[int, ...]] = {}

    async def use(self) -> None:
        self.now += self._chance.random() * 3600
        meter = self._chance.choice(self._meters)
        for _ in range(self._chance.randrange(4)):
            tenant, key_id, model = (self._chance.choice(names) for names in (["acme", "ö"], ["", "k"], ["m", "n"]))
            amounts = tuple(self._chance.randrange(1 << 40) for _ in range(4))
            calls, request_bytes, response_bytes, model_micros = amounts
            meter.add(
                tenant,
                model,
                key_id=key_id,
                calls=calls,
                request_bytes=request_bytes,
                response_bytes=response_bytes,
                model_micros=model_micros,
            )
            at = datetime.fromtimestamp(self.now // 3600 * 3600, UTC)
            _add(self.used, (at, tenant, key_id, model), amounts)
            for period in (f"{at:%Y-%m-%d}", f"{at:%Y-%m}"):
                _add(self.totals, (period, tenant), (calls, request_bytes + response_bytes, model_micros))
        if self._chance.random() < 0.4:
            for each in meter.close():
                await self._bench.log.publish(each)  # and the meter does not hear of it
        await meter.flush(self._bench.log)


def _add(sums: dict[tuple[Any, ...], tuple[int, ...]], key: tuple[Any, ...], amounts: tuple[int, ...]) -> None:
    sums[key] = tuple(map(sum, zip(sums.get(key, (0,) * len(amounts)), amounts, strict=True)))


async def live(bench: Bench, turns: int | None) -> None:
    """An aggregator, for so many turns of the loop; or until it dies or all is summed."""
    keeping = asyncio.ensure_future(Summing(bench.log, bench.store).keep())
    summed = asyncio.ensure_future(bench.until_summed())
    if turns is None:
        await asyncio.wait({keeping, summed}, return_when=asyncio.FIRST_COMPLETED)
    else:
        for _ in range(turns):
            await asyncio.sleep(0)
    for each in (keeping, summed):
        each.cancel()
    ends = await asyncio.gather(keeping, summed, return_exceptions=True)
    assert isinstance(ends[0], asyncio.CancelledError | KilledError), ends


@pytest.mark.parametrize("seed", range(6))
async def test_sums_are_exact_whatever_becomes_of_transactions_and_processes(bench: Bench, seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311  no secret
    sources = Sources(bench, chance)
    for fate in Fate:
        before = len(bench.log.records)
        while len(bench.log.records) == before:
            await sources.use()
        bench.store.fates = (fate,)
        await live(bench, None)
        assert not bench.store.fates

    for _ in range(30):
        for _ in range(chance.randrange(3)):
            await sources.use()
        bench.store.fates = tuple(chance.choice(list(Fate)) for _ in range(chance.randrange(4)))
        await live(bench, chance.choice([None, chance.randrange(200)]))
    bench.store.fates = ()
    await live(bench, None)

    assert bench.rows(usage) == sources.used
    assert bench.rows(usage_totals) == sources.totals


@pytest.mark.parametrize("seed", range(3))
async def test_two_at_once_sum_everything_once(bench: Bench, seed: int, caplog: pytest.LogCaptureFixture) -> None:
    """Also where transactions of both fail; that there is another one each says once."""
    chance = random.Random(seed)  # noqa: S311  no secret
    sources = Sources(bench, chance)
    survivable = [Fate.KEPT, Fate.REFUSED, Fate.UNDONE, Fate.ANSWER_LOST]

    with caplog.at_level(logging.INFO):
        async with bench.another_store() as other, bench.summing() as one, bench.summing(other) as two:
            for _ in range(60):
                await sources.use()
                await asyncio.sleep(0.001)  # so that both have something to do at a time
                if chance.random() < 0.3:
                    chance.choice([bench.store, other]).fates = (chance.choice(survivable),)
            await bench.until_summed()

    assert bench.rows(usage) == sources.used
    assert bench.rows(usage_totals) == sources.totals
    assert one.batches["summed"] + two.batches["summed"] > 0
    assert events(caplog).count("offset_moved") <= 2


async def test_of_two_that_read_the_same_one_sums_it_and_the_other_reads_on(bench: Bench) -> None:
    both_have_it = asyncio.Barrier(2)
    async with bench.another_store() as other, bench.summing() as one, bench.summing(other) as two:
        bench.store.before_writing = other.before_writing = both_have_it.wait
        await bench.log.publish(report(1))
        await bench.until(lambda: one.batches["moved"] + two.batches["moved"] == 1)
        bench.store.before_writing = other.before_writing = None
        for sequence in range(2, 5):
            await bench.log.publish(report(sequence))
        await bench.until_summed()

    assert bench.calls() == 4


async def test_a_database_that_refuses_is_told_once_until_it_takes_what_there_is(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """It may answer questions all the while, as one whose disk is full does."""
    bench.store.fates = (Fate.REFUSED,) * 20
    await bench.log.publish(report(1))

    with caplog.at_level(logging.INFO):
        async with bench.summing() as summing:
            await bench.until(lambda: len(bench.store.fates) < 10)
            refused = summing.readiness()
            await bench.until_summed()
            await bench.until(lambda: summing.readiness().ready)

    assert not refused.ready
    assert "told to refuse" in refused.text
    assert events(caplog) == ["database_away", "database_back"]
    assert summing.batches == Counter(failed=20, summed=1)
    assert bench.calls() == 1


async def test_a_database_whose_answer_was_lost_is_asked_what_it_took(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing more need come for it to be well again."""
    bench.store.fates = (Fate.ANSWER_LOST,)
    await bench.log.publish(report(1))

    with caplog.at_level(logging.INFO):
        async with bench.summing() as summing:
            await bench.until(lambda: "database_back" in events(caplog))
            assert summing.readiness().ready

    assert bench.calls() == 1


async def test_what_cannot_be_read_is_passed_over_and_told(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    await bench.log.publish(report(1, version=2, source="newer"))
    bench.log.append(b"\xff")
    await bench.log.publish(report(1, hour=1 << 60, source="broken"))
    await bench.log.publish(report(1, 4))

    async with bench.summing() as summing:
        await bench.until_summed()
        await bench.until(lambda: summing.batches["summed"] == 1)

    assert bench.calls() == 4
    assert summing.outcomes == Counter(summed=1, unknown_version=1, malformed=2)
    [told] = [record for record in caplog.records if getattr(record, "event", "") == "usage_unreadable"]
    assert (told.unknown_version, told.malformed) == (1, 2)  # type: ignore[attr-defined]


async def test_a_topic_that_was_made_anew_is_summed_from_its_start_and_told(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    for sequence in range(1, 6):
        await bench.log.publish(report(sequence))
    async with bench.summing():
        await bench.until_summed()
        bench.log.make_anew()
        for sequence in (5, 6):
            await bench.log.publish(report(sequence))
        await bench.until_summed()

    assert bench.calls() == 6
    assert "usage_gap" in events(caplog)
    assert "usage_missing" not in events(caplog)


async def test_a_topic_that_was_made_anew_while_nobody_looked_is_told_by_what_is_missing(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """It has grown beyond where the old one was summed: its offsets tell nothing."""
    await bench.log.publish(report(1))
    async with bench.summing():
        await bench.until_summed()
    bench.log.make_anew()
    for sequence in (2, 3):
        await bench.log.publish(report(sequence))

    async with bench.summing() as summing:
        await bench.until_summed()
        await bench.until(lambda: summing.outcomes["missing"] == 1)

    assert bench.calls() == 2
    assert events(caplog) == ["usage_missing"]


async def test_what_retention_took_away_is_told_and_the_rest_is_summed(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    await bench.log.publish(report(1))
    async with bench.summing():
        await bench.until_summed()
    for sequence in range(2, 7):
        await bench.log.publish(report(sequence))
    bench.log.forget(4)

    async with bench.summing() as summing:
        await bench.until_summed()
        await bench.until(lambda: summing.outcomes["missing"] == 3)

    assert bench.calls() == 3
    assert events(caplog) == ["usage_gap", "usage_missing"]
    gap = caplog.records[0]
    assert (gap.expected, gap.found) == (1, 4)  # type: ignore[attr-defined]


async def test_what_is_measured(bench: Bench) -> None:
    now = 100.0
    summing = Summing(bench.log, bench.store, clock=lambda: now)
    await bench.log.publish(report(1))
    await bench.log.publish(report(1))
    bench.store.fates = (Fate.REFUSED,)
    keeping = asyncio.ensure_future(summing.keep())
    await bench.until(lambda: summing.batches["summed"] == 1)
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)
    now += 7

    lines = Telemetry(*summing.instruments()).scrape().decode().splitlines()

    assert {
        'headrace_aggregator_reports_total{outcome="summed"} 1.0',
        'headrace_aggregator_reports_total{outcome="known"} 1.0',
        'headrace_aggregator_reports_total{outcome="missing"} 0.0',
        'headrace_aggregator_batches_total{outcome="summed"} 1.0',
        'headrace_aggregator_batches_total{outcome="failed"} 1.0',
        'headrace_aggregator_batches_total{outcome="moved"} 0.0',
        "headrace_aggregator_lag_seconds 0.0",
        "headrace_aggregator_next_offset 2.0",
        "headrace_aggregator_lag 0.0",
        "headrace_aggregator_batch_age_seconds 7.0",
    } <= set(lines)


async def test_what_the_database_does_not_take_is_its_lag(bench: Bench) -> None:
    for sequence in range(1, 4):
        await bench.log.publish(report(sequence))
    bench.store.fates = (Fate.REFUSED,) * 1000

    async with bench.summing() as summing:
        await bench.until(lambda: summing.batches["failed"] > 1)

        assert b"headrace_aggregator_lag 3.0" in Telemetry(*summing.instruments()).scrape()


async def test_the_lag_begins_when_something_is_not_summed_and_ends_when_all_is(bench: Bench) -> None:
    now = 100.0
    summing = Summing(bench.log, bench.store, clock=lambda: now)

    def lag() -> str:
        lines = Telemetry(*summing.instruments()).scrape().decode().splitlines()
        [line] = [line for line in lines if line.startswith("headrace_aggregator_lag_seconds ")]
        return line.split()[1]

    now += 50
    assert lag() == "0.0"
    await bench.log.publish(report(1))
    bench.store.fates = (Fate.REFUSED,)
    keeping = asyncio.ensure_future(summing.keep())
    await bench.until(lambda: summing.batches["failed"] == 1)
    now += 5
    assert lag() == "5.0"

    await bench.until(lambda: summing.batches["summed"] == 1)

    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)
    now += 5
    assert lag() == "0.0"


async def test_old_usage_is_deleted_again_and_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Also after the database was away."""
    monkeypatch.setattr(app, "_FORGET_SECONDS", 0.001)
    today = int(datetime.now(UTC).timestamp()) // 3600 * 3600
    bench.store.fates = (Fate.KEPT, Fate.REFUSED)
    for sequence, age in enumerate((0, 31, 60, 90), start=1):
        await bench.log.publish(report(sequence, hour=today - age * DAY))
    async with bench.summing():
        await bench.until_summed()

    forgetting = asyncio.ensure_future(app._forget(bench.store, timedelta(days=45)))
    await bench.until(lambda: bench.calls() == 2)
    forgetting.cancel()
    await asyncio.gather(forgetting, return_exceptions=True)

    assert {key[0] for key in bench.rows(usage)} == {datetime.fromtimestamp(today - age * DAY, UTC) for age in (0, 31)}
    assert "usage_not_forgotten" in events(caplog)


def settings(url: str) -> AggregatorSettings:
    return AggregatorSettings(
        kafka=KafkaSettings(bootstrap_servers="127.0.0.1:1"),
        database=DatabaseSettings(url=url),
        aggregator=AggregatorSection(admin=AdminSettings(host="127.0.0.1", port=0)),
    )


@pytest.fixture
def logging_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process sends its log elsewhere, and for good."""
    monkeypatch.setattr("headrace.runtime.logs.configure", lambda *_, **__: None)


@pytest.mark.usefixtures("logging_as_it_is")
async def test_tables_of_another_version_are_told_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(Unstartable, match="headrace database upgrade"):
        await serve(settings(f"sqlite:///{tmp_path}/empty.db"), asyncio.Event())


@pytest.mark.usefixtures("logging_as_it_is")
@pytest.mark.parametrize("present", ["a database", "nothing"])
async def test_while_it_waits_for_what_it_needs_it_can_be_told_to_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, present: str
) -> None:
    """A broker or a database that is away is said, and waited for."""
    monkeypatch.setattr(app, "_RETRY_SECONDS", 0.001)
    path = tmp_path / ("there" if present == "a database" else "missing/there")
    if present == "a database":
        Store(f"sqlite:///{path}").upgrade()
    stop = asyncio.Event()
    serving = asyncio.ensure_future(serve(settings(f"sqlite:///{path}"), stop))
    async with asyncio.timeout(SECONDS):
        while not caplog.records:  # noqa: ASYNC110  a log tells nobody
            await asyncio.sleep(0.002)

    stop.set()
    await asyncio.wait_for(serving, SECONDS)

    assert events(caplog) == ["broker_awaited" if present == "a database" else "start_awaited"]
