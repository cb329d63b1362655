"""Keys and certificates of a control plane that lives as long as a test run."""

import base64
import json
from dataclasses import dataclass
from pathlib import Path

import trustme
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

LOOPBACK = "127.0.0.1"
ADMINISTRATORS = "system:masters"


@dataclass(frozen=True)
class Pair:
    """A certificate with its private key, as files."""

    certificate: Path
    key: Path


class Authority:
    """A throw-away authority; whatever it issues is written into its folder."""

    def __init__(self, home: Path, name: str) -> None:
        self._home = home
        self._ca = trustme.CA()
        self.certificate = home / f"{name}.crt"
        self._ca.cert_pem.write_to_path(str(self.certificate))

    def server(self, name: str, *hosts: str) -> Pair:
        """For a server that is called by these names."""
        return self._write(name, self._ca.issue_cert(*hosts))

    def client(self, user: str, group: str | None = None) -> Pair:
        """For a client: Kubernetes takes the common name for the user, the organisation for a group."""
        # Without a host the list of hosts would be empty and critical, and Go refuses what it finds no use for.
        leaf = self._ca.issue_cert("client.invalid", common_name=user, organization_name=group)
        return self._write(user.replace(":", "-"), leaf)

    def _write(self, name: str, leaf: trustme.LeafCert) -> Pair:
        pair = Pair(self._home / f"{name}.crt", self._home / f"{name}.key")
        leaf.private_key_pem.write_to_path(str(pair.key))
        with pair.certificate.open("wb") as out:
            out.writelines(blob.bytes() for blob in leaf.cert_chain_pems)
        return pair


def service_account_key(home: Path) -> Pair:
    """What service accounts' tokens are signed with, and checked with."""
    key = ec.generate_private_key(ec.SECP256R1())
    pair = Pair(home / "service-accounts.pub", home / "service-accounts.key")
    pair.key.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
        )
    )
    pair.certificate.write_bytes(
        key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return pair


def kubeconfig(path: Path, *, server: str, authority: Path, client: Pair) -> Path:
    """Write what a client needs; JSON is YAML enough."""
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {"name": "tests", "cluster": {"server": server, "certificate-authority-data": _base64(authority)}}
        ],
        "users": [
            {
                "name": "tests",
                "user": {
                    "client-certificate-data": _base64(client.certificate),
                    "client-key-data": _base64(client.key),
                },
            }
        ],
        "contexts": [{"name": "tests", "context": {"cluster": "tests", "user": "tests"}}],
        "current-context": "tests",
    }
    path.write_text(json.dumps(document))
    return path


def _base64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()
