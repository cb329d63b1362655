"""A bucket by itself: what it admits in any window, and what it says of waiting."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.limits import Rate
from gateway.limits.gcra import Gcra

RATES = st.floats(0.001, 1e6)
BURSTS = st.floats(0.01, 1e6)
NOWS = st.floats(0, 1e7)  # in any order: a clock may go back
TINY = 1e-6


@st.composite
def takes(draw: st.DrawFn) -> tuple[float, float, list[tuple[float, float]]]:
    """A limit, and takes of about its size at about its pace, some of them back in time."""
    rate, burst = draw(RATES), draw(BURSTS)
    steps = draw(st.lists(st.tuples(st.floats(-0.5, 1.5), st.floats(0.01, 1.5)), min_size=1, max_size=30))
    now = draw(st.floats(0, 1e5))
    made = []
    for step, part in steps:
        now += step * burst / rate
        made.append((now, part * burst))
    return rate, burst, made


def close(left: float, right: float, *, scale: float) -> bool:
    return abs(left - right) <= TINY * max(1.0, scale)


@given(takes())
def test_no_window_has_more_than_the_burst_and_what_came_in(
    given_: tuple[float, float, list[tuple[float, float]]],
) -> None:
    """Or one larger amount in place of the burst; whichever way the clock goes."""
    rate, burst, made = given_
    bucket = Gcra(rate, burst)

    taken = [(now, amount) for now, amount in made if bucket.take(now, amount) == 0.0]

    for first in range(len(taken)):
        total = 0.0
        for now, amount in taken[first:]:
            total += amount
            bound = rate * (now - taken[first][0]) + max(burst, amount)
            assert total <= bound + TINY * (bound + rate * now * 1e-6 + 1)


@given(takes())
def test_waiting_the_told_time_is_enough(given_: tuple[float, float, list[tuple[float, float]]]) -> None:
    rate, burst, made = given_
    bucket = Gcra(rate, burst)

    for now, amount in made:
        wait = bucket.take(now, amount)
        assert wait >= 0.0
        assert wait < math.inf
        if wait:
            assert bucket.take(now + wait, amount) == 0.0


@given(takes(), st.lists(st.booleans(), min_size=40, max_size=40))
def test_a_refused_take_changes_nothing(
    given_: tuple[float, float, list[tuple[float, float]]], asked: list[bool]
) -> None:
    """So refused ones may come in any order, or not at all."""
    rate, burst, made = given_
    bucket, undisturbed = Gcra(rate, burst), Gcra(rate, burst)

    for (now, amount), also in zip(made, asked, strict=False):
        if also:
            before = bucket.left(now), bucket.reset_after(now)
            if bucket.take(now, amount) > 0:
                assert before == (bucket.left(now), bucket.reset_after(now))
            else:
                assert undisturbed.take(now, amount) == 0.0
        assert bucket.left(now) == undisturbed.left(now)


@given(RATES, BURSTS, NOWS)
def test_it_starts_full_and_refills_at_its_rate(rate: float, burst: float, now: float) -> None:
    bucket = Gcra(rate, burst)

    assert bucket.left(now) == burst
    assert bucket.take(now, burst) == 0.0
    assert close(bucket.left(now), 0.0, scale=max(burst, rate * now))
    assert close(bucket.left(now + burst / rate / 2), burst / 2, scale=max(burst, rate * now))
    assert close(bucket.reset_after(now), burst / rate, scale=max(burst / rate, now))


def test_what_is_larger_than_the_burst_needs_a_full_bucket_and_leaves_it_in_debt() -> None:
    bucket = Gcra(2, 10)

    assert bucket.take(0, 1) == 0.0
    assert bucket.take(0, 30) == 0.5
    assert bucket.take(0.5, 30) == 0.0
    assert bucket.left(0.5) == -20
    assert bucket.reset_after(0.5) == 15
    assert bucket.take(0.5, 1) == 10.5
    assert bucket.take(11, 1) == 0.0


def test_what_is_given_back_can_be_taken_again_and_overfills_nothing() -> None:
    bucket = Gcra(1, 10)
    bucket.take(0, 8)

    bucket.give_back(3)
    assert bucket.left(0) == 5
    bucket.give_back(100)

    assert bucket.left(0) == 10
    assert bucket.take(0, 10) == 0.0
    assert bucket.take(0, 1) == 1.0


def test_a_clock_that_goes_back_admits_nothing_more() -> None:
    bucket = Gcra(1, 1)

    assert bucket.take(100) == 0.0
    assert bucket.take(0) == 101.0
    assert bucket.take(100.5) == 0.5
    assert bucket.take(101) == 0.0


def test_another_limit_keeps_the_time_until_it_is_full() -> None:
    bucket = Gcra(1, 10)
    bucket.take(0, 5)

    bucket.change(2, 20)

    assert (bucket.rate_per_second, bucket.burst) == (2, 20)
    assert bucket.reset_after(0) == 5
    assert bucket.left(0) == 10


@pytest.mark.parametrize(
    ("rate", "burst"), [(0, 1), (1, 0), (-1, 1), (1, -1), (math.nan, 1), (math.inf, 1), (1, math.inf)]
)
def test_what_is_no_limit_is_refused(rate: float, burst: float) -> None:
    with pytest.raises(ValueError, match="not a limit"):
        Gcra(rate, burst)


def test_it_is_a_rate() -> None:
    """For the type checker."""
    bucket: Rate = Gcra(1, 1)
    assert bucket.take(0) == 0.0
