"""Who is calling: certificates of callers, which the port asked for and gRPC has verified, beside keys and tokens.

What counts is the subject alternative name, never the common name: one SPIFFE id at most, and DNS names, as the policy
in force lists them. They are read here from the certificate itself: gRPC tells them as texts that end at a NUL, and
calls an e-mail address that looks like a URI by the same name. cryptography is used here, and in
`headrace.runtime.certificates`.
"""

import hashlib
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from cryptography import x509

from gateway.errors import CertificateUnknown
from gateway.identity import USER, Caller
from gateway.policy.identities import Claims, dns_name, spiffe_id
from gateway.policy.model import Policy
from gateway.status import Context

_PEM = "x509_pem_cert"  # gRPC's name of it
_MOST_READ = 1000
_LONGEST_KEY_ID = 256
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Read:
    """What a certificate says of whom it is for; moments are seconds since the epoch."""

    identities: tuple[str, ...] = ()
    begins: float = 0.0
    ends: float = 0.0


_NOBODY = _Read()


class Certificates:
    """Tells whose a verified certificate is, by the policy in force."""

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._claiming: Mapping[str, tuple[str, ...]] = {}
        self._claims = Claims({})
        self._told: frozenset[tuple[str, str, str]] = frozenset()
        self._read: OrderedDict[bytes, _Read] = OrderedDict()

    def change(self, policy: Policy) -> None:
        """Another policy is in force. What two tenants of it claim is told, once for as long as they do.

        A file has no such claims; one and a database together may.
        """
        claiming = {name: tenant.certificates for name, tenant in policy.tenants.items() if tenant.certificates}
        if claiming == self._claiming:
            return
        self._claiming = claiming
        self._claims = Claims(claiming)
        twice = frozenset(
            (tenant, other, identity)
            for tenant, identities in claiming.items()
            for identity in identities
            if (other := self._claims.overlaps(tenant, identity)) is not None
        )
        for tenant, other, identity in sorted(twice - self._told):
            _log.error(
                "tenants %s and %s both claim certificates of %s: they stand for nobody",
                tenant,
                other,
                identity,
                extra={"event": "certificate_claimed_twice", "tenant": tenant, "other": other, "claim": identity},
            )
        self._told = twice

    def __call__(self, context: Context) -> Caller:
        """Who calls. Raises CertificateUnknown, also where the certificate has expired since the connection began."""
        found = list(context.auth_context().get(_PEM, ()))
        if len(found) != 1:
            raise CertificateUnknown
        read = self._read_once(found[0])
        claimed = [(identity, tenant) for identity in read.identities for tenant in self._claims.of(identity)]
        if not read.begins <= self._clock() < read.ends or len({tenant for _, tenant in claimed}) != 1:
            raise CertificateUnknown
        identity, tenant = claimed[0]
        return Caller(tenant, f"certificate:{_shortened(identity)}", frozenset({USER}))

    def _read_once(self, pem: bytes) -> _Read:
        read = self._read.get(pem)
        if read is None:
            read = self._read[pem] = _identities(pem)
            if len(self._read) > _MOST_READ:
                self._read.popitem(last=False)
        self._read.move_to_end(pem)
        return read


def _identities(pem: bytes) -> _Read:
    try:
        certificate = x509.load_pem_x509_certificate(pem)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
        hosts = names.get_values_for_type(x509.DNSName)
        begins, ends = certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp()
    except (ValueError, x509.ExtensionNotFound, x509.DuplicateExtension, x509.UnsupportedGeneralNameType):
        return _NOBODY
    if len(uris) > 1:
        return _NOBODY  # as SPIFFE has it: which of them it would be is anyone's guess
    stated = (*map(spiffe_id, uris), *map(dns_name, hosts))
    return _Read(tuple(identity for identity in stated if identity is not None), begins, ends)


def _shortened(identity: str) -> str:
    if len(identity) <= _LONGEST_KEY_ID:
        return identity
    return f"{identity[:_LONGEST_KEY_ID]}~{hashlib.sha256(identity.encode()).hexdigest()[:12]}"
