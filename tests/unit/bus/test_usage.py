"""A meter: what it adds up, how it reports, and that nothing is lost or told twice without its number."""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from enum import Enum, auto

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.bus import usage
from headrace.bus.memory.usage import MemoryUsage
from headrace.bus.protocols import LogUnavailableError, RecordTooLargeError, UsageBatch
from headrace.bus.topics import LARGEST_USAGE_BYTES
from headrace.bus.usage import UsageMeter, read_reports
from headrace.bus.v1.usage_pb2 import UsageEntry, UsageReport

NOON = 1_800_000_000.0 - 1_800_000_000.0 % 3600

Sums = Counter[tuple[str, str, str, int, str]]
"""By tenant, key, model, hour and what is counted."""


class Fate(Enum):
    """What becomes of a publication."""

    TAKEN = auto()
    REFUSED = auto()
    ANSWER_LOST = auto()
    CANCELLED = auto()
    CANCELLED_TOO_LATE = auto()


class FatefulLog:
    """A log with a mind of its own. Where publications are to be cancelled, it says so, and waits for it."""

    def __init__(self, fates: Sequence[Fate] = ()) -> None:
        self.fates = list(fates)
        self.records: list[bytes] = []
        self.stuck = asyncio.Event()

    async def publish(self, report: UsageReport) -> None:
        fate = self.fates.pop(0) if self.fates else Fate.TAKEN
        if fate in {Fate.TAKEN, Fate.ANSWER_LOST, Fate.CANCELLED_TOO_LATE}:
            self.records.append(report.SerializeToString())
        if fate in {Fate.REFUSED, Fate.ANSWER_LOST}:
            raise LogUnavailableError("told to fail")
        if fate in {Fate.CANCELLED, Fate.CANCELLED_TOO_LATE}:
            self.stuck.set()
            await asyncio.Event().wait()

    def read(self, offset: int | None) -> AsyncIterator[UsageBatch]:
        raise NotImplementedError

    async def until_stuck_or_done(self, work: Awaitable[None]) -> None:
        """Do the work, and cancel it where it hangs."""
        self.stuck.clear()
        working, stuck = asyncio.ensure_future(work), asyncio.ensure_future(self.stuck.wait())
        await asyncio.wait({working, stuck}, return_when=asyncio.FIRST_COMPLETED)
        for each in (working, stuck):
            each.cancel()
        await asyncio.gather(working, stuck, return_exceptions=True)


def reports(log: MemoryUsage | FatefulLog) -> list[UsageReport]:
    read, malformed = read_reports(log.records)
    assert malformed == 0
    return read


def summed(log: MemoryUsage | FatefulLog) -> Sums:
    """What a reader sums who knows reports by their number."""
    sums: Sums = Counter()
    for report in {report.sequence: report for report in reports(log)}.values():
        for entry in report.entries:
            for what in ("calls", "request_bytes", "response_bytes", "model_micros"):
                sums[entry.tenant, entry.key_id, entry.model, entry.hour_unix_seconds, what] += getattr(entry, what)
    return +sums


def calls(log: MemoryUsage | FatefulLog) -> Counter[tuple[str, str, str]]:
    """Calls alone, whenever."""
    found: Counter[tuple[str, str, str]] = Counter()
    for (tenant, key_id, model, _, what), amount in summed(log).items():
        if what == "calls":
            found[tenant, key_id, model] += amount
    return found


async def test_what_is_of_one_kind_is_one_entry() -> None:
    now, log = NOON, MemoryUsage()
    meter = UsageMeter("gateway/a/1", clock=lambda: now)
    for _ in range(3):
        now += 1.5
        meter.add("acme", "simple", key_id="k", calls=1, request_bytes=10, response_bytes=20)
    meter.add("acme", "simple", model_micros=7)

    await meter.flush(log)

    [report] = reports(log)
    assert (report.schema_version, report.source, report.sequence) == (1, "gateway/a/1", 1)
    assert list(report.entries) == [
        UsageEntry(
            tenant="acme",
            key_id="k",
            model="simple",
            hour_unix_seconds=int(NOON),
            calls=3,
            request_bytes=30,
            response_bytes=60,
            last_unix_micros=int((NOON + 4.5) * 1e6),
        ),
        UsageEntry(
            tenant="acme",
            model="simple",
            hour_unix_seconds=int(NOON),
            model_micros=7,
            last_unix_micros=int((NOON + 4.5) * 1e6),
        ),
    ]


async def test_every_hour_is_told_apart() -> None:
    now, log = NOON + 3599.9, MemoryUsage()
    meter = UsageMeter("s", clock=lambda: now)
    meter.add("acme", "simple", calls=1)
    now = NOON + 3600
    meter.add("acme", "simple", calls=2)

    await meter.flush(log)

    hours = {entry.hour_unix_seconds: entry.calls for entry in reports(log)[0].entries}
    assert hours == {int(NOON): 1, int(NOON) + 3600: 2}


async def test_where_nothing_was_used_nothing_is_reported() -> None:
    log, meter = MemoryUsage(), UsageMeter("s")

    await meter.flush(log)

    assert log.records == []


async def test_a_report_that_the_log_did_not_take_is_published_again_as_it_was() -> None:
    """And no other is made meanwhile, however much is added."""
    told: list[int] = []
    log, meter = MemoryUsage(), UsageMeter("s", closed=lambda sequence, _: told.append(sequence))
    log.available = False
    meter.add("acme", "simple", calls=1)
    for _ in range(3):
        with pytest.raises(LogUnavailableError):
            await meter.flush(log)
        meter.add("acme", "simple", calls=10)
    assert told == [1]

    log.available = True
    await meter.flush(log)

    assert [(report.sequence, report.entries[0].calls) for report in reports(log)] == [(1, 1), (2, 30)]


@pytest.mark.parametrize("fate", [Fate.CANCELLED, Fate.CANCELLED_TOO_LATE])
async def test_a_cancelled_publication_is_made_again_the_same(fate: Fate) -> None:
    log, meter = FatefulLog([fate]), UsageMeter("s")
    meter.add("acme", "simple", calls=1)
    await log.until_stuck_or_done(meter.flush(log))
    meter.add("acme", "simple", calls=5)

    await meter.flush(log)

    assert [report.sequence for report in reports(log)] == ([1, 2] if fate is Fate.CANCELLED else [1, 1, 2])
    assert len(set(log.records)) == 2
    assert calls(log) == {("acme", "", "simple"): 6}


async def kept(meter: UsageMeter, log: MemoryUsage | FatefulLog, until: Callable[[], bool]) -> None:
    """Keep the meter until something holds."""
    keeping = asyncio.ensure_future(meter.keep(log))
    async with asyncio.timeout(30):
        while not until():
            assert not keeping.done(), keeping.exception()
            await asyncio.sleep(0)
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)


@pytest.mark.parametrize("fate", [Fate.CANCELLED, Fate.REFUSED])
async def test_a_log_that_takes_no_usage_does_not_hold_up_the_end(fate: Fate, caplog: pytest.LogCaptureFixture) -> None:
    """One that neither takes nor refuses as little as one that is away."""
    log, meter = FatefulLog([fate]), UsageMeter("s")
    meter.add("acme", "simple", calls=1)

    async with asyncio.timeout(30):
        await meter.end(log, seconds=0.01 if fate is Fate.CANCELLED else 10)

    assert [getattr(record, "event", "") for record in caplog.records] == ["usage_lost"]


async def test_the_end_publishes_what_is_left() -> None:
    log, meter = MemoryUsage(), UsageMeter("s")
    meter.add("acme", "simple", calls=1)

    await meter.end(log, seconds=10)

    assert calls(log) == {("acme", "", "simple"): 1}


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports are made as often as the loop turns."""
    monkeypatch.setattr(usage, "REPORT_SECONDS", 0)


@pytest.mark.usefixtures("at_once")
async def test_a_kept_meter_reports_what_comes() -> None:
    log, meter = MemoryUsage(), UsageMeter("s")
    meter.add("acme", "simple", calls=1)
    await kept(meter, log, lambda: len(log.records) == 1)
    meter.add("acme", "simple", calls=1)
    await kept(meter, log, lambda: len(log.records) == 2)

    assert [report.sequence for report in reports(log)] == [1, 2]


@pytest.mark.usefixtures("at_once")
async def test_a_log_that_is_away_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    log, meter = FatefulLog([Fate.REFUSED] * 20), UsageMeter("s")
    meter.add("acme", "simple", calls=1)

    with caplog.at_level(logging.INFO):
        await kept(meter, log, lambda: not log.fates and len(caplog.records) > 1)

    assert [record.event for record in caplog.records] == ["usage_not_published", "usage_published_again"]  # type: ignore[attr-defined]
    assert calls(log) == {("acme", "", "simple"): 1}


@pytest.mark.usefixtures("at_once")
async def test_a_log_that_takes_only_small_reports_is_no_reason_to_end(caplog: pytest.LogCaptureFixture) -> None:
    """Whoever made the topic may have set its limit too low: they can mend it, and nothing is lost meanwhile."""
    log, meter = MemoryUsage(), UsageMeter("s" * 3 * LARGEST_USAGE_BYTES)
    meter.add("acme", "simple", calls=1)
    with pytest.raises(RecordTooLargeError):
        await meter.flush(log)

    await kept(meter, log, lambda: "usage_not_published" in {getattr(each, "event", "") for each in caplog.records})


async def test_beyond_so_many_kinds_keys_and_then_models_are_counted_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage, "MAX_ENTRIES", 3)
    log, meter = MemoryUsage(), UsageMeter("s")
    for model in "abcdef":
        for key_id in ("k", "l"):
            for tenant in ("acme", "other"):
                meter.add(tenant, model, key_id=key_id, calls=1)
    await meter.flush(log)
    meter.add("acme", "z", key_id="k", calls=1)
    await meter.flush(log)

    assert calls(log) == {
        ("acme", "k", "a"): 1,
        ("other", "k", "a"): 1,
        ("acme", "l", "a"): 1,
        ("other", "", "a"): 1,
        ("acme", "", "b"): 2,
        ("other", "", "b"): 2,
        ("acme", "", ""): 8,
        ("other", "", ""): 8,
        ("acme", "k", "z"): 1,
    }


async def test_what_is_too_much_for_one_report_goes_into_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage, "_MOST_IN_A_REPORT", 4)
    told: list[tuple[int, int]] = []
    log, meter = MemoryUsage(), UsageMeter("s", closed=lambda sequence, them: told.append((sequence, len(them))))
    for number in range(10):
        meter.add("acme", f"m{number}", calls=1)

    await meter.flush(log)

    assert [(report.sequence, len(report.entries)) for report in reports(log)] == [(1, 4), (2, 4), (3, 2)]
    assert told == [(1, 4), (2, 4), (3, 2)]


async def test_what_was_closed_and_is_in_no_report_yet_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """The log goes away between two reports of one moment."""
    monkeypatch.setattr(usage, "_MOST_IN_A_REPORT", 1)
    log, meter = FatefulLog([Fate.TAKEN, Fate.REFUSED]), UsageMeter("s")
    for model in "abc":
        meter.add("acme", model, calls=1)
    with pytest.raises(LogUnavailableError):
        await meter.flush(log)
    meter.add("acme", "a", calls=1)

    assert [report.entries[0].model for report in meter.close()] == ["b", "c", "a"]


def test_the_largest_report_fits_into_the_log() -> None:
    """Names are at most as long as settings, policy and topics let them be."""
    meter = UsageMeter("router/" + "p" * 63 + "/" + "i" * 128 + "/0123456789abcdef", clock=lambda: 4e9)
    for number in range(usage._MOST_IN_A_REPORT):
        names = {"key_id": f"token:{number:0255d}", "calls": 1 << 62, "request_bytes": 1 << 62}
        meter.add("t" * 128, f"{number:0256d}", response_bytes=1 << 62, model_micros=1 << 62, **names)  # type: ignore[arg-type]

    [report] = meter.close()

    assert report.ByteSize() <= LARGEST_USAGE_BYTES


def test_what_is_no_report_is_counted() -> None:
    good = UsageReport(source="s", sequence=1)

    assert read_reports([b"\xff", good.SerializeToString(), b"\x12\xff"]) == ([good], 2)


ADDED = st.tuples(
    st.sampled_from(["acme", "größe"]),
    st.sampled_from(["simple", "other"]),
    st.sampled_from(["", "k", "l"]),
    st.integers(0, 1 << 40),
    st.integers(0, 7200),
)


@given(
    steps=st.lists(st.one_of(ADDED, st.lists(st.sampled_from(Fate), max_size=4)), max_size=30),
    most=st.integers(1, 3),
)
async def test_whatever_happens_each_number_once_is_exactly_what_was_used(
    steps: list[tuple[str, str, str, int, int] | list[Fate]], most: int
) -> None:
    """A list of fates is one flush; the log takes everything in the end."""
    now, log = NOON, FatefulLog()
    told: list[int] = []
    meter = UsageMeter("s", clock=lambda: now, closed=lambda sequence, _: told.append(sequence))
    added: Sums = Counter()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(usage, "_MOST_IN_A_REPORT", most)
        for step in [*steps, []]:
            if isinstance(step, list):
                log.fates = list(step)
                await log.until_stuck_or_done(meter.flush(log))
            else:
                tenant, model, key_id, amount, later = step
                now += later
                meter.add(tenant, model, key_id=key_id, calls=1, request_bytes=amount, model_micros=amount // 3)
                for what, each in (("calls", 1), ("request_bytes", amount), ("model_micros", amount // 3)):
                    added[tenant, key_id, model, int(now // 3600) * 3600, what] += each

    assert summed(log) == +added
    numbers = [report.sequence for report in reports(log)]
    assert list(dict.fromkeys(numbers)) == list(range(1, len(set(numbers)) + 1))
    assert numbers == sorted(numbers)
    assert told == sorted(set(numbers))
    assert len(set(log.records)) == len(set(numbers))
