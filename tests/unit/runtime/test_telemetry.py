"""What a scrape shows of what is counted anyway."""

import asyncio
import math
import time
from collections import Counter
from collections.abc import Iterator
from importlib import metadata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from headrace.runtime import telemetry as t
from headrace.runtime.telemetry import (
    FORGET_SECONDS,
    OTHER,
    Bounded,
    BuildInfo,
    Counted,
    Gauge,
    Gauges,
    Histogram,
    Histograms,
    Instrument,
    LoopLag,
    Telemetry,
)

GONE = "gone"


def scraped(*instruments: Instrument) -> dict[str, Metric]:
    """What Prometheus' own parser makes of it, by name; without what every process has."""
    families = text_string_to_metric_families(Telemetry(*instruments).scrape().decode())
    return {family.name: family for family in families if family.name.startswith("headrace_")}


def histograms(histogram: Histogram, *labels: tuple[str, str]) -> Histograms:
    names, values = tuple(name for name, _ in labels), tuple(value for _, value in labels)
    return Histograms("headrace_wait_seconds", "Waits.", names, lambda: [(values, histogram)])


def test_counts_are_read_at_scrape() -> None:
    ended: Counter[str] = Counter(OK=2)
    telemetry = Telemetry(Counted("headrace_gateway_calls_total", "Calls.", "reason", ended))
    ended["OK"] += 1
    ended["ROUTER_LOST"] += 1

    families = text_string_to_metric_families(telemetry.scrape().decode())

    (calls,) = [family for family in families if family.name == "headrace_gateway_calls"]
    read = {sample.labels["reason"]: sample.value for sample in calls.samples}
    assert read == {"OK": 3, "ROUTER_LOST": 1}
    assert {sample.name for sample in calls.samples} == {"headrace_gateway_calls_total"}
    assert calls.type == "counter"


def test_gauges_are_asked_at_scrape_only() -> None:
    asked = []

    def read() -> float:
        asked.append(True)
        return 5.0

    telemetry = Telemetry(Gauge("headrace_waiting", "Waiting.", read))
    assert not asked

    text = telemetry.scrape().decode()

    assert "headrace_waiting 5.0" in text
    assert "process_cpu_seconds_total" in text
    assert len(asked) == 1


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_a_label_is_told_as_it_is(value: str) -> None:
    gauges = Gauges("headrace_waiting", "Waiting.", ("model", "tenant"), lambda: [((value, "acme"), 2)])

    [line] = [line for line in gauges.lines() if line.startswith("headrace_waiting")]

    assert "\n" not in line
    escaped = value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
    assert line == f'headrace_waiting{{model="{escaped}",tenant="acme"}} 2.0'


@pytest.mark.parametrize(("value", "told"), [(math.inf, "+Inf"), (-math.inf, "-Inf"), (math.nan, "NaN"), (3, "3.0")])
def test_numbers_are_written_as_prometheus_reads_them(value: float, told: str) -> None:
    assert list(Gauge("headrace_waiting", "Waiting.", lambda: value).lines()) == [f"headrace_waiting {told}"]


# Histograms.


def test_a_histogram_counts_what_is_at_most_each_bound() -> None:
    waits = Histogram((0.1, 1.0))
    for seconds in (0.0, 0.1, 0.100001, 1.0, 2.5):
        waits.observe(seconds)

    family = scraped(histograms(waits, ("model", "simple")))["headrace_wait_seconds"]

    told = {(sample.name, sample.labels.get("le")): sample.value for sample in family.samples}
    assert told == {
        ("headrace_wait_seconds_bucket", "0.1"): 2,
        ("headrace_wait_seconds_bucket", "1.0"): 4,
        ("headrace_wait_seconds_bucket", "+Inf"): 5,
        ("headrace_wait_seconds_sum", None): pytest.approx(3.700001),
        ("headrace_wait_seconds_count", None): 5,
    }
    assert {sample.labels["model"] for sample in family.samples} == {"simple"}
    assert (family.type, waits.count) == ("histogram", 5)


def test_a_histogram_needs_no_labels() -> None:
    lines = list(histograms(Histogram((1.0,))).lines())

    assert lines[0].splitlines() == [
        'headrace_wait_seconds_bucket{le="1.0"} 0.0',
        'headrace_wait_seconds_bucket{le="+Inf"} 0.0',
        "headrace_wait_seconds_sum 0.0",
        "headrace_wait_seconds_count 0.0",
    ]


@given(st.lists(st.floats(0, 1000)))
def test_no_observation_is_lost(seconds: list[float]) -> None:
    waits = Histogram()
    for each in seconds:
        waits.observe(each)

    cumulated = waits.cumulated()

    assert cumulated[-1] == waits.count == len(seconds)
    assert cumulated == [sum(each <= bound for each in seconds) for bound in (*waits.bounds, math.inf)]


def test_an_observation_costs_far_less_than_a_call() -> None:
    """A microsecond; ten of them on a machine that is busy."""
    waits, times = Histogram(), []
    for _ in range(20):
        began = time.perf_counter()
        for _ in range(1000):
            waits.observe(0.0031)
        times.append((time.perf_counter() - began) / 1000)

    assert min(times) < 10e-6


# Bounds.


def test_the_first_names_have_their_own_and_the_others_share_one() -> None:
    counts: Bounded[list[str]] = Bounded(list, most=2)
    for name in ("a", "b", "c", "d", "a"):
        counts[name].append(name)

    assert counts == {"a": ["a", "a"], "b": ["b"], OTHER: ["c", "d"]}
    assert [counts.label(name) for name in ("a", "c", OTHER)] == ["a", OTHER, OTHER]


def test_what_is_called_other_takes_nobodys_place() -> None:
    counts: Bounded[list[str]] = Bounded(list, most=1)

    assert [counts.label(name) for name in (OTHER, "a", "b")] == [OTHER, "a", OTHER]


def test_what_is_gone_is_forgotten_after_an_hour_and_makes_room() -> None:
    counts: Bounded[list[str]] = Bounded(list, most=2)
    for name in ("a", GONE):
        counts[name].append(name)

    for now in (0.0, FORGET_SECONDS - 1):
        counts.forget({"a"}.__contains__, now)
        assert GONE in counts
    counts.forget({"a"}.__contains__, FORGET_SECONDS)

    assert counts == {"a": ["a"]}
    assert counts.label("b") == "b"


def test_what_comes_back_is_not_forgotten() -> None:
    counts: Bounded[list[str]] = Bounded(list)
    counts[GONE].append("before")

    counts.forget(lambda _: False, 0.0)
    counts.forget(lambda _: True, FORGET_SECONDS - 1)
    counts.forget(lambda _: False, FORGET_SECONDS)
    counts.forget(lambda _: False, 2 * FORGET_SECONDS - 1)

    assert counts[GONE] == ["before"]


# Scraping.


def many(count: int) -> Gauges:
    return Gauges("headrace_many", "Many.", ("model",), lambda: [((str(number),), number) for number in range(count)])


def test_a_large_scrape_comes_in_parts_that_are_short() -> None:
    parts = list(Telemetry(many(2000), Gauge("headrace_last", "Last.", lambda: 1)).parts())

    assert max(part.count(b"\n") for part in parts) <= t._LINES_A_PART + 2
    assert b"".join(parts).count(b"headrace_many{") == 2000
    assert parts[-1].endswith(b"headrace_last 1.0\n")
    assert len(parts) >= 4


def test_what_changes_between_two_parts_breaks_nothing() -> None:
    counts = dict.fromkeys(map(str, range(1200)), 1.0)

    def parts() -> Iterator[bytes]:
        for part in Telemetry(Counted("headrace_many_total", "Many.", "model", counts)).parts():
            counts[f"new {len(counts)}"] = 1.0
            yield part

    assert b"".join(parts()).count(b"headrace_many_total{") == 1200 + 1  # one came before it was read


def test_the_build_is_told() -> None:
    [sample] = scraped(BuildInfo("gateway"))["headrace_build_info"].samples

    assert sample.value == 1
    assert sample.labels.keys() == {"process", "version", "python"}
    assert (sample.labels["process"], sample.labels["version"]) == ("gateway", metadata.version("headrace"))


async def test_a_loop_that_is_held_up_is_seen() -> None:
    lag = LoopLag(every_seconds=0.01)
    keeping = asyncio.create_task(lag.keep())
    await asyncio.sleep(0)  # its clock runs

    time.sleep(0.15)  # noqa: ASYNC251  what must not happen
    for _ in range(5):
        await asyncio.sleep(0)  # it rings
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)

    assert lag.seconds.sum >= 0.1
