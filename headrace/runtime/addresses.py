"""Hosts and ports as one text."""


def join_address(host: str, port: int) -> str:
    """`HOST:PORT`, with brackets where the host is an IPv6 address that has none."""
    return f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"
