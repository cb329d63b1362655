"""What of a caller's metadata travels on."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.forwarding import forwarded

Entry = tuple[str, str | bytes]

OWN_KEYS = [
    "authorization",
    "x-api-key",
    "cookie",
    "proxy-authorization",
    "user-agent",
    "host",
    ":authority",
    "content-type",
    "content-length",
    "accept",
    "accept-encoding",
    "accept-language",
    "content-encoding",
    "inference-header-content-length",
    "origin",
    "referer",
    "sec-fetch-mode",
    "x-envoy-attempt-count",
    "x-forwarded-for",
    "connection",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "grpc-timeout",
    "grpc-encoding",
    "grpc-trace-bin",
    "headrace-envelope",
]
LOOKALIKES = ["authorization-of", "x-api-key-2", "my-cookie", "hosts", "tea", "grpc", "proxy", "headrace", "x-grpc-a"]

texts = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E))
customs = st.from_regex(r"my-[a-z0-9._-]{0,8}[a-z0-9]", fullmatch=True).filter(lambda key: not key.endswith("-bin"))
travelling: st.SearchStrategy[Entry] = st.tuples(st.sampled_from(LOOKALIKES) | customs, texts) | st.tuples(
    customs.map("{}-bin".format), st.binary()
)
staying: st.SearchStrategy[Entry] = st.tuples(st.sampled_from(OWN_KEYS), texts | st.binary())


def pairs(metadata: list[Entry]) -> list[tuple[str, bytes]]:
    return [(entry.key, entry.value) for entry in forwarded(metadata)]


@pytest.mark.parametrize("key", OWN_KEYS)
def test_credentials_and_what_is_for_this_hop_stay(key: str) -> None:
    assert pairs([(key, "secret"), (f"{key}-bin", b"other"), ("my-key", "1")])[-1:] == [("my-key", b"1")]
    assert key not in dict(pairs([(key, "secret"), ("my-key", "1")]))


def test_repeated_and_binary_entries_keep_their_order_and_bytes() -> None:
    sent: list[Entry] = [("my-id", "2"), ("my-trace-bin", b"\x00\xff"), ("my-id", "1"), ("my-trace-bin", b"")]

    assert pairs(sent) == [("my-id", b"2"), ("my-trace-bin", b"\x00\xff"), ("my-id", b"1"), ("my-trace-bin", b"")]


@given(st.lists(st.tuples(st.just(True), travelling) | st.tuples(st.just(False), staying)))
def test_all_of_a_callers_own_goes_on_in_order_and_nothing_else(sent: list[tuple[bool, Entry]]) -> None:
    goes_on = [
        (key, value if isinstance(value, bytes) else value.encode("ascii")) for goes, (key, value) in sent if goes
    ]

    assert pairs([entry for _, entry in sent]) == goes_on
