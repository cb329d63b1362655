"""Rates and quantiles from two looks at a process."""

import math
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.cli.rates import Buckets, Change, Labels, Look, Watched, buckets, quantile, together

BOUNDS = (0.001, 0.01, 0.1, 1.0, 10.0)


def look(
    at: float, counts: Mapping[str, float] | None = None, *, started: float = 1.0, trouble: str = "", name: str = "c"
) -> Look:
    """One counter by model."""
    series: dict[str, dict[Labels, float]] = {
        name: {(("model", model),): value for model, value in (counts or {}).items()},
        "process_start_time_seconds": {(): started},
    }
    return Look(at=at, trouble=trouble, series={} if trouble else series)


def rates(change: Change | None) -> dict[str, float]:
    assert change is not None
    return {labels["model"]: rate for labels, rate in change.rates("c")}


def watched(*looks: Look, span: float = 5.0) -> Watched:
    made = Watched("gateway", "here:1", span=span)
    for each in looks:
        made.took(each)
    return made


def test_a_rate_is_the_growth_over_the_time_between() -> None:
    assert rates(watched(look(10, {"a": 4, "b": 1}), look(12, {"a": 10, "b": 1})).change) == {"a": 3.0, "b": 0.0}


def test_one_look_gives_no_rates() -> None:
    assert rates(watched(look(10, {"a": 4})).change) == {}
    assert watched().change is None


def test_a_series_that_is_new_began_at_nothing() -> None:
    assert rates(watched(look(10), look(12, {"a": 4})).change) == {"a": 2.0}


def test_a_series_that_is_gone_has_no_rate() -> None:
    assert rates(watched(look(10, {"a": 4}), look(12)).change) == {}


def test_a_process_that_started_anew_is_compared_with_itself_only() -> None:
    """Its counters may be above those of the earlier run already."""
    seen = watched(look(10, {"a": 4}), look(12, {"a": 9}, started=11.0))

    assert rates(seen.change) == {}
    seen.took(look(13, {"a": 10}, started=11.0))
    assert rates(seen.change) == {"a": 1.0}


def test_a_process_that_was_away_for_a_look_goes_on_where_it_was() -> None:
    seen = watched(look(10, {"a": 4}), look(11, trouble="refused"))

    assert seen.change is not None
    assert rates(seen.change) == {}
    assert seen.change.now.trouble == "refused"
    seen.took(look(12, {"a": 8}))
    assert rates(seen.change) == {"a": 2.0}


def test_only_the_span_counts() -> None:
    looks = [look(at, {"a": at**2}) for at in range(20)]

    change = watched(*looks, span=5.0).change

    assert change is not None
    assert change.seconds == 5.0
    assert rates(change) == {"a": (19**2 - 14**2) / 5}


@given(st.lists(st.one_of(st.floats(), st.integers(0, 100)), min_size=2, max_size=20), st.booleans())
def test_no_rate_is_ever_negative_or_no_number(values: list[float], restarted: bool) -> None:
    looks = [look(at, {"a": value}, started=float(restarted and at > 5)) for at, value in enumerate(values)]

    for rate in rates(watched(*looks).change).values():
        assert rate >= 0
        assert math.isfinite(rate)


# Quantiles.


def cumulated(values: list[float]) -> list[tuple[float, float]]:
    return [(bound, float(sum(value <= bound for value in values))) for bound in (*BOUNDS, math.inf)]


@given(st.lists(st.floats(0, 20), min_size=1, max_size=50), st.floats(0, 1))
def test_a_quantile_is_in_the_bucket_of_the_true_one(values: list[float], share: float) -> None:
    true = sorted(values)[max(math.ceil(share * len(values)) - 1, 0)]
    low = max((bound for bound in BOUNDS if bound < true), default=0.0)
    high = min((bound for bound in BOUNDS if bound >= true), default=BOUNDS[-1])

    found = quantile(share, cumulated(values))

    assert found is not None
    assert low <= found <= high or math.isclose(found, low) or math.isclose(found, high)


@given(st.lists(st.floats(0, 20), min_size=1, max_size=50), st.floats(0, 1), st.floats(0, 1))
def test_a_higher_quantile_is_no_smaller(values: list[float], one: float, other: float) -> None:
    low, high = sorted((one, other))

    first, second = quantile(low, cumulated(values)), quantile(high, cumulated(values))

    assert first is not None
    assert second is not None
    assert first <= second or math.isclose(first, second)


@given(st.lists(st.floats(0, 20), max_size=30), st.lists(st.floats(0, 20), max_size=30), st.floats(0, 1))
def test_processes_together_are_as_one_that_did_it_all(one: list[float], other: list[float], share: float) -> None:
    parts = []
    for values in (one, other):
        part = Buckets()
        for bound, count in cumulated(values):
            part.add(str(bound), count)
        parts.append(part)

    assert together(parts).quantile(share) == quantile(share, cumulated(one + other))


@pytest.mark.parametrize("upto", [[], [(1.0, 0.0), (math.inf, 0.0)], [(1.0, 3.0)]])
def test_without_observations_there_is_no_quantile(upto: list[tuple[float, float]]) -> None:
    assert quantile(0.5, upto) is None


def test_what_is_above_every_bound_is_told_as_the_last_one() -> None:
    assert quantile(0.5, [(1.0, 0.0), (2.0, 0.0), (math.inf, 5.0)]) == 2.0


@given(st.dictionaries(st.sampled_from([*BOUNDS, 0.5, 5.0, math.inf]), st.floats(0, 100)), st.floats(0, 1))
def test_bounds_of_two_versions_give_a_number_all_the_same(counts: dict[float, float], share: float) -> None:
    found = quantile(share, counts.items())

    assert found is None or 0 <= found <= BOUNDS[-1]


def test_a_histogram_is_told_by_model_from_its_growth() -> None:
    def seen(at: float, quick: float, every: float) -> Look:
        series: dict[Labels, float] = {(("le", "1.0"), ("model", "a")): quick, (("le", "+Inf"), ("model", "a")): every}
        return Look(at=at, series={"h_bucket": series})

    change = watched(seen(1, 1000, 1000), seen(2, 1000, 1004)).change

    assert change is not None
    found = buckets([change], "h")
    assert found.keys() == {"a"}
    assert found["a"].quantile(0.5) == 1.0
