"""Which of a caller's metadata travels on to Triton: all of its own, and no credential or hop-by-hop entry.

Nor what HTTP clients and proxies say of themselves, where a call came by REST.
"""

from collections.abc import Iterable

from headrace.bus.v1.envelope_pb2 import Metadatum

_OWN = frozenset(
    {
        "authorization",
        "x-api-key",
        "cookie",
        "user-agent",
        "host",
        "content-type",
        "connection",
        "keep-alive",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "content-length",
        "accept",
        "accept-encoding",
        "accept-language",
        "content-encoding",
        "inference-header-content-length",
        "origin",
        "referer",
    }
)
_OWN_PREFIXES = ("grpc-", "proxy-", "headrace-", "sec-", "x-envoy-", "x-forwarded-", ":")


def forwarded(metadata: Iterable[tuple[str, str | bytes]]) -> list[Metadatum]:
    """The entries that go on, in their order. Most calls have none, so the common way is short."""
    return [
        Metadatum(key=key, value=value if isinstance(value, bytes) else value.encode())
        for key, value in metadata
        if key not in _OWN and not key.startswith(_OWN_PREFIXES)
    ]
