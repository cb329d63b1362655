"""What a tenant sees, and what roles allow."""

import pytest

from gateway.identity import Caller
from gateway.policy.model import EVERYTHING, MethodClass, Tenant, granted_by_roles


@pytest.mark.parametrize(
    ("patterns", "model", "seen"),
    [
        (("simple",), "simple", True),
        (("simple",), "simple2", False),
        (("simple",), "Simple", False),
        (("text_*",), "text_", True),
        (("text_*",), "my_text_x", False),
        (("a?c",), "abc", True),
        (("a?c",), "ac", False),
        (("*",), "anything/at.all", True),
        ((), "simple", False),
        (("simple\n",), "simple", False),
        (("*",), "x" * 257, False),
    ],
)
def test_a_tenant_sees_the_models_that_match(patterns: tuple[str, ...], model: str, seen: bool) -> None:
    assert Tenant(name="t", models=patterns).sees(model) is seen


@pytest.mark.parametrize(
    ("roles", "granted"),
    [
        ((), {MethodClass.INFER, MethodClass.METADATA}),
        (("user",), {MethodClass.INFER, MethodClass.METADATA}),
        (("observer",), {MethodClass.METADATA}),
        (("observer", "user"), {MethodClass.INFER, MethodClass.METADATA}),
        (("admin",), set(MethodClass)),
        (("root",), set()),
    ],
)
def test_roles_allow_classes_of_methods(roles: tuple[str, ...], granted: set[MethodClass]) -> None:
    assert granted_by_roles(Caller("t", "k", frozenset(roles))) == granted


def test_without_a_policy_every_tenant_is_granted_everything() -> None:
    tenant = EVERYTHING.tenant("anyone")

    assert tenant is not None
    assert tenant.sees("anything")
    assert tenant.allow == set(MethodClass)
