"""Which partition a call goes to: the least loaded live owner's."""

from collections.abc import Mapping
from math import inf

from gateway.registry import Model, Owner
from headrace.bus.protocols import RouterKey

_CALLS_IN_A_ROW = 64
"""Calls that go to one partition before the next one's turn: neighbours share a batch on the way, and what waits is
still spread for new routers to take over."""


def least_loaded(owners: tuple[Owner, ...], outstanding: Mapping[RouterKey, int], turn: int) -> Owner:
    """The owner with the least outstanding work for its capacity; equals take turns, and `turn` counts calls."""
    if len(owners) == 1:
        return owners[0]
    least, equals = inf, [owners[0]]
    for owner in owners:
        load = outstanding.get(owner.router, 0) / owner.window
        if load < least:
            least, equals = load, [owner]
        elif load == least:
            equals.append(owner)
    return equals[turn % len(equals)]


def partition(owner: Owner, turn: int) -> int:
    """One of the owner's partitions; `turn` counts calls."""
    return owner.partitions[turn // _CALLS_IN_A_ROW % len(owner.partitions)]


def any_partition(model: Model, turn: int) -> int:
    """A partition while nobody owns any: in turn, since nothing is known."""
    return turn % max(1, model.partition_count)
