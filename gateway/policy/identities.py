"""Whom certificates may stand for, as policies list them: SPIFFE ids, exact or all below a path, and DNS names. Pure.

What is not of exactly such a form is no identity, in a policy as in a certificate: nothing is decoded, and nothing
normalised but the letters of a DNS name.
"""

import re
from collections.abc import Iterable, Iterator, Mapping

_LONGEST = 2048
_SPIFFE = re.compile(r"spiffe://[a-z0-9._-]{1,255}(?:/(?!\.{1,2}(?:/|$))[A-Za-z0-9._-]+)+")
_SPIFFE_BELOW = re.compile(r"spiffe://[a-z0-9._-]{1,255}(?:/(?!\.{1,2}/)[A-Za-z0-9._-]+)*/\*")
_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_DNS = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_LONGEST_DNS = 253


def spiffe_id(uri: str) -> str | None:
    """The SPIFFE id of a workload that a URI is; None for every other URI."""
    return uri if len(uri) <= _LONGEST and _SPIFFE.fullmatch(uri) else None


def dns_name(name: str) -> str | None:
    """A DNS name as it is compared; None for a wildcard and for what is none."""
    lowered = name.lower() if name.isascii() else ""
    return lowered if len(lowered) <= _LONGEST_DNS and _DNS.fullmatch(lowered) else None


def listed(text: str) -> str:
    """An identity as a policy lists it. Raises ValueError."""
    if spiffe_id(text) is not None or (len(text) <= _LONGEST and _SPIFFE_BELOW.fullmatch(text)):
        return text
    name = dns_name(text)
    if name is None:
        raise ValueError(
            "must be a SPIFFE id (spiffe://domain/path, or spiffe://domain/path/* for all below), or a DNS name"
            " without wildcards"
        )
    return name


class Claims:
    """Which tenants claim which identities."""

    def __init__(self, tenants: Mapping[str, Iterable[str]]) -> None:
        """By a tenant's name, what it lists."""
        self._tenants: dict[str, list[str]] = {}
        for tenant, identities in tenants.items():
            for identity in identities:
                self._tenants.setdefault(identity, []).append(tenant)

    def of(self, identity: str) -> frozenset[str]:
        """The tenants that claim an identity, exactly or with all that lies around it."""
        return frozenset(tenant for at in _around(identity) for tenant in self._tenants.get(at, ()))

    def overlaps(self, tenant: str, identity: str) -> str | None:
        """Another tenant that claims what this one lists; where both list the same, only the later one is told."""
        others = self._tenants.get(identity, [])
        earlier = next((other for other in others[: others.index(tenant)]), None) if tenant in others else None
        if earlier is not None:
            return earlier
        around = (other for at in _around(identity) if at != identity for other in self._tenants.get(at, ()))
        return next((other for other in around if other != tenant), None)


def _around(identity: str) -> Iterator[str]:
    """An identity, and the patterns that have it below them."""
    yield identity
    if identity.startswith("spiffe://"):
        path = identity.removesuffix("/*")
        while (path := path.rpartition("/")[0]) != "spiffe:/":
            yield f"{path}/*"
