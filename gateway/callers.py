"""Who calls: by a credential in metadata, or by the connection's certificate, asked in the declared order.

A credential in metadata is judged and has to be good, whatever the certificate says. The certificate alone counts where
metadata holds none; where both are good, the one that is asked first counts.
"""

from collections.abc import Callable, Sequence

from gateway.errors import CertificateUnknown, KeyInvalid, KeyMissing
from gateway.identity import Caller, Metadata, Verify, presented_key
from gateway.status import Context

WhoCalls = Callable[[Context], Caller]
"""Tells who makes a call. Raises a CredentialRefused. Runs on every call: microseconds, no waiting."""


class Callers:
    """Tells who makes a call: a WhoCalls, and as much of it as can be told from metadata alone."""

    def __init__(
        self, first: Sequence[Verify], certificate: WhoCalls | None = None, then: Sequence[Verify] = ()
    ) -> None:
        """Who knows credentials, in order, before and after the certificate, where the port asks for one."""
        self._verifiers = tuple((verify, True) for verify in first)
        self._verifiers += tuple((verify, certificate is None) for verify in then)
        self._certificate = certificate

    def by_metadata(self, metadata: Metadata) -> Caller | None:
        """Who calls; None where the certificate has the word, which gRPC shows to a method only.

        Raises a CredentialRefused.
        """
        known = self._known(metadata)
        return known[0] if known is not None and known[1] else None

    def __call__(self, context: Context) -> Caller:
        """Who calls. Raises a CredentialRefused."""
        known = self._known(context.invocation_metadata() or ())
        if known is not None and known[1]:
            return known[0]
        assert self._certificate is not None  # noqa: S101  where there is none, all are first, or KeyMissing was raised
        try:
            return self._certificate(context)
        except CertificateUnknown:
            if known is None:
                raise
            return known[0]

    def _known(self, metadata: Metadata) -> tuple[Caller, bool] | None:
        """Whose credential metadata holds, and whether it is asked before the certificate; None where it holds none."""
        try:
            key = presented_key(metadata)
        except KeyMissing:
            if self._certificate is None:
                raise
            return None
        for verify, first in self._verifiers:
            caller = verify(key)
            if caller is not None:
                return caller, first
        raise KeyInvalid
