"""Which identities a policy may list, and who claims what."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.policy.identities import Claims, dns_name, listed, spiffe_id

WORKLOAD = "spiffe://example.org/acme/billing"


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        (WORKLOAD, WORKLOAD),
        ("spiffe://example.org/acme/*", "spiffe://example.org/acme/*"),
        ("spiffe://example.org/*", "spiffe://example.org/*"),
        ("spiffe://a_b-c.1/A/b.c/D-_e", "spiffe://a_b-c.1/A/b.c/D-_e"),
        ("Billing.ACME.example", "billing.acme.example"),
        ("localhost", "localhost"),
    ],
)
def test_what_may_be_listed_is_compared_as_it_is(text: str, normal: str) -> None:
    assert listed(text) == normal


NONE = [
    "",
    "*",
    "*.acme.example",
    "acme.*",
    "acme..example",
    ".acme.example",
    "acme.example.",
    "-acme.example",
    "acme example",
    "acme.example\n",
    "a" * 64 + ".example",
    "a." * 127 + "toolong",
    "ácme.example",
    "acme.example\x00.evil",
    "spiffe://",
    "spiffe:///acme",
    "spiffe://example.org",
    "spiffe://example.org/",
    "spiffe://example.org/acme/",
    "spiffe://example.org//acme",
    "spiffe://example.org/acme/../other",
    "spiffe://example.org/./acme",
    "spiffe://example.org/..",
    "spiffe://example.org/acme/%2e%2e",
    "spiffe://example.org/acme?x",
    "spiffe://example.org/acme#x",
    "spiffe://example.org:443/acme",
    "spiffe://user@example.org/acme",
    "spiffe://Example.org/acme",
    "SPIFFE://example.org/acme",
    "spiffe://example.org/acme\n",
    "spiffe://example.org/acme\x00",
    "spiffe://example.org/ácme",
    "spiffe://example.org/" + "a" * 2048,
    "https://example.org/acme",
]
PATTERNS = [
    "spiffe://*",
    "spiffe://*/acme",
    "spiffe://example.org/acme*",
    "spiffe://example.org/*/billing",
    "spiffe://example.org/acme/**",
    "spiffe://example.org/../*",
    "spiffe://example.org//*",
]


@pytest.mark.parametrize("text", [*NONE, *PATTERNS], ids=lambda text: repr(text[:40]))
def test_what_is_of_no_agreed_form_is_not_taken(text: str) -> None:
    with pytest.raises(ValueError, match="must be a SPIFFE id"):
        listed(text)
    assert spiffe_id(text) is None
    assert dns_name(text) is None


def test_a_pattern_is_nobodys_identity() -> None:
    assert spiffe_id("spiffe://example.org/acme/*") is None


@given(st.text(max_size=50))
def test_no_other_text_is_an_identity(text: str) -> None:
    assert spiffe_id(f"spiffe://{text}") is None or all(letter not in text for letter in "*%?#:@ \n\x00")
    assert dns_name(text) in {None, text.lower()}


CLAIMS = Claims(
    {
        "acme": [WORKLOAD, "billing.acme.example", "spiffe://example.org/all/*"],
        "other": ["spiffe://other.org/*", "other.example"],
    }
)


@pytest.mark.parametrize(
    ("identity", "tenants"),
    [
        (WORKLOAD, {"acme"}),
        (f"{WORKLOAD}/x", set()),
        ("spiffe://example.org/acme", set()),
        ("spiffe://example.org/acme/billin", set()),
        ("spiffe://example.org/all/x", {"acme"}),
        ("spiffe://example.org/all/x/y/z", {"acme"}),
        ("spiffe://example.org/all", set()),
        ("spiffe://example.org/allx/y", set()),
        ("spiffe://example.org.evil/all/x", set()),
        ("spiffe://other.org/x", {"other"}),
        ("spiffe://other.orgx/x", set()),
        ("billing.acme.example", {"acme"}),
        ("x.billing.acme.example", set()),
        ("acme.example", set()),
    ],
)
def test_an_identity_belongs_to_who_claims_it_or_what_lies_around_it(identity: str, tenants: set[str]) -> None:
    assert CLAIMS.of(identity) == tenants


def overlaps(**tenants: list[str]) -> set[tuple[str, str, str]]:
    claims = Claims(tenants)
    return {
        (tenant, identity, other)
        for tenant, identities in tenants.items()
        for identity in identities
        if (other := claims.overlaps(tenant, identity)) is not None
    }


def test_no_two_tenants_may_claim_the_same() -> None:
    above, below = "spiffe://d/a/*", "spiffe://d/a/b/*"

    assert overlaps(a=["x.example"], b=["x.example"], c=["x.example"]) == {
        ("b", "x.example", "a"),
        ("c", "x.example", "a"),
    }
    assert overlaps(a=[above], b=["spiffe://d/a/b"]) == {("b", "spiffe://d/a/b", "a")}
    assert overlaps(a=["spiffe://d/a/b"], b=[above]) == {("a", "spiffe://d/a/b", "b")}
    assert overlaps(a=[below], b=[above]) == {("a", below, "b")}
    assert overlaps(a=[above, below, "spiffe://d/a/b/c", "spiffe://d/a/b/c"]) == set()
    assert overlaps(a=["spiffe://d/a"], b=[above], c=["spiffe://d/ab/*"], d=["spiffe://e/*"]) == set()
