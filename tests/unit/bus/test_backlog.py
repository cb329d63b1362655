"""What is told of a backlog's age, against a log that knows when each record was written."""

from bisect import bisect_left
from collections.abc import Collection, Mapping, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.bus.backlog import seen_again, seen_before
from headrace.bus.protocols import SeenEnd, TopicPartition

PLACE, OTHER = TopicPartition("t", 0), TopicPartition("t", 1)
LOOK_SECONDS = 1.0
FIRST_LOOK_BACK_SECONDS = 5.0


def told(known: Sequence[SeenEnd], read_to: int, now: float) -> float:
    """How long the oldest unread record has waited, as a reader tells it."""
    return now - next((end.at for end in known if end.offset > read_to), now)


A_SECOND = st.tuples(st.lists(st.floats(0, 1), max_size=2), st.sampled_from([0, 0, 0, 1, 2]))
"""When in it records come, and how many are read at its end."""


@settings(deadline=None)
@given(st.lists(A_SECOND, min_size=1, max_size=150))
def test_a_wait_is_never_told_too_long_and_hardly_too_short(seconds: list[tuple[list[float], int]]) -> None:
    """However records come and are read: too short by a look, or by an eighth."""
    written: list[float] = []
    known: tuple[SeenEnd, ...] = ()
    read_to = 0
    now = 0.0
    for come, read in seconds:
        written += sorted(now + moment * LOOK_SECONDS for moment in come)
        now += LOOK_SECONDS
        read_to = min(len(written), read_to + read)
        known = seen_again(known, SeenEnd(now, len(written)), read_to)

        wait = now - written[read_to] if read_to < len(written) else 0.0
        assert wait - max(LOOK_SECONDS, wait / 8) - 1e-6 <= told(known, read_to, now) <= wait + 1e-6
        assert bool(known) == (wait > 0 or read_to < len(written))


def test_an_hour_of_backlog_takes_little_room_and_stays_exact() -> None:
    """A record a second, and none is read; however far it were read now."""
    known: tuple[SeenEnd, ...] = ()
    for second in range(3600):
        known = seen_again(known, SeenEnd(float(second), 1 + second), 0)

    assert len(known) < 120
    for read_to in range(3600):
        wait = 3599.0 - read_to
        assert wait - max(LOOK_SECONDS, wait / 8) <= told(known, read_to, 3599.0) <= wait


def test_a_backlog_that_stands_is_one_end() -> None:
    known: tuple[SeenEnd, ...] = ()
    for second in range(10):
        known = seen_again(known, SeenEnd(float(second), 5), 3)

    assert known == (SeenEnd(0.0, 5),)
    assert seen_again(known, SeenEnd(11.0, 5), 5) == ()


def test_a_topic_that_was_made_anew_is_seen_anew() -> None:
    known = seen_again((), SeenEnd(1.0, 500), 0)

    assert seen_again(known, SeenEnd(2.0, 3), 0) == (SeenEnd(2.0, 3),)


class Log:
    """A log that is asked where it ended."""

    def __init__(self, written: Mapping[TopicPartition, Sequence[float]]) -> None:
        self._written = written
        self.asked: list[tuple[set[TopicPartition], float]] = []

    def __call__(self, places: Collection[TopicPartition], moment: float) -> Mapping[TopicPartition, int]:
        self.asked.append((set(places), moment))
        return {place: bisect_left(self._written[place], moment) for place in places if place in self._written}


@pytest.mark.parametrize("age", [0.2, 4.9, 7.0, 100.0, 900.0])
def test_what_came_with_a_backlog_is_told_at_a_quarter_of_its_age_at_least(age: float) -> None:
    log = Log({PLACE: [0.0, 5.0, 1000.0 - age, 999.9]})

    known = seen_again(seen_before({PLACE: 2}, 1000.0, log)[PLACE], SeenEnd(1000.0, 4), 2)

    assert age / 4 - FIRST_LOOK_BACK_SECONDS < told(known, 2, 1000.0) <= age
    assert told(known, 2, 1000.0) > 0 or age < FIRST_LOOK_BACK_SECONDS


def test_no_more_is_asked_than_there_is_to_know() -> None:
    log = Log({PLACE: [975.0], OTHER: [998.0]})

    known = seen_before({PLACE: 0, OTHER: 0}, 1000.0, log)

    assert log.asked == [({PLACE, OTHER}, 995.0), ({PLACE}, 980.0), ({PLACE}, 920.0)]
    assert known == {PLACE: [SeenEnd(980.0, 1), SeenEnd(995.0, 1)], OTHER: []}


def test_a_log_that_does_not_say_is_not_asked_on() -> None:
    log = Log({})

    assert seen_before({PLACE: 0}, 1000.0, log) == {PLACE: []}
    assert len(log.asked) == 1
    assert seen_before({}, 1000.0, log) == {}
    assert len(log.asked) == 1
