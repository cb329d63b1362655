"""Requests as a service account: with its own token, to the API server itself, and no administrator in between."""

import base64
import json
import ssl
import urllib.error
import urllib.request
from dataclasses import dataclass

from tests.cluster.kubectl import Document, Kubectl

CALL_SECONDS = 20.0


@dataclass(frozen=True)
class Server:
    """Where the API server is, and how to know it."""

    url: str
    context: ssl.SSLContext

    @classmethod
    def of(cls, kubectl: Kubectl) -> "Server":
        """The one that a client's configuration names."""
        words = ("config", "view", "--minify", "--raw", "--output=json")
        cluster: Document = json.loads(kubectl.run(*words))["clusters"][0]["cluster"]
        authority = cluster.get("certificate-authority-data")
        context = ssl.create_default_context(
            cafile=cluster.get("certificate-authority"),
            cadata=base64.b64decode(authority).decode() if authority else None,
        )
        if cluster.get("insecure-skip-tls-verify"):
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return cls(cluster["server"], context)


@dataclass(frozen=True)
class Bearer:
    """A caller that has nothing but a token."""

    server: Server
    token: str

    @classmethod
    def of(cls, kubectl: Kubectl, namespace: str, account: str) -> "Bearer":
        """A service account, by a token as its pods would get."""
        token = kubectl.run("create", "token", account, f"--namespace={namespace}", "--duration=10m").strip()
        return cls(Server.of(kubectl), token)

    def ask(self, method: str, path: str, body: Document | None = None) -> tuple[int, Document]:
        """The status and the object that come back."""
        request = urllib.request.Request(  # noqa: S310  https, as the configuration has it
            self.server.url + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={
                "authorization": f"Bearer {self.token}",
                "accept": "application/json",
                "content-type": "application/merge-patch+json" if method == "PATCH" else "application/json",
            },
        )
        try:
            with urllib.request.urlopen(request, timeout=CALL_SECONDS, context=self.server.context) as answer:  # noqa: S310
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as exc:
            with exc:
                return exc.code, json.load(exc)
