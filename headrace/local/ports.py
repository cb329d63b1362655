"""Which TCP ports are free, and who holds one that is not."""

import errno
import random
import socket
from contextlib import closing
from pathlib import Path

# Below the range from which systems take ports for outgoing connections: a port that is free now stays free until the
# child that it is meant for has bound it, unless another server asks for the very same one.
CHOSEN_PORTS = range(20_000, 32_000)
TRIES = 200
# Not the generator that a program may seed: two that are seeded alike would want the same ports at the same time.
_random = random.SystemRandom()


class PortsError(Exception):
    """A port can't be had; the text names it."""


def is_free(host: str, port: int) -> bool:
    """Whether a server could listen there now. Raises PortsError where the address itself is unusable."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with closing(socket.socket(family, kind, protocol)) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            # A bind alone succeeds beside a listener that shares its port; listening does not.
            probe.listen(1)
    except OSError as exc:
        if exc.errno == errno.EADDRINUSE:
            return False
        raise PortsError(f"can't listen on {host}:{port}: {exc.strerror or exc}") from None
    return True


class FreePorts:
    """Hands out ports that are free on one host, and never one that a living process has had from here."""

    def __init__(self, host: str, *, taken: frozenset[int] = frozenset()) -> None:
        self._host = host
        self._taken = set(taken)

    def take(self) -> int:
        """A free port. Raises PortsError where none is found."""
        for port in _random.sample(CHOSEN_PORTS, TRIES):
            if port not in self._taken and is_free(self._host, port) and _claim(port):
                self._taken.add(port)
                return port
        raise PortsError(f"found no free port between {CHOSEN_PORTS.start} and {CHOSEN_PORTS.stop} on {self._host}")


def _claim(port: int) -> bool:
    """Keep a port from every other `take` on this machine until this process ends; False where another one keeps it.

    A child that is restarted leaves its port free for seconds, in which another stack may look for one.
    """
    try:
        claim = socket.socket(socket.AF_UNIX)
        try:
            claim.bind(f"\0headrace-port-{port}")  # a name without a file: it goes with whoever holds it
        except OSError:
            claim.close()
            raise
    except OSError as exc:
        return exc.errno != errno.EADDRINUSE  # where nothing can be kept, the port is as free as it looked
    claim.detach()  # open for as long as the process lives
    return True


def holder(port: int) -> str | None:
    """Who listens on a port, as `name (pid N)`; None where that can't be seen."""
    inodes = {
        fields[9]
        for table in ("/proc/net/tcp", "/proc/net/tcp6")
        for fields in _rows(table)
        if fields[3] == "0A" and int(fields[1].rsplit(":", 1)[1], 16) == port
    }
    sockets = {f"socket:[{inode}]" for inode in inodes}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if any(str(fd.readlink()) in sockets for fd in (process / "fd").iterdir()):
                return f"{(process / 'comm').read_text().strip()} (pid {process.name})"
        except OSError:
            continue  # gone meanwhile, or another user's
    return None


def _rows(table: str) -> list[list[str]]:
    try:
        return [line.split() for line in Path(table).read_text().splitlines()[1:]]
    except OSError:
        return []
