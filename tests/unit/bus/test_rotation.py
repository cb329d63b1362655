"""Whose turn it is to be read."""

from hypothesis import given
from hypothesis import strategies as st

from headrace.bus.protocols import TopicPartition
from headrace.bus.rotation import Rotation

PLACES = [TopicPartition("t", number) for number in range(6)]
backlogs = st.dictionaries(st.sampled_from(PLACES), st.integers(1, 50), min_size=1)


def test_whoever_was_read_longest_ago_is_first_and_who_never_was_before_all() -> None:
    rotation = Rotation()
    rotation.read([PLACES[0], PLACES[2], PLACES[0], PLACES[1]])
    assert rotation.sort(PLACES[:4]) == [PLACES[3], PLACES[2], PLACES[0], PLACES[1]]


def test_what_is_not_kept_counts_as_never_read() -> None:
    rotation = Rotation()
    rotation.read(PLACES[:2])
    rotation.keep([PLACES[1]])
    assert rotation.sort(PLACES[:2]) == PLACES[:2]


@given(backlogs, st.integers(1, 100))
def test_as_many_go_first_as_fill_the_room_and_no_more(behind: dict[TopicPartition, int], room: int) -> None:
    first = Rotation().first(behind, room)
    assert sum(behind[place] for place in first) >= min(room, sum(behind.values()))
    assert sum(behind[place] for place in first[:-1]) < room


@given(backlogs, st.integers(1, 20))
def test_none_waits_for_more_turns_than_there_are_others(behind: dict[TopicPartition, int], room: int) -> None:
    """Whoever is behind stays so: the queue is long."""
    rotation = Rotation()
    waited = dict.fromkeys(behind, 0)
    for _ in range(3 * len(behind)):
        read = rotation.first(behind, room)[0]
        rotation.read([read])
        waited = {place: 0 if place == read else turns + 1 for place, turns in waited.items()}
        assert max(waited.values()) < len(behind)
