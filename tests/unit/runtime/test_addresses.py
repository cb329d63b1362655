"""Hosts and ports as one text."""

import pytest

from headrace.runtime.addresses import join_address


@pytest.mark.parametrize(
    ("host", "text"),
    [
        ("127.0.0.1", "127.0.0.1:0"),
        ("gateway.example", "gateway.example:0"),
        ("::1", "[::1]:0"),
        ("[::1]", "[::1]:0"),
        ("fe80::1%eth0", "[fe80::1%eth0]:0"),
    ],
)
def test_an_ipv6_address_stands_in_brackets_once(host: str, text: str) -> None:
    assert join_address(host, 0) == text
