"""What counts as memory that grows."""

import pytest

from benchmarks.soak import growth

CALLS = list(range(0, 200_000, 5_000))


def test_noise_around_a_level_is_flat() -> None:
    assert growth(CALLS, [100.0 + (number % 3) for number in range(len(CALLS))]).flat


def test_a_leak_of_a_tenth_of_a_kilobyte_per_call_is_seen() -> None:
    """That is 20 MiB over the run, and a gigabyte a day at little load."""
    leaking = growth(CALLS, [100.0 + calls * 0.1 / 1024 for calls in CALLS])

    assert not leaking.flat
    assert leaking.slope_kib_per_1000_calls == pytest.approx(100)
