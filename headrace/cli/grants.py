"""What a tenant is granted, checked and in rows."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING

from headrace.cli.common import USAGE, fail

if TYPE_CHECKING:  # slow to import
    from gateway.policy.model import Tenant
    from headrace.store.tenants import StoredTenant


def granted(
    name: str, grants: Mapping[str, object], *, code: int = USAGE, told: Callable[[str], str] = str
) -> "Tenant":
    """What a policy that grants this says. Ends the command with every mistake, in words that `told` may change."""
    from gateway.policy.document import PolicyError, read_tenant  # noqa: PLC0415  slow to import

    try:
        return read_tenant(name, dict(grants))
    except PolicyError as exc:
        fail(told(str(exc)).replace("\n", "\nheadrace: "), code=code)


def see_claims(tenant: "Tenant", stored: "Iterable[StoredTenant]") -> None:
    """End the command where a certificate would stand for another tenant too: gateways would let neither in by it.

    To be called after the change, in its transaction: what others change waits for the end of it.
    """
    from gateway.policy.document import PolicyError, read_tenant  # noqa: PLC0415  slow to import
    from gateway.policy.identities import Claims  # noqa: PLC0415

    if not tenant.certificates:
        return
    own = Claims({tenant.name: tenant.certificates})
    for other in stored:
        if other.name == tenant.name:
            continue
        try:
            theirs = read_tenant(other.name, other.grants).certificates
        except PolicyError:  # written by hand: it is granted nothing
            continue
        claims = Claims({other.name: theirs})
        # Either may claim all that lies around what the other claims.
        for identity in (*filter(claims.of, tenant.certificates), *filter(own.of, theirs)):
            fail(f"--certificate: {identity} stands for tenant {other.name} already", code=USAGE)


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
    quotas = [
        ("the tenant", field.name, plain(value))
        for field in fields(Quotas)
        if field.name != "warn_at" and (value := getattr(tenant.quotas, field.name)) is not None
    ]
    shares = " ".join(map(plain, tenant.quotas.warn_at)) or "never"
    return [*rows, *quotas, *([("the tenant", "warn_at", shares)] if quotas else [])]
