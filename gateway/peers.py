"""Where callers are, as gRPC tells it: `ipv4:10.0.0.7:5000`, `ipv6:%5B2001:db8::1%5D:5000`, `unix:`."""

import ipaddress
from urllib.parse import unquote

_IPV6_HOST_BITS = 64


def network_of(peer: str) -> str:
    """Who calls, as far as addresses tell: one host may have every address of its IPv6 network.

    What has no address is the text itself.
    """
    peer = unquote(peer)
    kind, _, rest = peer.partition(":")
    host = rest.rpartition(":")[0].strip("[]") if kind in {"ipv4", "ipv6"} else peer
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((int(address) >> _IPV6_HOST_BITS << _IPV6_HOST_BITS, _IPV6_HOST_BITS)))
    return str(address)
