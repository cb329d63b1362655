"""Certificates are checked when the settings are: a library's word on a bad one comes late, and says little."""

import ssl
from pathlib import Path


def check_certificate(certificate: Path, key: Path) -> None:
    """Raises ValueError unless the two are PEM files that belong together."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certificate, key, password=lambda: b"")
    except (OSError, ValueError) as exc:
        raise ValueError(f"{certificate} and {key} are no PEM certificate and its key without a password") from exc


def check_authority(authority: Path) -> None:
    """Raises ValueError unless it is a PEM file of certificates."""
    try:
        ssl.create_default_context(cafile=authority)
    except (OSError, ValueError) as exc:
        raise ValueError(f"{authority} holds no PEM certificates") from exc
