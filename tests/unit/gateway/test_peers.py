"""Where callers are, as far as addresses tell."""

import pytest

from gateway.peers import network_of


@pytest.mark.parametrize(
    ("peer", "network"),
    [
        ("ipv4:10.0.0.7:5000", "10.0.0.7"),
        ("ipv6:[2001:db8:0:1:a:b:c:d]:5000", "2001:db8:0:1::/64"),
        ("ipv6:%5B2001:db8:0:1:ffff::2%5D:38022", "2001:db8:0:1::/64"),
        ("ipv6:%5B::1%5D:38022", "::/64"),
        ("ipv6:%5B::ffff:10.0.0.7%5D:38022", "10.0.0.7"),
        ("ipv6:%5Bfe80::1%25eth0%5D:1", "fe80::/64"),
        ("unix:", "unix:"),
        ("unix:/run/x", "unix:/run/x"),
        ("", ""),
        ("nonsense", "nonsense"),
    ],
)
def test_a_network_is_what_one_host_may_have(peer: str, network: str) -> None:
    """As gRPC writes addresses, brackets escaped, and as people do."""
    assert network_of(peer) == network
