"""Since when a partition's unread records have waited: the log does not say it before they are read.

Where it was seen to end, and when, says by when what lies before was written. So the first such end beyond what is read
is the moment by which the oldest unread record was there.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import pairwise
from typing import TypeAlias

from headrace.bus.protocols import SeenEnd, TopicPartition

_EXACTNESS = 8
"""Seen ends may lie apart by this part of their age."""
_LOOK_BACK_SECONDS = (5, 20, 80, 320)
"""How old a backlog may be when it comes. Few, as each is a question to the broker; what is older than the last counts
as that old."""

EndsAt: TypeAlias = Callable[[Collection[TopicPartition], float], Mapping[TopicPartition, int]]
"""Where partitions ended at a moment, by the log's own timestamps; without those of which it does not say so."""


def seen_again(known: Sequence[SeenEnd], end: SeenEnd, read_to: int) -> tuple[SeenEnd, ...]:
    """What is known of a partition that now ends there and is read so far, oldest first.

    It grows with the logarithm of the backlog's age: what is told from it is too short by an eighth at most, or by the
    time between two looks.
    """
    beyond = [each for each in known if read_to < each.offset <= end.offset]  # a topic made anew ends earlier
    if end.offset > (beyond[-1].offset if beyond else read_to):
        beyond.append(end)
    kept = beyond[:1]
    for each, following in pairwise(beyond[1:]):
        if (following.at - kept[-1].at) * _EXACTNESS > end.at - following.at:
            kept.append(each)
    return (*kept, *beyond[1:][-1:])


def seen_before(
    read_to: Mapping[TopicPartition, int], now: float, ends_at: EndsAt
) -> dict[TopicPartition, list[SeenEnd]]:
    """Where partitions that came with a backlog ended before they came, oldest first.

    Asks further and further back, as long as the oldest unread record of any may be so old: a quarter of what it had
    waited then is told at least.
    """
    known: dict[TopicPartition, list[SeenEnd]] = {place: [] for place in read_to}
    asked = set(read_to)
    for seconds in _LOOK_BACK_SECONDS:
        if not asked:
            break
        ends = ends_at(asked, now - seconds)
        asked = {place for place in asked if ends.get(place, 0) > read_to[place]}
        for place in asked:
            known[place].insert(0, SeenEnd(now - seconds, ends[place]))
    return known
