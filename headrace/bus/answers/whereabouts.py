"""Which addresses a router may dial: a record must not be able to send answers wherever it likes."""

import fnmatch
import ipaddress
import re
from collections.abc import Sequence

# Nothing else is passed on to be dialled: gRPC would take `unix:/…` for a socket, and `dns://…` for another resolver.
_DIALLABLE = re.compile(r"(?:\[(?P<six>[0-9A-Fa-f:.]+)\]|(?P<host>[A-Za-z0-9_.-]+)):(?P<port>[0-9]{1,5})")
_HIGHEST_PORT = 65_535


class Whereabouts:
    """The configured networks and names. A name matches as a whole; `*` stands for one label."""

    def __init__(self, allowed: Sequence[str]) -> None:
        """Raises ValueError for an entry that is neither a network nor a name."""
        self._networks: list[ipaddress.IPv4Network | ipaddress.IPv6Network] = []
        self._names: list[tuple[str, ...]] = []
        for entry in map(str.strip, allowed):
            if "/" in entry or _address(entry) is not None:
                self._networks.append(ipaddress.ip_network(entry))
            elif entry:
                self._names.append(tuple(entry.lower().rstrip(".").split(".")))
            else:
                raise ValueError("an allowed gateway is a network such as 10.0.0.0/8 or a name such as *.example.org")

    def allows(self, address: str) -> bool:
        """Whether `host:port` is within them, IPv6 in brackets. A name is not resolved: it must be allowed as such."""
        host = _host(address)
        numeric = _address(host)
        if numeric is not None:
            return any(numeric in network for network in self._networks)
        labels = host.lower().removesuffix(".").split(".")
        return all(labels) and any(
            len(labels) == len(name) and all(map(fnmatch.fnmatchcase, labels, name)) for name in self._names
        )

    @staticmethod
    def is_loopback(address: str) -> bool:
        """Whether `host:port` stays on this machine."""
        host = _host(address)
        numeric = _address(host)
        return host == "localhost" if numeric is None else numeric.is_loopback


def _host(address: str) -> str:
    """The host of `host:port`, empty where it is nothing that may be dialled."""
    parts = _DIALLABLE.fullmatch(address)
    if parts is None or not 0 < int(parts["port"]) <= _HIGHEST_PORT:
        return ""
    bracketed = parts["six"]
    if bracketed is not None and not isinstance(_address(bracketed), ipaddress.IPv6Address):
        return ""
    return bracketed or parts["host"]


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
