"""Counters by name."""

import pytest

from gateway.limits import local
from gateway.limits.local import LocalCounters


def test_a_name_is_one_counter_that_can_be_limited_otherwise() -> None:
    counters = LocalCounters()
    first = counters.rate("a", 1.0, 2.0)
    assert [first.take(0.0), first.take(0.0)] == [0.0, 0.0]

    assert counters.rate("a", 10.0, 2.0) is first
    assert first.take(0.0) > 0
    assert counters.rate("b", 1.0, 2.0) is not first
    slots = counters.slots("a", 1)
    assert slots.take()
    assert counters.slots("a", 2) is slots
    assert slots.take()


def test_too_many_counters_are_those_that_differ_from_new_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "_MOST", 4)
    counters = LocalCounters()
    rates = {name: counters.rate(name, 1.0, 1.0) for name in "abc"}
    slots = {name: counters.slots(name, 1) for name in "abc"}
    rates["a"].take(0.0)
    slots["b"].take()

    assert counters.forget(0.5)
    assert not counters.forget(0.5), "as many as were left may come before it is looked at again"

    assert counters.rate("a", 1.0, 1.0) is rates["a"]
    assert counters.rate("b", 1.0, 1.0) is not rates["b"]
    assert counters.slots("b", 1) is slots["b"]
    assert counters.slots("c", 1) is not slots["c"]
