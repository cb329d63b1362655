"""Whose a verified certificate is."""

from datetime import UTC, datetime, timedelta
from typing import cast

import pytest

from gateway import certificates as certificates_module
from gateway.certificates import Certificates
from gateway.errors import CertificateUnknown
from gateway.identity import USER, Caller
from gateway.policy.document import read_policy
from gateway.policy.model import EVERYTHING, Policy
from gateway.status import Context
from tests.unit.gateway.certifying import DAY, Authority, Certificate, dns, email, uri

POLICY = read_policy(
    """\
tenants:
  acme: {models: [], certificates: ["spiffe://example.org/acme/*", billing.acme.example]}
  other: {models: [], certificates: ["spiffe://example.org/other", other.example, "spiffe://example.org/%s/*"]}
"""
    % ("long" * 70)
)
ACME, OTHER = uri("spiffe://example.org/acme/x"), uri("spiffe://example.org/other")


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


class Connection:
    """As much of gRPC as is looked at; by default it says what gRPC says of a caller without a certificate."""

    def __init__(self, *shown: bytes) -> None:
        self._shown = shown

    def auth_context(self) -> dict[str, list[bytes]]:
        """What gRPC knows of the peer."""
        found = {"transport_security_type": [b"ssl"]}
        return {**found, "x509_pem_cert": list(self._shown)} if self._shown else found


def who(certificate: Certificate, *, policy: Policy = POLICY, after: timedelta = timedelta(0)) -> Caller:
    moment = (datetime.now(UTC) + after).timestamp()
    certificates = Certificates(clock=lambda: moment)
    certificates.change(policy)
    return certificates(cast("Context", Connection(certificate.chain)))


def test_a_certificate_stands_for_the_tenant_that_lists_it(authority: Authority) -> None:
    user = frozenset({USER})

    assert who(authority.issue(ACME)) == Caller("acme", "certificate:spiffe://example.org/acme/x", user)
    assert who(authority.issue(dns("Billing.Acme.Example"))) == Caller("acme", "certificate:billing.acme.example", user)
    assert who(authority.issue(OTHER)) == Caller("other", "certificate:spiffe://example.org/other", user)


def test_names_that_nobody_lists_do_no_harm(authority: Authority) -> None:
    mixed = authority.issue(dns("x.example"), ACME, email("a@b.c"), dns("billing.acme.example"))

    assert who(mixed).key_id == "certificate:spiffe://example.org/acme/x"


def test_a_long_name_is_cut_and_two_long_ones_stay_two(authority: Authority) -> None:
    named = [who(authority.issue(uri(f"spiffe://example.org/{'long' * 70}/{end}"))).key_id for end in ("a", "b")]

    assert named[0] != named[1]
    assert max(map(len, named)) < 300


@pytest.mark.parametrize(
    "names",
    [
        [],
        [ACME, uri("spiffe://example.org/acme/y")],
        [ACME, uri("https://example.org/")],
        [ACME, dns("other.example")],
        [dns("billing.acme.example"), dns("other.example")],
        [dns("billing.acme.example\x00.evil.example")],
        [uri("spiffe://example.org/acme/x\x00")],
        [uri("spiffe://example.org/acme/*")],
        [uri("spiffe://example.org/acme")],
        [uri("spiffe://example.org/acme/../other")],
        [uri("spiffe://example.org/acme/%78")],
        [uri("SPIFFE://example.org/acme/x")],
        [dns("*.acme.example")],
        [dns("spiffe://example.org/acme/x")],
        [email("spiffe://example.org/acme/x")],
        [email("billing.acme.example")],
        [uri("billing.acme.example")],
    ],
    ids=repr,
)
def test_any_other_certificate_stands_for_nobody(authority: Authority, names: list[object]) -> None:
    with pytest.raises(CertificateUnknown):
        who(authority.issue(*names, common_name="billing.acme.example"))  # type: ignore[arg-type]  # names, all


def test_one_that_has_expired_since_the_connection_began_stands_for_nobody(authority: Authority) -> None:
    certificate = authority.issue(ACME, ends=2 * DAY)

    assert who(certificate, after=DAY).tenant == "acme"
    with pytest.raises(CertificateUnknown):
        who(certificate, after=3 * DAY)


def test_the_policy_in_force_counts(authority: Authority) -> None:
    certificates = Certificates()
    connection = cast("Context", Connection(authority.issue(ACME).chain))
    with pytest.raises(CertificateUnknown):
        certificates(connection)

    certificates.change(POLICY)
    assert certificates(connection).tenant == "acme"
    certificates.change(EVERYTHING)
    with pytest.raises(CertificateUnknown):
        certificates(connection)


def test_what_two_sources_of_tenants_claim_is_nobodys(authority: Authority) -> None:
    """A file and a database, each right by itself."""
    added = read_policy("tenants: {third: {models: [], certificates: ['spiffe://example.org/acme/x']}}")

    with pytest.raises(CertificateUnknown):
        who(authority.issue(ACME), policy=Policy(tenants={**POLICY.tenants, **added.tenants}))


@pytest.mark.parametrize("shown", [(), (b"",), (b"nonsense",), (b"-----BEGIN CERTIFICATE-----\nAAAA\n",)])
def test_without_a_certificate_that_can_be_read_nobody_calls(shown: tuple[bytes, ...]) -> None:
    certificates = Certificates()
    certificates.change(POLICY)

    with pytest.raises(CertificateUnknown):
        certificates(cast("Context", Connection(*shown)))


def test_so_many_are_remembered(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certificates_module, "_MOST_READ", 2)
    certificates = Certificates()
    certificates.change(POLICY)
    connections = [cast("Context", Connection(authority.issue(ACME).chain)) for _ in range(3)]

    for connection in [*connections, *connections]:
        assert certificates(connection).tenant == "acme"

    assert len(certificates._read) == 2
