"""What a tenant is granted, checked and in rows."""

from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING

from headrace.cli.common import USAGE, fail

if TYPE_CHECKING:  # slow to import
    from gateway.policy.model import Tenant


def granted(name: str, grants: Mapping[str, object], *, code: int = USAGE) -> "Tenant":
    """What a policy that grants this says. Ends the command with every mistake."""
    from gateway.policy.document import PolicyError, read_tenant  # noqa: PLC0415  slow to import

    try:
        return read_tenant(name, dict(grants))
    except PolicyError as exc:
        fail(str(exc).replace("\n", "\nheadrace: "), code=code)


def limit_rows(tenant: "Tenant") -> list[tuple[str, str, str]]:
    """Every limit and quota of a tenant: whose it is, its name, and how much."""
    from gateway.policy.model import Limits, Quotas, plain  # noqa: PLC0415  slow to import

    scopes = [
        ("the tenant", tenant.limits),
        ("each of its keys", tenant.each_key),
        *((f"its calls of {each.pattern}", each.limits) for each in tenant.by_model),
    ]
    rows = [
        (scope, field.name, plain(value))
        for scope, held in scopes
        for field in fields(Limits)
        if (value := getattr(held, field.name)) is not None
    ]
    return rows + [
        ("the tenant", field.name, plain(value))
        for field in fields(Quotas)
        if field.name != "warn_at" and (value := getattr(tenant.quotas, field.name)) is not None
    ]
