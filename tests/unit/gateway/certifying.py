"""Certificates of callers, the odd ones too, by a throw-away authority."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path

import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import NameOID

DAY = timedelta(days=1)


def uri(text: str) -> x509.GeneralName:
    """A URI, whatever it says."""
    return x509.UniformResourceIdentifier._init_without_validation(text)


def dns(name: str) -> x509.GeneralName:
    """A DNS name, whatever it says."""
    return x509.DNSName._init_without_validation(name)


def email(address: str) -> x509.GeneralName:
    """An e-mail address, whatever it says."""
    return x509.RFC822Name._init_without_validation(address)


@dataclass(frozen=True)
class Certificate:
    """A certificate and its key, PEM."""

    chain: bytes
    key: bytes


class Authority:
    """Signs what it is given."""

    def __init__(self) -> None:
        self._ca = trustme.CA()

    @property
    def pem(self) -> bytes:
        """What is believed."""
        return self._ca.cert_pem.bytes()

    @cached_property
    def _key(self) -> ec.EllipticCurvePrivateKey:
        key = load_pem_private_key(self._ca.private_key_pem.bytes(), password=None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        return key

    def server(self) -> Certificate:
        """For a server on this machine."""
        issued = self._ca.issue_cert("localhost", "127.0.0.1")
        return Certificate(b"".join(blob.bytes() for blob in issued.cert_chain_pems), issued.private_key_pem.bytes())

    def issue(
        self, *names: x509.GeneralName, common_name: str = "caller", begins: timedelta = -DAY, ends: timedelta = DAY
    ) -> Certificate:
        """For a caller, with these alternative names, valid from and until so long from now."""
        return Certificate(*self._issued(names, common_name, begins, ends))

    def _issued(
        self, names: Sequence[x509.GeneralName], common_name: str, begins: timedelta, ends: timedelta
    ) -> tuple[bytes, bytes]:
        now = datetime.now(UTC)
        key = ec.generate_private_key(ec.SECP256R1())
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)]))
            .issuer_name(x509.load_pem_x509_certificate(self.pem).subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + begins)
            .not_valid_after(now + ends)
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        signed = builder.sign(self._key, hashes.SHA256())
        encoding, plain = serialization.Encoding.PEM, serialization.NoEncryption()
        return signed.public_bytes(encoding), key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, plain)


def server_files(folder: Path, authority: Authority) -> tuple[Path, Path, Path]:
    """Authorities, certificate and key of a server, in place of those that are there."""
    folder.mkdir(exist_ok=True)
    issued = authority.server()
    files = (folder / "ca.crt", folder / "tls.crt", folder / "tls.key")
    for path, content in zip(files, (authority.pem, issued.chain, issued.key), strict=True):
        path.write_bytes(content)
    return files
