"""Which partition a call goes to."""

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.placement import any_partition, least_loaded, partition
from gateway.registry import Model, Owner
from headrace.bus.protocols import RouterKey

A, B, C = RouterKey("a", 1), RouterKey("b", 2), RouterKey("c", 3)


def owner(router: RouterKey, *, window: int = 4, partitions: tuple[int, ...] = (0,)) -> Owner:
    return Owner(router, partitions, window)


def model(partition_count: int) -> Model:
    return Model("simple", (), partition_count, live=False, versions=(), revision=1)


owners = st.lists(st.integers(1, 64), min_size=1, max_size=6).map(
    lambda windows: tuple(owner(RouterKey(str(at), at), window=window) for at, window in enumerate(windows))
)


def test_load_is_work_for_each_unit_of_capacity() -> None:
    small, large = owner(A, window=4), owner(B, window=16)

    for turn in range(2):
        assert least_loaded((small, large), {A: 3, B: 8}, turn) is large
        assert least_loaded((small, large), {A: 1, B: 8}, turn) is small


@pytest.mark.parametrize("turn", range(3))
def test_an_owner_with_nothing_to_do_comes_before_one_that_works(turn: int) -> None:
    assert least_loaded((owner(A), owner(B), owner(C)), {A: 1, C: 1}, turn).router == B


@pytest.mark.parametrize("turn", range(2))
def test_another_run_of_a_router_is_another_router(turn: int) -> None:
    assert least_loaded((owner(A), owner(B)), {RouterKey("a", 9): 100, B: 1}, turn).router == A


@given(owners, st.lists(st.integers(0, 3), min_size=6, max_size=6), st.integers(0, 1 << 40))
def test_those_with_the_least_to_do_are_chosen_evenly(each: tuple[Owner, ...], loads: list[int], start: int) -> None:
    outstanding = {one.router: load for one, load in zip(each, loads, strict=False) if load}

    def load(one: Owner) -> float:
        return outstanding.get(one.router, 0) / one.window

    least = min(map(load, each))
    equals = [one.router for one in each if load(one) == least]

    chosen = Counter(least_loaded(each, outstanding, start + turn).router for turn in range(3 * len(equals)))

    assert chosen == dict.fromkeys(equals, 3)


@given(st.sets(st.integers(0, 31), min_size=1), st.integers(0, 1 << 40))
def test_partitions_take_turns_and_neighbours_share_one(partitions: set[int], start: int) -> None:
    owned = tuple(sorted(partitions))
    one = owner(A, partitions=owned)

    turns = [partition(one, start + turn) for turn in range(64 * len(owned))]

    assert Counter(turns) == dict.fromkeys(owned, 64)
    changes = sum(left != right for left, right in pairwise(turns))
    assert changes <= len(owned)


def test_while_nobody_owns_any_every_partition_has_its_turn() -> None:
    assert [any_partition(model(3), turn) for turn in range(6)] == [0, 1, 2, 0, 1, 2]
    assert any_partition(model(0), 5) == 0
