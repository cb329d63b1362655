"""A record says where its answer goes: only where the operator allows is dialled, however the address is spelled."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.bus.answers.whereabouts import Whereabouts


@pytest.mark.parametrize(
    ("allowed", "address"),
    [
        ("127.0.0.0/8", "127.0.0.1:5000"),
        ("10.1.2.3", "10.1.2.3:1"),
        ("10.0.0.0/8", "10.255.255.255:65535"),
        ("::1", "[::1]:5000"),
        ("fd00::/8", "[fd00::1]:5000"),
        ("FD00::/8", "[FD00:0:0:0:0:0:0:1]:5000"),
        ("localhost", "localhost:5000"),
        ("localhost", "LocalHost:5000"),
        ("Gateway.Example.ORG", "gateway.example.org:5000"),
        ("gateway.example.org.", "gateway.example.org:5000"),
        ("gateway.example.org", "gateway.example.org.:5000"),
        ("*.gateways.svc", "gateway-0.gateways.svc:5000"),
        ("gateway-*.gateways.svc", "gateway-12.gateways.svc:5000"),
        ("*.*.svc", "a.b.svc:5000"),
        (" 10.0.0.0/8 ", "10.0.0.1:1"),
    ],
)
def test_what_is_allowed_may_be_dialled(allowed: str, address: str) -> None:
    assert Whereabouts([allowed]).allows(address)


@pytest.mark.parametrize(
    ("allowed", "address"),
    [
        ("127.0.0.0/8", "127.0.0.1.evil.org:1"),
        ("127.0.0.0/8", "128.0.0.1:1"),
        ("127.0.0.0/8", "[::1]:1"),
        ("127.0.0.0/8", "localhost:1"),  # names are not resolved: who answers for them may change
        ("127.0.0.0/8", "127.1:1"),  # what a C library takes for an address
        ("127.0.0.0/8", "0177.0.0.1:1"),
        ("127.0.0.0/8", "0x7f000001:1"),
        ("127.0.0.0/8", "2130706433:1"),
        ("10.0.0.0/8", "[::ffff:192.168.0.1]:1"),
        ("::1", "[::2]:1"),
        ("localhost", "localhost.evil:1"),
        ("localhost", "evil.localhost:1"),
        ("localhost", "localhost@evil.org:1"),
        ("localhost", "xlocalhost:1"),
        ("*.gateways.svc", "gateways.svc:1"),
        ("*.gateways.svc", "a.b.gateways.svc:1"),
        ("*.gateways.svc", "a.gateways.svc.evil.org:1"),
        ("*.gateways.svc", "a.gatewaysXsvc:1"),
        ("*.gateways.svc", ".gateways.svc:1"),
        ("*.gateways.svc", "evil.org/a.gateways.svc:1"),
        ("*.gateways.svc", "evil.org:1/a.gateways.svc:1"),
        ("*.gateways.svc", "unix:/a.gateways.svc:1"),
        ("*.gateways.svc", "evil%2eorg#.gateways.svc:1"),
        ("*", "unix:/tmp/socket:1"),
        ("*", "dns://evil.org/name:1"),
        ("*", "a,b:1"),
        ("*", "a\n:1"),
        ("*", ":1"),
        ("*.*.*.*", "10.0.0.1:1"),  # an address is no name
        ("*", "[::1]:1"),
        ("gateway", "[gateway]:1"),
        ("::1", "::1:1"),  # without brackets it is another address
        ("127.0.0.1", "[127.0.0.1]:1"),
        ("fe80::/10", "[fe80::1%25eth0/x]:1"),
    ],
)
def test_what_only_looks_allowed_is_refused(allowed: str, address: str) -> None:
    assert not Whereabouts([allowed]).allows(address)


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "127.0.0.1:", "127.0.0.1:x", "127.0.0.1:-1", "127.0.0.1:0", "127.0.0.1:65536", "",
                "127.0.0.1:1 ", "127.0.0.1: 1", "127.0.0.1:+1", "127.0.0.1:\u0661", "127.0.0.1:1\n"]
)  # fmt: skip
def test_an_address_without_a_proper_port_is_refused(address: str) -> None:
    assert not Whereabouts(["127.0.0.0/8"]).allows(address)


@given(st.text(max_size=40), st.integers(1, 65535))
def test_where_nothing_is_allowed_nothing_is(host: str, port: int) -> None:
    assert not Whereabouts([]).allows(f"{host}:{port}")


@given(st.ip_addresses(v=4), st.integers(1, 65535))
def test_an_address_is_allowed_exactly_within_the_network(host: object, port: int) -> None:
    assert Whereabouts(["64.0.0.0/2"]).allows(f"{host}:{port}") == (64 <= int(str(host).split(".")[0]) < 128)


@pytest.mark.parametrize("entry", ["", "  ", "10.0.0.0/33", "10.0.0.1/8", "example.org/8", "/"])
def test_an_entry_that_is_neither_network_nor_name_is_told_at_once(entry: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        Whereabouts(["127.0.0.1", entry])


@pytest.mark.parametrize(
    ("address", "is_loopback"),
    [
        ("127.0.0.1:1", True),
        ("127.255.0.3:1", True),
        ("[::1]:1", True),
        ("localhost:1", True),
        ("10.0.0.1:1", False),
        ("[fd00::1]:1", False),
        ("gateway.example.org:1", False),
        ("localhost.evil:1", False),
        ("127.0.0.1.evil.org:1", False),
    ],
)
def test_only_this_machine_is_loopback(address: str, *, is_loopback: bool) -> None:
    """A secret travels there unencrypted."""
    assert Whereabouts.is_loopback(address) == is_loopback
