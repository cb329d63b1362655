"""How late records are."""

import pytest

from benchmarks.rebalances import lateness
from headrace.bus.protocols import TopicPartition

READ, STOPPED, NEVER = (TopicPartition("t", number) for number in range(3))


def test_what_is_not_read_is_as_late_as_it_is_old() -> None:
    """A partition that is nobody's shows by no record of its own."""
    reads = [(READ, 99.0, 150.0), (READ, 100.0, 102.0), (READ, 119.9, 120.0), (STOPPED, 104.0, 104.5)]

    late = lateness(reads, [READ, STOPPED, NEVER], since=100.0, now=120.0)

    assert late == pytest.approx([2.0, 16.0, 20.0], abs=0.1)
