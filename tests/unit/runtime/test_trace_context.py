"""Which calls are traced, and whose trace they belong to."""

import math
import string
from collections.abc import Iterator
from itertools import cycle, pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from opentelemetry.context import Context
from opentelemetry.trace import get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from headrace.runtime.settings import TraceSettings
from headrace.runtime.trace_context import Draw, Parent, parent_of, parse_traceparent, tracing

TRACE, SPAN = 0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331
GOOD = f"00-{TRACE:032x}-{SPAN:016x}-01"
IDS = st.integers(1, 2**128 - 1), st.integers(1, 2**64 - 1)


@given(*IDS, st.booleans())
def test_what_is_written_is_read_as_the_same(trace: int, span: int, sampled: bool) -> None:
    parent = Parent(trace, span, sampled)

    assert parse_traceparent(parent.traceparent) == parent


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        GOOD.upper(),
        GOOD + "-more",
        GOOD + "\n",
        f" {GOOD}",
        f"ff-{TRACE:032x}-{SPAN:016x}-01",
        f"00-{0:032x}-{SPAN:016x}-01",
        f"00-{TRACE:032x}-{0:016x}-01",
        f"00-{TRACE:032x}-{SPAN:016x}-1",
        f"00-{TRACE:032x}-{SPAN:016x}-0g",
        f"00-{TRACE:031x}-{SPAN:016x}-01",
        f"01-{TRACE:032x}-{SPAN:016x}-01x",
        GOOD.replace("0af7", "\N{FULLWIDTH DIGIT ZERO}af7"),
    ],
)
def test_what_the_specification_does_not_allow_is_none(wrong: str) -> None:
    assert parse_traceparent(wrong) is None


def test_a_later_version_is_read_as_far_as_this_one_goes() -> None:
    assert parse_traceparent("cc" + GOOD[2:] + "-what-comes-later") == Parent(TRACE, SPAN, sampled=True)
    assert parse_traceparent("cc" + GOOD[2:-2] + "fe") == Parent(TRACE, SPAN, sampled=False)


ALMOST = st.builds(
    lambda parts, more: "-".join(parts) + more,
    st.tuples(
        st.sampled_from(["00", "01", "ff", "0", "AA"]),
        st.sampled_from([f"{TRACE:032x}", f"{0:032x}", f"{TRACE:032X}", "a" * 31]) | st.text("0123456789abcdef"),
        st.sampled_from([f"{SPAN:016x}", f"{0:016x}", "b" * 17]) | st.text("0123456789abcdef"),
        st.sampled_from(["00", "01", "03", "ff", "g1", ""]),
    ),
    st.sampled_from(["", "-", "-x", "x"]),
)


@given(st.text() | st.text(string.printable) | ALMOST)
@example(GOOD)
def test_no_text_makes_it_fail_and_it_agrees_with_the_library(text: str) -> None:
    """OpenTelemetry's own reader is the other opinion; it lets blanks around the value pass, and we do not."""
    context = TraceContextTextMapPropagator().extract({"traceparent": text}, Context())
    told = get_current_span(context).get_span_context()

    expected = Parent(told.trace_id, told.span_id, told.trace_flags.sampled) if told.is_valid else None
    assert parse_traceparent(text) == (expected if text == text.strip(" \t\n") else None)


KEYS = st.sampled_from(["traceparent", "tracestate", "other", "traceparent-bin"])


@given(st.lists(st.tuples(KEYS, st.just(GOOD) | st.text(string.printable, max_size=20) | st.binary(max_size=20))))
def test_no_metadata_makes_reading_fail(metadata: list[tuple[str, str | bytes]]) -> None:
    found = parent_of(metadata)

    assert found is None or found[:3] == parse_traceparent(GOOD)[:3]  # type: ignore[index]  # it is good


def test_a_trace_has_its_states_in_their_order() -> None:
    metadata = [("x", "y"), ("tracestate", "a=1"), ("traceparent", GOOD), ("tracestate", "b=2,c=3")]

    assert parent_of(metadata) == Parent(TRACE, SPAN, sampled=True, state="a=1,b=2,c=3")


@pytest.mark.parametrize(
    "metadata",
    [
        [],
        [("tracestate", "a=1")],
        [("traceparent", GOOD), ("traceparent", GOOD)],
        [("traceparent", "nonsense"), ("traceparent", GOOD)],
        [("traceparent", GOOD.encode())],
    ],
)
def test_a_trace_that_is_not_named_once_is_none(metadata: list[tuple[str, str | bytes]]) -> None:
    assert parent_of(metadata) is None


def test_a_state_that_is_too_long_is_left_out_and_the_trace_goes_on() -> None:
    assert parent_of([("traceparent", GOOD), ("tracestate", "a=" + "1" * 511)]) == Parent(TRACE, SPAN, sampled=True)


# Drawing.


def evenly(parts: int) -> Iterator[float]:
    return cycle((number + 0.5) / parts for number in range(parts))


@pytest.mark.parametrize("ratio", [0.5, 0.1, 0.01])
def test_so_many_calls_are_traced_as_was_asked(ratio: float) -> None:
    draw = Draw(ratio, evenly(1000).__next__)

    calls = int(2000 / ratio)
    assert sum(draw() for _ in range(calls)) == pytest.approx(2000, rel=0.05)


def test_how_far_apart_they_are_is_as_if_each_was_drawn() -> None:
    """Every call has the same chance, whatever came before it."""
    draw = Draw(0.25, evenly(1000).__next__)
    verdicts = [draw() for _ in range(40_000)]
    after = [then for now, then in pairwise(verdicts) if now]

    assert sum(after) / len(after) == pytest.approx(0.25, abs=0.02)


@pytest.mark.parametrize(("ratio", "traced"), [(0.0, 0), (1.0, 100), (5e-324, 0)])
def test_all_none_and_next_to_none(ratio: float, traced: int) -> None:
    draw = Draw(ratio)

    assert sum(draw() for _ in range(100)) == traced


@given(st.floats(0, 1), st.floats(0, math.nextafter(1, 0)))
def test_no_ratio_and_no_draw_makes_it_fail(ratio: float, drawn: float) -> None:
    draw = Draw(ratio, lambda: drawn)

    assert {draw() for _ in range(3)} <= {True, False}


# The way to the receiver.


def test_without_a_receiver_there_is_nothing() -> None:
    assert tracing(TraceSettings(), service="s", instance="i") is None
