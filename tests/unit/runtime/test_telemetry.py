"""Counting, and what a scrape shows of it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from headrace.runtime.telemetry import Buckets, Counters, Gauge, Gauges, Histograms, Telemetry


def samples(*instruments: Counters | Histograms | Gauge | Gauges) -> dict[tuple[str, tuple[str, ...]], float]:
    text = Telemetry(*instruments).scrape().decode()
    return {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_counters_are_read_at_scrape() -> None:
    calls = Counters("headrace_gateway_calls", "Calls.", ["reason"])
    ok, lost = calls.at("OK"), calls.at("ROUTER_LOST")
    ok.value += 2
    calls.at("OK").value += 1

    read = samples(calls)

    assert read["headrace_gateway_calls_total", ("OK",)] == 3
    assert read["headrace_gateway_calls_total", ("ROUTER_LOST",)] == lost.value == 0


def test_a_wrong_number_of_labels_is_our_mistake() -> None:
    with pytest.raises(ValueError, match="headrace_x has the labels"):
        Counters("headrace_x", "X.", ["a", "b"]).at("only one")


def test_a_histogram_counts_a_value_up_to_its_bound() -> None:
    seconds = Histograms("headrace_seconds", "Time.", bounds=(0.1, 1.0))
    for value in (0.05, 0.1, 0.5, 7.0):
        seconds.at().observe(value)

    read = samples(seconds)

    assert read["headrace_seconds_bucket", ("0.1",)] == 2
    assert read["headrace_seconds_bucket", ("1.0",)] == 3
    assert read["headrace_seconds_bucket", ("+Inf",)] == read["headrace_seconds_count", ()] == 4
    assert read["headrace_seconds_sum", ()] == pytest.approx(7.65)


@given(st.lists(st.floats(min_value=-10, max_value=10)), st.sets(st.floats(-5, 5), min_size=1))
def test_every_value_is_counted_once(values: list[float], bounds: set[float]) -> None:
    buckets = Buckets(sorted(bounds))
    for value in values:
        buckets.observe(value)

    counted = {bound: count for bound, count in buckets.cumulative() if bound != "+Inf"}

    assert buckets.cumulative()[-1] == ("+Inf", len(values))
    assert all(count == sum(value <= float(bound) for value in values) for bound, count in counted.items())


def test_gauges_are_asked_at_scrape_only() -> None:
    asked = []

    def read() -> float:
        asked.append(True)
        return 5.0

    telemetry = Telemetry(Gauge("headrace_waiting", "Waiting.", read))
    telemetry.add(Gauges("headrace_outstanding", "By router.", "router", lambda: {"r-0": 2.0}))
    assert not asked

    text = telemetry.scrape().decode()

    assert "headrace_waiting 5.0" in text
    assert 'headrace_outstanding{router="r-0"} 2.0' in text
    assert "process_cpu_seconds_total" in text
    assert len(asked) == 1
