"""Who may come in: what is granted, and what is left."""

from dataclasses import dataclass, field

import pytest

from gateway.admission import Admission, Gate
from gateway.errors import (
    BytesLimited,
    ConcurrencyLimited,
    Limited,
    MethodForbidden,
    ModelUnknown,
    RateLimited,
    RequestTooLarge,
    TenantUnknown,
)
from gateway.identity import Caller
from gateway.policy.document import read_policy
from gateway.policy.model import MethodClass
from gateway.status import status_of
from tests.unit.gateway.admitting import admitting, at_once

METHOD = "/inference.GRPCInferenceService/ModelInfer"
ONE, TWO = Caller("acme", "key-1"), Caller("acme", "key-2")
OTHER = Caller("other", "key-3")


def policy(acme: str = "", rest: str = "") -> str:
    return f"""\
tenants:
  acme:
    models: [simple, "text_*"]
{acme}
  other:
    models: ["*"]
{rest}
"""


@dataclass
class Door:
    """An admission and its clock."""

    admission: Admission
    now: float = 0.0
    inside: list[Gate] = field(default_factory=list)

    def come(self, caller: Caller = ONE, model: str = "simple", size: int = 10) -> type[Limited] | None:
        """How a call is refused by a limit; None where it came in."""
        try:
            self.enter(caller, model, size)
        except Limited as refusal:
            return type(refusal)
        return None

    def enter(self, caller: Caller = ONE, model: str = "simple", size: int = 1) -> None:
        """Come in, or raise the refusal."""
        gate = self.admission.gate(caller, model, method=METHOD)
        assert gate is not None
        at_once(self.admission.enter(gate, caller, model, size, method=METHOD, call_id=b""))
        self.inside.append(gate)

    def leave(self) -> None:
        self.admission.leave(self.inside.pop(0), answered_bytes=10)


def door(text: str) -> Door:
    made = Door(admitting())
    made.admission = admitting(text, clock=lambda: made.now)
    return made


# What is granted.


def test_a_model_that_is_not_granted_does_not_exist() -> None:
    """In the same words as one that nobody has: its name is no secret that an error gives away."""
    at = door(policy())

    assert at.admission.gate(ONE, "secret", method=METHOD) is None
    refusal = at.admission.unseen(ONE, ModelUnknown(model="secret"), method=METHOD, call_id=b"")
    assert refusal.message == ModelUnknown(model="secret").message
    assert not at.admission.sees(ONE, "secret")
    assert at.admission.sees(OTHER, "secret")


def test_a_tenant_that_is_not_listed_may_nothing() -> None:
    at = door(policy())
    stranger = Caller("stranger", "k")

    with pytest.raises(TenantUnknown):
        at.enter(stranger)
    with pytest.raises(TenantUnknown):
        at.admission.unseen(stranger, ModelUnknown(model="x"), method=METHOD, call_id=b"")
    with pytest.raises(TenantUnknown):
        at.admission.require(stranger, MethodClass.METADATA, method="m")
    assert not at.admission.sees(stranger, "simple")


@pytest.mark.parametrize(
    ("allow", "roles", "wanted", "may"),
    [
        ("[infer, metadata]", (), MethodClass.INFER, True),
        ("[metadata]", (), MethodClass.INFER, False),
        ("[infer]", (), MethodClass.METADATA, False),
        ("[infer, metadata, admin]", (), MethodClass.ADMIN, False),
        ("[infer, metadata, admin]", ("admin",), MethodClass.ADMIN, True),
        ("[infer, metadata]", ("admin",), MethodClass.ADMIN, False),
        ("[infer, metadata]", ("observer",), MethodClass.INFER, False),
        ("[infer, metadata]", ("observer",), MethodClass.METADATA, True),
    ],
)
def test_tenant_and_roles_both_have_to_allow_a_method(
    allow: str, roles: tuple[str, ...], wanted: MethodClass, may: bool
) -> None:
    at = door(policy(f"    allow: {allow}"))
    caller = Caller("acme", "k", frozenset(roles))

    if may:
        at.admission.require(caller, wanted, method="m")
    else:
        with pytest.raises(MethodForbidden):
            at.admission.require(caller, wanted, method="m")


def test_who_may_not_infer_gets_no_call_through() -> None:
    at = door(policy("    allow: [metadata]"))

    with pytest.raises(MethodForbidden):
        at.enter(ONE)
    with pytest.raises(MethodForbidden):
        at.admission.unseen(ONE, ModelUnknown(model="x"), method=METHOD, call_id=b"")


# What is left.


def test_without_limits_everything_comes_in() -> None:
    at = door(policy())

    assert [at.come() for _ in range(1000)] == [None] * 1000


def test_the_rate_of_a_tenant_is_shared_by_its_keys_and_models_and_nobody_else() -> None:
    at = door(policy("    limits: {calls_per_second: 10, burst: 3}"))

    assert [at.come(ONE), at.come(TWO, "text_a"), at.come(ONE)] == [None] * 3
    assert at.come(TWO) is RateLimited
    assert at.come(OTHER) is None
    at.now += 0.1
    assert [at.come(TWO), at.come(ONE)] == [None, RateLimited]


def test_a_refused_caller_knows_when_to_come_back() -> None:
    at = door(policy("    limits: {calls_per_second: 2, burst: 1}"))
    at.come()

    with pytest.raises(RateLimited) as caught:
        at.enter(ONE)

    assert caught.value.retry_after_seconds == pytest.approx(0.5)
    assert caught.value.left == (1, 0, 1)
    assert caught.value.metadata == {"scope": "tenant acme", "limit": "2"}
    at.now += 0.5
    assert at.come() is None


def test_each_key_has_its_own_rate_below_the_tenants() -> None:
    at = door(policy("    limits: {calls_per_second: 3}\n    each_key: {calls_per_second: 2}"))

    assert [at.come(ONE), at.come(ONE), at.come(ONE)] == [None, None, RateLimited]
    assert [at.come(TWO), at.come(TWO)] == [None, RateLimited]


def test_what_one_limit_refuses_is_not_counted_by_the_others() -> None:
    """Else a caller who is refused by its key's limit would use up its tenant's."""
    at = door(
        policy(
            "    limits: {calls_per_second: 5, concurrency: 5, bytes_per_second: 50}\n"
            "    each_key: {calls_per_second: 1, bytes_per_second: 10}"
        )
    )
    at.come(ONE)
    for _ in range(100):
        assert at.come(ONE) is RateLimited

    others = [at.come(Caller("acme", f"other-{number}")) for number in range(5)]
    assert others == [None] * 4 + [ConcurrencyLimited]


def test_calls_at_a_time_are_counted_until_they_end() -> None:
    at = door(policy("    limits: {concurrency: 2}"))

    assert [at.come(), at.come(), at.come()] == [None, None, ConcurrencyLimited]
    at.leave()
    assert [at.come(), at.come()] == [None, ConcurrencyLimited]


def test_bytes_are_limited_and_one_large_request_is_possible() -> None:
    at = door(policy("    limits: {bytes_per_second: 100}"))

    assert at.come(size=300) is None
    assert at.come(size=1) is BytesLimited
    at.now += 2.0
    assert at.come(size=1) is BytesLimited
    at.now += 0.02
    assert at.come(size=1) is None


def test_the_smallest_of_all_sizes_holds() -> None:
    at = door(policy("    limits: {request_bytes: 100}", "models:\n  simple: {request_bytes: 50}"))

    with pytest.raises(RequestTooLarge) as caught:
        at.enter(ONE, size=51)
    assert caught.value.metadata == {"limit_bytes": "50", "scope": "model simple"}
    assert "more than the 50 bytes that the limit of model simple takes" in caught.value.message
    assert at.come(model="text_a", size=100) is None


def test_a_models_ceiling_holds_over_all_tenants_for_each_model_by_itself() -> None:
    at = door(policy(rest='models:\n  "text_*": {concurrency: 1}'))

    assert [at.come(ONE, "text_a"), at.come(OTHER, "text_a")] == [None, ConcurrencyLimited]
    assert at.come(OTHER, "text_b") is None


def test_a_tenants_limit_by_model_holds_for_all_that_match_together() -> None:
    at = door(policy('    by_model:\n      "text_*": {concurrency: 1}'))

    assert [at.come(ONE, "text_a"), at.come(TWO, "text_b")] == [None, ConcurrencyLimited]
    assert at.come(ONE, "simple") is None


def test_the_gateways_ceiling_holds_over_all() -> None:
    at = door(policy(rest="gateway: {concurrency: 1}"))

    assert [at.come(ONE), at.come(OTHER)] == [None, ConcurrencyLimited]


def test_refusals_are_counted_by_reason() -> None:
    at = door(policy("    limits: {concurrency: 1}"))
    for _ in range(3):
        at.come()

    assert at.admission.refused == {"CONCURRENCY_LIMITED": 2}


# Calls that run no model.


def asked(at: Door, caller: Caller = ONE) -> type[Limited] | None:
    """How a caller's question is refused; None where it was answered."""
    tenant = at.admission.require(caller, MethodClass.METADATA, method="m")
    try:
        with at.admission.counted(at.admission.asking(caller, tenant), caller, method="m"):
            return None
    except Limited as refusal:
        return type(refusal)


def test_what_runs_no_model_counts_at_the_rates_of_tenant_and_key_with_what_does() -> None:
    at = door(policy("    limits: {calls_per_second: 1, burst: 4}\n    each_key: {calls_per_second: 1, burst: 3}"))

    assert [asked(at), at.come(), asked(at), asked(at), at.come()] == [None, None, None, RateLimited, RateLimited]
    assert [asked(at, TWO), asked(at, TWO), at.come(TWO)] == [None, RateLimited, RateLimited]
    assert asked(at, OTHER) is None


def test_what_runs_no_model_takes_a_place_of_tenant_and_key_while_it_runs() -> None:
    at = door(policy("    limits: {concurrency: 3}\n    each_key: {concurrency: 2}"))
    tenant = at.admission.require(ONE, MethodClass.METADATA, method="m")
    gate = at.admission.asking(ONE, tenant)

    with at.admission.counted(gate, ONE, method="m"):
        assert [at.come(), at.come(), asked(at)] == [None, ConcurrencyLimited, ConcurrencyLimited]
        assert [at.come(TWO), asked(at, TWO)] == [None, ConcurrencyLimited]
    with pytest.raises(KeyError), at.admission.counted(gate, ONE, method="m"):
        raise KeyError
    assert at.come() is None
    assert at.come() is ConcurrencyLimited


@pytest.mark.parametrize(
    ("acme", "rest"),
    [
        ("    limits: {bytes_per_second: 1, request_bytes: 1}", ""),
        ('    by_model:\n      "*": {concurrency: 1, calls_per_second: 0.001}', ""),
        ("", 'models:\n  "*": {concurrency: 1, calls_per_second: 0.001}'),
        ("", "gateway: {concurrency: 1, calls_per_second: 0.001}"),
    ],
)
def test_what_runs_no_model_counts_at_nothing_else(acme: str, rest: str) -> None:
    at = door(policy(acme, rest))
    at.come(size=1)

    assert [asked(at) for _ in range(5)] == [None] * 5


def test_a_question_that_is_refused_is_told_as_a_call_is() -> None:
    at = door(policy("    limits: {calls_per_second: 2, burst: 1}"))
    assert asked(at) is None
    tenant = at.admission.require(ONE, MethodClass.METADATA, method="m")
    gate = at.admission.asking(ONE, tenant)

    with pytest.raises(RateLimited) as caught, at.admission.counted(gate, ONE, method="m"):
        pass

    assert caught.value.retry_after_seconds == pytest.approx(0.5)
    assert caught.value.left == at.admission.left(gate) == (1, 0, 1)
    assert caught.value.metadata == {"scope": "tenant acme", "limit": "2"}
    assert at.admission.refused == {"RATE_LIMITED": 1}


def test_another_policy_holds_for_questions_too() -> None:
    at = door(policy("    limits: {calls_per_second: 0.001}"))
    assert [asked(at), asked(at)] == [None, RateLimited]

    at.admission.change(read_policy(policy()))

    assert asked(at) is None


# Another policy.


def test_a_change_holds_from_the_next_call_on_and_hands_out_no_fresh_allowance() -> None:
    at = door(policy("    limits: {calls_per_second: 1}"))
    at.come()

    at.admission.change(read_policy(policy("    limits: {calls_per_second: 1, concurrency: 10}")))
    assert at.come() is RateLimited
    at.admission.change(read_policy(policy()))
    assert at.come() is None
    at.admission.change(read_policy(policy("    limits: {calls_per_second: 1}")))
    assert at.come() is RateLimited, "a limit that was away for a while is the same counter"
    at.admission.change(read_policy("tenants: {}"))
    with pytest.raises(TenantUnknown):
        at.come()
    at.leave()


def test_a_lowered_limit_counts_the_calls_that_are_under_way() -> None:
    at = door(policy("    limits: {concurrency: 3}"))
    for _ in range(3):
        at.come()

    at.admission.change(read_policy(policy("    limits: {concurrency: 2}")))
    assert at.come() is ConcurrencyLimited
    at.leave()
    assert at.come() is ConcurrencyLimited
    at.leave()
    assert at.come() is None


def test_what_others_use_of_a_shared_ceiling_is_not_told() -> None:
    """What is left of a rate is told of the tenant's own alone."""
    at = door(policy(rest="models:\n  simple: {calls_per_second: 1}"))
    at.come(OTHER)

    with pytest.raises(RateLimited) as caught:
        at.enter(ONE)
    assert caught.value.left is None


@pytest.mark.parametrize("number", [1e-6, 1e9])
def test_the_smallest_and_largest_rates_can_be_told(number: float) -> None:
    at = door(policy(f"    limits: {{calls_per_second: {number:.9f}, burst: 1}}"))
    at.come()

    with pytest.raises(RateLimited) as caught:
        at.enter(ONE)
    assert status_of(caught.value).code
    assert caught.value.left is not None
