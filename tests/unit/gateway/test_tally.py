"""What is counted of calls, however they end."""

import time

import pytest

from gateway.admission import Gate
from gateway.errors import leaves
from gateway.tally import CANCELLED, OK, OUTCOMES, TRITON, Tally
from headrace.runtime.telemetry import MOST_NAMES, OTHER

GATE = Gate(calls=(), bytes=(), slots=(), request_bytes=None, account=None, own=())


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def tally(clock: Clock) -> Tally:
    return Tally(clock)


def call(tally: Tally, reason: str, *, tenant: str = "acme", model: str = "simple", seconds: float = 0.0) -> None:
    """A call from its begin to its end; one without a model gets as far as none."""
    entry = tally.begin(tenant)
    if model:
        entry.model, entry.gate, entry.received = model, GATE, 100
    if reason == OK:
        entry.sent = 30
    assert isinstance(tally.clock, Clock)
    tally.clock.now += seconds
    tally.ended(entry, reason)


def outcomes(counts: list[int]) -> dict[str, int]:
    return {outcome: number for outcome, number in zip(OUTCOMES, counts, strict=True) if number}


@pytest.mark.parametrize(
    ("reason", "outcome"),
    [
        (OK, "ok"),
        (TRITON, "triton_error"),
        (CANCELLED, "cancelled"),
        ("DEADLINE_EXCEEDED", "expired"),
        ("ROUTER_LOST", "lost"),
        ("TRITON_LOST", "lost"),
        ("LOG_UNAVAILABLE", "lost"),
        ("SHUTTING_DOWN", "lost"),
        ("ANSWER_TOO_LARGE", "failed"),
        ("INTERNAL", "failed"),
        ("RATE_LIMITED", "refused"),
        ("NO_LIVE_ROUTER", "refused"),
    ],
)
def test_every_reason_is_one_of_a_few_outcomes(tally: Tally, reason: str, outcome: str) -> None:
    call(tally, reason)

    assert outcomes(tally.models["simple"].outcomes) == outcomes(tally.tenants["acme"].outcomes) == {outcome: 1}
    assert tally.reasons[reason] == tally.reasons.total() == 1


def test_no_reason_is_missed() -> None:
    """A counter that appears with its first event is one event short in every rate."""
    assert Tally().reasons.keys() == {OK, TRITON, CANCELLED, *(leaf.reason for leaf in leaves())}


def test_bytes_are_those_of_request_and_answer(tally: Tally) -> None:
    for reason in (OK, OK, TRITON):
        call(tally, reason)

    assert (tally.models["simple"].received, tally.models["simple"].sent) == (300, 60)


def test_only_calls_that_were_accepted_and_awaited_are_timed(tally: Tally) -> None:
    for reason, seconds in ((OK, 0.5), ("DEADLINE_EXCEEDED", 60.0), (CANCELLED, 7.0), ("RATE_LIMITED", 0.001)):
        call(tally, reason, seconds=seconds)

    timed = tally.models["simple"].seconds
    assert timed.count == 2
    assert timed.sum == pytest.approx(60.5)


def test_a_call_that_got_as_far_as_no_model_makes_no_series_of_its_own(tally: Tally) -> None:
    """Its tenant may be any text of a token that nobody has granted anything."""
    for number in range(10):
        call(tally, "TENANT_UNKNOWN", tenant=f"stranger {number}", model="")

    assert tally.tenants.keys() == {OTHER}
    assert tally.models == {}
    assert outcomes(tally.tenants[OTHER].outcomes) == {"refused": 10}


def test_a_known_tenants_calls_are_its_own_wherever_they_end(tally: Tally) -> None:
    call(tally, OK)
    call(tally, "MODEL_UNKNOWN", model="")

    assert outcomes(tally.tenants["acme"].outcomes) == {"ok": 1, "refused": 1}


def test_tenants_and_models_beyond_the_bound_are_counted_together(tally: Tally) -> None:
    for number in range(MOST_NAMES + 5):
        call(tally, OK, tenant=f"tenant {number}", model=f"model {number}")

    assert len(tally.tenants) == len(tally.models) == MOST_NAMES + 1
    assert outcomes(tally.tenants[OTHER].outcomes) == outcomes(tally.models[OTHER].outcomes) == {"ok": 5}


def test_a_tenant_is_known_with_what_its_last_call_had_to_pass(tally: Tally, clock: Clock) -> None:
    call(tally, OK)
    clock.now += 5
    call(tally, "RATE_LIMITED")
    assert (tally.tenants["acme"].gate, tally.tenants["acme"].called_at) == (GATE, 105.0)

    tally.forget_gates()

    assert tally.tenants["acme"].gate is None


def test_counting_a_call_costs_little() -> None:
    """Some two microseconds; thirty on a machine that is busy. A call is some hundred and fifty."""
    tally, times = Tally(), []
    for _ in range(20):
        began = time.perf_counter()
        for _ in range(500):
            entry = tally.begin("acme")
            entry.model = "simple"
            tally.ended(entry, OK)
        times.append((time.perf_counter() - began) / 500)

    assert min(times) < 30e-6
