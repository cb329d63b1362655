"""This process's own certificates: what renews them in place need not restart anything.

Certificate, key and authorities are taken together or not at all. New connections get what is in force; those that
stand go on with what they began with. A pair of which one half is written already is refused here: gRPC would
take it, and then nobody could connect. cryptography is used here, and in `gateway.certificates`.
"""

from dataclasses import dataclass
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from headrace.runtime.reload import ReloadedFile
from headrace.runtime.settings import SettingsError


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its key, with the authorities that the other side's is to be signed by, all PEM."""

    certificate: bytes
    key: bytes
    authorities: bytes | None
    ends: float
    """Until when the certificate holds, in seconds since the epoch."""


class OwnCertificate:
    """A certificate of ours, read again whenever its files change."""

    def __init__(self, certificate: Path, key: Path, authorities: Path | None, *, what: str) -> None:
        """`what` names it in the log. Without `authorities` nobody is asked for a certificate.

        Raises SettingsError where the files are not usable.
        """
        self._key = key
        self._authorities = authorities
        self._current: Pair
        beside = [key] if authorities is None else [key, authorities]
        self._files = ReloadedFile(certificate, what=what, read=self._read, use=self._use, beside=beside)

    async def keep(self) -> None:
        """Watch the files until cancelled."""
        await self._files.keep()

    @property
    def current(self) -> Pair:
        """What is in force."""
        return self._current

    def server_credentials(self) -> grpc.ServerCredentials:
        """For a port: each new connection is shown what is in force then, and judged by it."""
        shown = self._current

        def changed() -> grpc.ServerCertificateConfiguration | None:
            # Asked at each handshake, in a thread of gRPC's.
            nonlocal shown
            if self._current is shown:
                return None
            shown = self._current
            return _configuration(shown)

        asks = self._authorities is not None  # gRPC asks every caller for a certificate, or none
        return grpc.dynamic_ssl_server_credentials(
            _configuration(shown),
            changed,  # type: ignore[arg-type]  # None says that nothing changed, as grpc's documentation has it
            require_client_authentication=asks,
        )

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """For a channel that is about to be opened."""
        pair = self._current
        return grpc.ssl_channel_credentials(pair.authorities, pair.key, pair.certificate)

    def _use(self, pair: Pair) -> None:
        self._current = pair

    def _read(self, path: Path) -> Pair:
        certificate, key = path.read_bytes(), self._key.read_bytes()
        authorities = None if self._authorities is None else self._authorities.read_bytes()
        try:
            own = x509.load_pem_x509_certificates(certificate)[0]
            belong = load_pem_private_key(key, password=None).public_key() == own.public_key()
        except (ValueError, TypeError, UnsupportedAlgorithm):
            raise SettingsError(f"{path}, {self._key}: no PEM certificate and its key without a password") from None
        if not belong:
            raise SettingsError(f"{path}, {self._key}: the key is another certificate's")
        if authorities is not None:
            try:
                x509.load_pem_x509_certificates(authorities)
            except ValueError:
                raise SettingsError(f"{self._authorities}: no PEM certificates") from None
        return Pair(certificate, key, authorities, own.not_valid_after_utc.timestamp())


def _configuration(pair: Pair) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(pair.key, pair.certificate)], pair.authorities)
