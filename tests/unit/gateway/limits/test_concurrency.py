"""Slots of this process."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.limits import Concurrency
from gateway.limits.concurrency import Slots


@given(st.integers(0, 5), st.lists(st.booleans(), max_size=40))
def test_no_more_than_the_limit_at_a_time(most: int, steps: list[bool]) -> None:
    slots: Concurrency = Slots(most)
    taken = 0

    for take in steps:
        if take:
            assert slots.take() == (taken < most)
            taken = min(most, taken + 1)
        elif taken:
            slots.release()
            taken -= 1
        assert slots.in_use == taken


def test_what_was_not_taken_cannot_be_released() -> None:
    slots = Slots(1)

    with pytest.raises(ValueError, match="more slots than were taken"):
        slots.release()
