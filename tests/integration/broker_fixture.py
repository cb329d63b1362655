"""A real Apache Kafka for tests: the broker of the local stack, or one that already runs (`--kafka=host:port`)."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from headrace.bus.settings import KafkaSettings
from headrace.local import broker as kafka
from headrace.local.jars import JarsError, fetch_jars
from headrace.local.java import NoJavaError, find_java
from headrace.local.paths import cache_dir
from headrace.local.ports import FreePorts
from headrace.local.start_cache import StartCacheError, prepare_start_cache
from tests.parts import missing

START_SECONDS = 60
STOP_SECONDS = 20
MEMBER_SECONDS = 45
"""After so long a silence the shared broker takes a member of a group for dead.

A test machine may stand still for longer than the 6 s of our own brokers: what was not committed would be read twice.
"""


@pytest.fixture(scope="session")
def broker_install() -> kafka.BrokerInstall:
    """Java and the broker's jars; fetched by the first test run on a machine, which prepares their quick start too."""
    try:
        install = kafka.BrokerInstall(java=find_java(), jars=fetch_jars(cache_dir()))
    except (NoJavaError, JarsError) as exc:
        missing("Apache Kafka", f"{exc}; the tests that need no broker of their own take one with --kafka=HOST:PORT")
    # Some twenty brokers start in a whole run: without it each takes seconds more. Aside for the reason given below.
    with suppress(StartCacheError), ThreadPoolExecutor(1) as aside:
        aside.submit(prepare_start_cache, install).result()
    return install


@pytest.fixture(scope="session")
def broker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The `host:port` of a broker that all tests of the session share: name topics and groups uniquely."""
    where = str(request.config.getoption("--kafka", "embedded"))
    if where != "embedded":
        yield where
        return
    install: kafka.BrokerInstall = request.getfixturevalue("broker_install")
    patient = {"group.consumer.session.timeout.ms": str(MEMBER_SECONDS * 1000)}
    with running_broker(install, tmp_path_factory.mktemp("kafka"), more=patient) as address:
        yield address


@contextmanager
def running_broker(
    install: kafka.BrokerInstall, home: Path, *, sasl: kafka.Sasl | None = None, more: Mapping[str, str] | None = None
) -> Iterator[str]:
    """A broker of one's own, with its data in `home`, for tests that stop it, kill it or ask for a login.

    `more` are settings in place of ours.
    """
    ports = FreePorts("127.0.0.1")
    port = ports.take()
    kafka.prepare_storage(install, home, port=port, controller_port=ports.take(), sasl=sasl)
    with (home / "server.properties").open("a", encoding="utf-8") as properties:
        properties.writelines(f"{name}={value}\n" for name, value in (more or {}).items())  # the last one counts
    with started_broker(install, home, port):
        yield f"127.0.0.1:{port}"


@contextmanager
def started_broker(install: kafka.BrokerInstall, home: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """Start the broker whose storage is prepared; it serves when this is entered, and is gone when it is left."""
    program = kafka.program(install, home)
    log = home / "broker.log"
    # The leash ends the broker even when the test run itself is killed.
    leash = (sys.executable, "-I", "-S", str(Path(kafka.__file__).with_name("leash.py")), str(os.getpid()))
    with log.open("ab") as out:
        process = subprocess.Popen(
            [*leash, *program.argv], cwd=program.cwd, stdin=subprocess.DEVNULL, stdout=out, stderr=out
        )
    try:
        _wait_until_it_answers(process, port, log)
        yield process
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        finally:
            process.kill()
            process.wait()


class MortalBroker:
    """A broker of the test's own, to be killed without notice and started again with its data."""

    def __init__(self, install: kafka.BrokerInstall, home: Path) -> None:
        ports = FreePorts("127.0.0.1")
        self._install, self._home, self._port = install, home, ports.take()
        kafka.prepare_storage(install, home, port=self._port, controller_port=ports.take(), sasl=None)
        self._owned = AsyncExitStack()
        self.settings = KafkaSettings(bootstrap_servers=f"127.0.0.1:{self._port}")

    async def start(self) -> None:
        running = started_broker(self._install, self._home, self._port)
        self._process = await asyncio.to_thread(running.__enter__)
        self._owned.push_async_callback(asyncio.to_thread, running.__exit__, None, None, None)

    async def kill(self) -> None:
        self._process.kill()
        await asyncio.to_thread(self._process.wait)

    async def stop(self) -> None:
        await self._owned.aclose()


def _wait_until_it_answers(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    # A thread of its own: asyncio.run() here would take the event loop of pytest-asyncio away.
    with ThreadPoolExecutor(1) as aside:
        while not aside.submit(asyncio.run, kafka.answers("127.0.0.1", port)).result():
            assert process.poll() is None, f"the broker died at start: {log.read_text()[-2000:]}"
            assert time.monotonic() < deadline, f"no broker after {START_SECONDS} s: {log.read_text()[-2000:]}"
            time.sleep(0.05)
