"""Usage from meters through a real broker into a real database, by aggregators that are killed again and again."""

import asyncio
import os
import random
import signal
import subprocess
import sys
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from headrace.bus.control import KafkaUsage, Topics, until_own_topics, wait_for_broker
from headrace.bus.protocols import LogUnavailableError, UsageLog
from headrace.bus.settings import KafkaSettings, TopicSettings
from headrace.bus.usage import UsageMeter
from headrace.local import broker as kafka
from headrace.local import leash
from headrace.store.engine import Store
from headrace.store.usage import By, UsageRow, usage_of
from tests.integration.broker_fixture import MortalBroker
from tests.integration.postgres_fixture import PASSWORD, Postgres

SECONDS = 45.0


class Database:
    """Where usage goes."""

    def __init__(self, url: str, folder: Path, password: str | None) -> None:
        self.environment = {"HEADRACE_DATABASE__URL": url}
        if password is not None:
            file = folder / "password"
            file.write_text(password)
            self.environment["HEADRACE_DATABASE__PASSWORD_FILE"] = str(file)
        self.store = Store(url, password=password)
        self.store.upgrade()

    def used(self, tenant: str) -> UsageRow | None:
        rows = self._rows(tenant, [])
        return rows[0] if rows else None

    def by_key_and_model(self, tenant: str) -> set[UsageRow]:
        return set(self._rows(tenant, ["key", "model"]))

    def _rows(self, tenant: str, by: Sequence[By]) -> list[UsageRow]:
        now = datetime.now(UTC)
        with self.store.transaction(read_only=True) as c:
            return usage_of(c, tenant, since=now - timedelta(days=1), until=now + timedelta(days=1), by=by)


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    if request.param == "sqlite":
        made = Database(f"sqlite:///{tmp_path}/headrace.db", tmp_path, None)
    else:
        server: Postgres = request.getfixturevalue("postgres_server")
        made = Database(server.url(server.create()), tmp_path, PASSWORD)
    yield made
    made.store.close()


@contextmanager
def aggregator(broker: str, database: Database, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The process, as `headrace aggregator` starts it."""
    environment = {
        **os.environ,
        **database.environment,
        "HEADRACE_KAFKA__BOOTSTRAP_SERVERS": broker,
        "HEADRACE_AGGREGATOR__ADMIN__HOST": "127.0.0.1",
        "HEADRACE_AGGREGATOR__ADMIN__PORT": "0",
    }
    held = (sys.executable, "-I", "-S", leash.__file__, str(os.getpid()))
    with log.open("ab") as out:
        process = subprocess.Popen(
            [*held, sys.executable, "-P", "-m", "aggregator"],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


class Sources:
    """Processes that use, report, and sometimes miss that the log has what they published; all at a time."""

    def __init__(self, log: UsageLog) -> None:
        self.tenant = f"tenant-{uuid.uuid4().hex}"
        self.used: Counter[tuple[str, str]] = Counter()
        """Calls by key and model."""
        self._log = log
        self._chance = random.Random(11)  # noqa: S311  no secret
        self._changed = asyncio.Condition()
        self._stop = False

    @property
    def calls(self) -> int:
        return self.used.total()

    async def until_used(self, more: int) -> None:
        """Return when so many more calls are reported."""
        wanted = self.calls + more
        async with asyncio.timeout(SECONDS), self._changed:
            await self._changed.wait_for(lambda: self.calls >= wanted)

    def stop(self) -> None:
        """Report what is left, and end."""
        self._stop = True

    async def run(self) -> None:
        async with asyncio.TaskGroup() as running:
            for _ in range(3):
                running.create_task(self._source())

    async def _source(self) -> None:
        meter = UsageMeter(f"gateway/{uuid.uuid4().hex}/1")
        while not self._stop:
            for _ in range(self._chance.randrange(1, 20)):
                key_id, model = self._chance.choice(["", "k"]), self._chance.choice(["simple", "slow"])
                meter.add(
                    self.tenant, model, key_id=key_id, calls=1, request_bytes=10, response_bytes=20, model_micros=30
                )
                self.used[key_id, model] += 1
            try:
                if self._chance.random() < 0.2:
                    for report in meter.close():
                        await self._log.publish(report)  # and the meter does not hear of it
                await meter.flush(self._log)
            except LogUnavailableError:
                continue  # each try takes its time
            async with self._changed:
                self._changed.notify_all()
        await meter.flush(self._log)


async def until_summed(database: Database, tenant: str, least: int) -> None:
    async with asyncio.timeout(SECONDS):
        while (row := await asyncio.to_thread(database.used, tenant)) is None or row.calls < least:  # noqa: ASYNC110  a database tells nobody
            await asyncio.sleep(0.02)


def assert_exact(database: Database, sources: Sources) -> None:
    assert database.by_key_and_model(sources.tenant) == {
        UsageRow(
            calls=calls,
            request_bytes=10 * calls,
            response_bytes=20 * calls,
            model_micros=30 * calls,
            key=key_id,
            model=model,
        )
        for (key_id, model), calls in sources.used.items()
    }


async def test_sums_are_exactly_what_was_used_whatever_is_killed(
    broker: str, database: Database, tmp_path: Path
) -> None:
    """One aggregator after the other is killed while it sums, and sometimes there are two of them."""
    settings = KafkaSettings(bootstrap_servers=broker)
    await until_own_topics(settings, Topics(settings, TopicSettings(), client_id="test"), "test")
    chance = random.Random(7)  # noqa: S311  no secret
    log = tmp_path / "aggregator.log"
    async with KafkaUsage(settings, client_id="test") as usage, asyncio.TaskGroup() as tasks:
        sources = Sources(usage)
        tasks.create_task(sources.run())
        with ExitStack() as one, ExitStack() as two:
            running, other = one, two
            running.enter_context(aggregator(broker, database, log))
            for life in range(4):
                await until_summed(database, sources.tenant, sources.calls)
                if life % 2:
                    other.enter_context(aggregator(broker, database, log))
                    running, other = other, running
                await sources.until_used(chance.randrange(1, 300))
                other.close()  # SIGKILL
                if not life % 2:
                    running.close()
                    running.enter_context(aggregator(broker, database, log))
            sources.stop()
            await until_summed(database, sources.tenant, sources.calls)

    assert_exact(database, sources)


@pytest.fixture
async def mortal(broker_install: kafka.BrokerInstall, tmp_path: Path) -> AsyncIterator[MortalBroker]:
    broker = MortalBroker(broker_install, tmp_path)
    try:
        await broker.start()
        yield broker
    finally:
        await broker.stop()


async def test_a_broker_and_a_database_that_go_away_are_waited_for(
    mortal: MortalBroker, postgres: Postgres, tmp_path: Path
) -> None:
    """One process goes through it all, and nothing is lost, and nothing counts twice."""
    settings = mortal.settings
    await until_own_topics(settings, Topics(settings, TopicSettings(), client_id="test"), "test")
    database = Database(postgres.url(postgres.create()), tmp_path, PASSWORD)
    log = tmp_path / "aggregator.log"
    with aggregator(settings.bootstrap_servers, database, log) as process:
        async with KafkaUsage(settings, client_id="test") as usage, asyncio.TaskGroup() as tasks:
            sources = Sources(usage)
            tasks.create_task(sources.run())
            await sources.until_used(100)
            await until_summed(database, sources.tenant, 1)

            await asyncio.to_thread(postgres.stop)
            await sources.until_used(100)
            await until_said(log, "database_away")
            await mortal.kill()
            await asyncio.to_thread(postgres.start)
            await until_said(log, "usage_awaited")
            await mortal.start()
            await wait_for_broker(settings, "test")
            await sources.until_used(100)
            sources.stop()
            await until_summed(database, sources.tenant, sources.calls)
        assert process.poll() is None

    assert_exact(database, sources)
    database.store.close()
    said = log.read_text()
    assert "usage_gap" not in said
    assert "usage_missing" not in said


async def until_said(log: Path, event: str) -> None:
    async with asyncio.timeout(SECONDS):
        while event not in await asyncio.to_thread(log.read_text):  # noqa: ASYNC110  a file tells nobody
            await asyncio.sleep(0.02)


async def test_an_aggregator_that_is_told_to_stop_ends_at_once_and_in_order(
    broker: str, database: Database, tmp_path: Path
) -> None:
    log = tmp_path / "aggregator.log"
    with aggregator(broker, database, log) as process:
        await until_said(log, "aggregator_started")
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, 30) == 0


async def test_tables_of_another_version_end_it_with_what_to_do(broker: str, tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/headrace.db", tmp_path, None)
    database.store.close()
    database.environment["HEADRACE_DATABASE__URL"] = f"sqlite:///{tmp_path}/empty.db"
    log = tmp_path / "aggregator.log"
    with aggregator(broker, database, log) as process:
        assert await asyncio.to_thread(process.wait, 30) == 2
    assert "headrace database upgrade" in log.read_text()
