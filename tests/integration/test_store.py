"""The database: one suite on SQLite and on PostgreSQL, each real."""

import asyncio
import sqlite3
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.store import engine
from headrace.store.acts import Act, Actor, last_acts, record
from headrace.store.changes import changes_since
from headrace.store.engine import SchemaError, Store, StoreUnavailableError
from headrace.store.keys import create_key, key, keys_of, set_key_disabled, set_key_expiry
from headrace.store.revisions import current_revision, hold_changes
from headrace.store.schema import acts, metadata, usage
from headrace.store.tenants import (
    AlreadyExistsError,
    UnknownError,
    all_tenants,
    change_tenant,
    create_tenant,
    set_tenant_disabled,
    tenant,
)
from headrace.store.usage import (
    Amounts,
    Batch,
    OffsetMovedError,
    SourceReport,
    Totals,
    UsageKey,
    UsageRow,
    forget_before,
    has_usage,
    next_offset,
    sum_batch,
    summed_sequence,
    totals,
    usage_of,
)
from tests.integration.postgres_fixture import PASSWORD, Postgres

NOW = datetime(2026, 11, 30, 23, 30, tzinfo=UTC)
HOUR = NOW.replace(minute=0)
TOPIC = "headrace.usage"
HASH = "ab" * 32
WRONG = "turbine"


class Undone(Exception):  # noqa: N818  no fault
    """Ends a transaction in its middle."""


@dataclass(frozen=True)
class Place:
    """A database, empty at first."""

    url: str
    password: str | None = None

    def store(self) -> Store:
        return Store(self.url, password=self.password)

    def upgrade(self) -> None:
        store = self.store()
        store.upgrade()
        store.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "sqlite":
        return Place(f"sqlite:///{tmp_path}/headrace.db")
    server: Postgres = request.getfixturevalue("postgres_server")
    return Place(server.url(server.create()), PASSWORD)


@pytest.fixture
def store(place: Place) -> Iterator[Store]:
    made = place.store()
    made.upgrade()
    yield made
    made.close()


# The tables.


def test_a_new_database_gets_its_tables_once(place: Place) -> None:
    store = place.store()
    with pytest.raises(SchemaError, match=r"has no tables yet.*headrace database upgrade"):
        store.check()
    assert store.upgrade() == ["0001", "0002"]
    store.check()
    assert store.upgrade() == []
    store.close()


def test_a_database_that_knows_no_encoding_holds_ours(postgres_server: Postgres) -> None:
    name = postgres_server.create("ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0")
    store = Store(postgres_server.url(name), password=PASSWORD)
    store.upgrade()
    store.check()
    with store.transaction() as c:
        create_tenant(c, "acme", {"models": ["wörter"]}, now=NOW)
    with store.transaction(read_only=True) as c:
        assert [each.grants for each in all_tenants(c)] == [{"models": ["wörter"]}]
    store.close()


def test_two_that_upgrade_at_once_do_it_once(place: Place) -> None:
    stores = [place.store() for _ in range(4)]
    with ThreadPoolExecutor(len(stores)) as threads:
        done = list(threads.map(Store.upgrade, stores))
    assert sorted(done) == [[], [], [], ["0001", "0002"]]
    for store in stores:
        store.check()
        store.close()


class Reluctant(sqlite3.Connection):
    """Refuses to change a file's mode for as long as there are refusals, as SQLite does where two open a new file."""

    refusals: ClassVar[list[int]] = []

    def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
        if self.refusals and "journal_mode" in sql:
            error = sqlite3.OperationalError("database is locked")
            error.sqlite_errorcode = self.refusals.pop()
            raise error
        return super().execute(sql, *parameters)


def test_a_new_file_that_another_process_opens_too_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every process of a stack opens it when it starts, and SQLite does not always wait while a file's mode changes."""
    with closing(sqlite3.connect(tmp_path / "new.db", factory=Reluctant)) as connection:
        monkeypatch.setattr(Reluctant, "refusals", [sqlite3.SQLITE_BUSY, sqlite3.SQLITE_BUSY_RECOVERY])
        engine._write_ahead(connection)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)

        monkeypatch.setattr(Reluctant, "refusals", [sqlite3.SQLITE_BUSY, sqlite3.SQLITE_READONLY])
        with pytest.raises(sqlite3.OperationalError):
            engine._write_ahead(connection)
        assert Reluctant.refusals == [sqlite3.SQLITE_BUSY]

        monkeypatch.setattr(engine, "_BUSY_SECONDS", 0.0)
        monkeypatch.setattr(Reluctant, "refusals", [sqlite3.SQLITE_BUSY] * 10_000)
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            engine._write_ahead(connection)


def test_tables_of_a_newer_version_are_left_alone(store: Store) -> None:
    with store.transaction() as c:
        c.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(SchemaError, match="newer"):
        store.check()
    with pytest.raises(SchemaError, match="newer"):
        store.upgrade()


def test_migrations_lead_to_the_tables_that_the_code_knows(store: Store) -> None:
    with store.transaction() as c:
        context = MigrationContext.configure(c, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []


def test_a_migration_that_fails_leaves_nothing(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    store = place.store()
    with monkeypatch.context() as patched:

        def failing(*_: object, **__: object) -> None:
            raise RuntimeError("in the middle")

        patched.setattr("alembic.op.create_index", failing)
        with pytest.raises(RuntimeError):
            store.upgrade()
    with store.transaction() as c:
        assert sa.inspect(c).get_table_names() == []
    store.close()


def test_tables_of_the_version_before_keep_what_is_in_them(store: Store) -> None:
    with store.transaction() as c:
        create_tenant(c, "acme", {}, now=NOW)
        acts.drop(c)
        c.execute(sa.text("UPDATE alembic_version SET version_num = '0001'"))
    with pytest.raises(SchemaError, match="tables of version 0001"):
        store.check()
    assert store.upgrade() == ["0002"]
    with store.transaction(read_only=True) as c:
        assert ([each.name for each in all_tenants(c)], last_acts(c, limit=9)) == (["acme"], [])


def test_a_file_is_its_owners_alone(tmp_path: Path) -> None:
    store = Store(f"sqlite:///{tmp_path}/headrace.db")
    store.upgrade()
    assert [oct(path.stat().st_mode & 0o777) for path in tmp_path.iterdir()] == ["0o600"] * len(
        list(tmp_path.iterdir())
    )
    store.close()


# Tenants and keys.


def test_a_tenant_is_kept_with_what_it_is_granted(store: Store) -> None:
    grants = {"models": ["größe"], "limits": {"calls_per_second": 0.5}}
    with store.transaction() as c:
        made = create_tenant(c, "acme", grants, now=NOW)
    with store.transaction(read_only=True) as c:
        assert tenant(c, "acme") == made
        assert tenant(c, "other") is None
    later = NOW + timedelta(hours=1)
    with store.transaction() as c:
        change_tenant(c, "acme", {"models": []}, now=later)
        set_tenant_disabled(c, "acme", True, now=later)
        create_tenant(c, "aaa", {}, now=NOW)
    with store.transaction(read_only=True) as c:
        assert all_tenants(c)[1] == replace(made, grants={"models": []}, disabled=True, changed_at=later)


def test_what_is_there_already_or_not_at_all_is_told(store: Store) -> None:
    with store.transaction() as c:
        create_tenant(c, "acme", {}, now=NOW)
        create_key(c, key_id="k", tenant="acme", secret_sha256=HASH, roles=(), now=NOW)
        with pytest.raises(AlreadyExistsError):
            create_tenant(c, "acme", {}, now=NOW)
        with pytest.raises(AlreadyExistsError):
            create_key(c, key_id="k", tenant="other", secret_sha256=HASH, roles=(), now=NOW)
        with pytest.raises(UnknownError):
            change_tenant(c, "other", {}, now=NOW)
        with pytest.raises(UnknownError):
            set_key_disabled(c, "other", True, now=NOW)
    with store.transaction(read_only=True) as c:
        assert [each.tenant for each in keys_of(c)] == ["acme"]


def test_a_key_is_kept_with_its_moments(store: Store) -> None:
    ends = datetime(2027, 3, 28, 3, 30, 1, 5, tzinfo=UTC)
    with store.transaction() as c:
        create_key(
            c, key_id="k", tenant="acme", secret_sha256=HASH, roles=("admin",), not_before=NOW, expires=ends, now=NOW
        )
        create_key(c, key_id="j", tenant="other", secret_sha256=HASH, roles=(), now=NOW)
    with store.transaction() as c:
        found = key(c, "k")
        assert found is not None
        assert (found.not_before, found.expires, found.roles, found.last_used_at) == (NOW, ends, ("admin",), None)
        set_key_expiry(c, "k", NOW, now=NOW)
    with store.transaction(read_only=True) as c:
        assert [each.expires for each in keys_of(c, "acme")] == [NOW]


# Changes.


def test_a_reader_is_told_what_changed_since(store: Store) -> None:
    with store.transaction() as c:
        create_tenant(c, "acme", {}, now=NOW)
        create_key(c, key_id="k", tenant="acme", secret_sha256=HASH, roles=(), now=NOW)
    with store.transaction(read_only=True) as c:
        everything = changes_since(c, -1)
    assert ([each.name for each in everything.tenants], [each.id for each in everything.keys]) == (["acme"], ["k"])
    with store.transaction() as c:
        set_key_disabled(c, "k", True, now=NOW)
    with store.transaction(read_only=True) as c:
        since = changes_since(c, everything.revision)
        assert (since.tenants, [each.disabled for each in since.keys]) == ([], [True])
        assert changes_since(c, since.revision).keys == []


def test_who_has_seen_a_revision_has_seen_all_up_to_it_however_many_write(place: Place) -> None:
    place.upgrade()
    seen: set[str] = set()
    revision = 0
    stop = threading.Event()

    def write(number: int) -> None:
        store = place.store()
        for turn in range(10):
            with store.transaction() as c:
                create_tenant(c, f"t{number}-{turn}", {}, now=NOW)
        store.close()

    def read() -> None:
        nonlocal revision
        store = place.store()
        while True:
            last = stop.is_set()
            with store.transaction(read_only=True) as c:
                since = changes_since(c, revision)
            seen.update(each.name for each in since.tenants)
            revision = since.revision
            if last:
                break
        store.close()

    with ThreadPoolExecutor(4) as threads:
        reader = threads.submit(read)
        for done in [threads.submit(write, number) for number in range(3)]:
            done.result()
        stop.set()
        reader.result()
    assert len(seen) == 30


def test_a_change_that_was_undone_takes_no_revision(store: Store) -> None:
    with suppress(Undone), store.transaction() as c:
        create_tenant(c, "acme", {}, now=NOW)
        raise Undone
    with store.transaction(read_only=True) as c:
        assert (current_revision(c), all_tenants(c)) == (0, [])


# Acts.


def test_an_act_is_kept_with_its_change_or_neither(store: Store) -> None:
    with store.transaction() as c:
        create_tenant(c, "acme", {}, now=NOW)
        record(c, "tenants create", by=Actor("ann", "desk"), tenant="acme", detail={"grants": {}}, now=NOW)
    with suppress(Undone), store.transaction() as c:
        set_tenant_disabled(c, "acme", True, now=NOW)
        record(c, "tenants disable", by=Actor("ann", "desk"), tenant="acme", now=NOW)
        raise Undone
    with store.transaction(read_only=True) as c:
        assert last_acts(c, limit=9) == [
            Act(
                revision=1,
                at=NOW,
                os_user="ann",
                host="desk",
                act="tenants create",
                tenant="acme",
                key=None,
                detail={"grants": {}},
            )
        ]


def test_acts_are_told_in_their_order_from_a_moment_on(store: Store) -> None:
    for number in range(4):
        with store.transaction() as c:
            at = NOW + timedelta(hours=number)
            create_tenant(c, f"t{number}", {}, now=at)
            record(c, "tenants create", by=Actor("ann", "desk"), tenant=f"t{number}", now=at)
    with store.transaction(read_only=True) as c:
        assert [each.tenant for each in last_acts(c, limit=2)] == ["t2", "t3"]
        assert [each.tenant for each in last_acts(c, since=NOW + timedelta(hours=1), limit=9)] == ["t1", "t2", "t3"]


@pytest.mark.parametrize("change", [acts.delete(), acts.update().values(os_user="bob")])
def test_an_act_is_neither_changed_nor_deleted(store: Store, change: sa.Delete | sa.Update) -> None:
    with store.transaction() as c:
        create_tenant(c, "acme", {}, now=NOW)
        record(c, "tenants create", by=Actor("ann", "desk"), tenant="acme", now=NOW)
    with pytest.raises(StoreUnavailableError, match="acts are added only"), store.transaction() as c:
        c.execute(change)
    with store.transaction(read_only=True) as c:
        assert [each.os_user for each in last_acts(c, limit=9)] == ["ann"]


# Usage.


def report(
    sequence: int, calls: int = 1, *, source: str = "gateway/a/1", hour: datetime = HOUR, model: str = "simple"
) -> SourceReport:
    amounts = Amounts(calls=calls, request_bytes=10 * calls, response_bytes=calls, model_micros=100 * calls)
    return SourceReport(source, sequence, {UsageKey(hour, "acme", "k", model): amounts}, {"k": hour})


def summed(store: Store, after: int | None, following: int, *reports: SourceReport) -> int:
    with store.transaction() as c:
        return sum_batch(c, Batch(TOPIC, 0, after, following, reports), now=NOW)


def calls_of(store: Store) -> int:
    with store.transaction(read_only=True) as c:
        rows = usage_of(c, "acme", since=HOUR - timedelta(days=400), until=HOUR + timedelta(days=400), by=[])
    return rows[0].calls if rows else 0


def test_reports_are_summed_once(store: Store) -> None:
    assert summed(store, None, 2, report(1, 3), report(2, 4)) == 2
    assert summed(store, 2, 5, report(2, 4), report(3, 5), report(3, 5)) == 1
    assert calls_of(store) == 12
    with store.transaction(read_only=True) as c:
        assert (summed_sequence(c, "gateway/a/1"), summed_sequence(c, "gateway/b/1")) == (3, 0)
        assert next_offset(c, TOPIC, 0) == 5


def test_of_two_who_sum_the_same_one_is_told(store: Store) -> None:
    summed(store, None, 2, report(1))
    for after in (None, 0, 1):
        with pytest.raises(OffsetMovedError):
            summed(store, after, 3, report(2))
    assert calls_of(store) == 1


def test_two_at_once_sum_everything_once(place: Place) -> None:
    place.upgrade()
    moved = Counter[int]()

    def work(number: int) -> None:
        store = place.store()
        done = 0
        while done < 20 and moved[number] < 1000:
            with store.transaction(read_only=True) as c:
                at = next_offset(c, TOPIC, 0)
            done = at or 0
            if done < 20:
                try:
                    summed(store, at, done + 1, report(done + 1))
                except OffsetMovedError:
                    moved[number] += 1
        store.close()

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(work, range(2)))
    store = place.store()
    assert calls_of(store) == 20
    store.close()


def test_a_batch_that_ends_in_the_middle_leaves_nothing(store: Store) -> None:
    summed(store, None, 1, report(1))
    with suppress(Undone), store.transaction() as c:
        sum_batch(c, Batch(TOPIC, 0, 1, 2, [report(2)]), now=NOW)
        raise Undone
    assert calls_of(store) == 1
    assert summed(store, 1, 2, report(2)) == 1


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 3), st.booleans()), max_size=6), max_size=5))
def test_whatever_comes_twice_is_summed_once(place: Place, batches: list[list[tuple[str, int, bool]]]) -> None:
    """Sources report in order, and any report may be there again later; each has as many calls as its number."""
    store = place.store()
    store.upgrade()
    with store.transaction() as c:
        for table in metadata.sorted_tables:
            if table.name.startswith("usage"):
                c.execute(table.delete())
    newest: Counter[str] = Counter()
    after = None
    for number, batch in enumerate(batches, 1):
        reports = []
        for source, back, again in batch:
            if not again or not newest[source]:
                newest[source] += 1
            sequence = newest[source] if not again else max(1, newest[source] - back)
            reports.append(report(sequence, sequence, source=source))
        summed(store, after, number, *reports)
        after = number
    assert calls_of(store) == sum(most * (most + 1) // 2 for most in newest.values())
    store.close()


def test_totals_are_by_day_and_month_of_utc(store: Store) -> None:
    next_day = HOUR + timedelta(hours=1)
    assert next_day.day == 1
    summed(store, None, 1, report(1, 2), report(2, 3, hour=next_day), report(3, 4, hour=HOUR - timedelta(days=1)))
    with store.transaction(read_only=True) as c:
        found = totals(c, ["2026-11-29", "2026-11-30", "2026-11", "2026-12-01", "2026-12"], ["acme", "nobody"])
    assert {period: each.calls for (period, _), each in found.items()} == {
        "2026-11-29": 4,
        "2026-11-30": 2,
        "2026-11": 6,
        "2026-12-01": 3,
        "2026-12": 3,
    }
    assert found["2026-12", "acme"] == Totals(calls=3, bytes=33, model_micros=300)


def test_usage_is_told_apart_by_what_is_asked_for(store: Store) -> None:
    hours = [HOUR, HOUR - timedelta(hours=1)]
    summed(
        store,
        None,
        1,
        *(report(at, at, hour=hours[at % 2], model=model) for at, model in enumerate(["b", "a", "b"], 1)),
    )
    span = {"since": hours[1], "until": HOUR + timedelta(hours=1)}
    with store.transaction(read_only=True) as c:
        by_model = usage_of(c, "acme", by=["model"], **span)
        assert [(row.model, row.calls, row.hour) for row in by_model] == [("a", 2, None), ("b", 4, None)]
        by_hour = usage_of(c, "acme", by=["hour", "key"], **span)
        assert [(row.hour, row.key, row.calls) for row in by_hour] == [(hours[1], "k", 4), (hours[0], "k", 2)]
        assert usage_of(c, "acme", by=["day"], **span) == [
            UsageRow(calls=6, request_bytes=60, response_bytes=6, model_micros=600, day="2026-11-30")
        ]
        assert usage_of(c, "acme", by=["model"], since=HOUR, until=HOUR) == []
        assert usage_of(c, "nobody", by=[], **span) == []


def test_a_tenant_with_usage_is_told_from_one_without(store: Store) -> None:
    summed(store, None, 1, report(1))
    with store.transaction(read_only=True) as c:
        assert (has_usage(c, "acme"), has_usage(c, "nobody")) == (True, False)


def test_many_kinds_of_usage_go_into_one_batch(store: Store) -> None:
    amounts = {UsageKey(HOUR, f"t{number}", "", "simple"): Amounts(calls=1) for number in range(1700)}
    assert summed(store, None, 1, SourceReport("s", 1, amounts)) == 1
    assert summed(store, 1, 2, SourceReport("s", 2, amounts)) == 1
    with store.transaction(read_only=True) as c:
        assert c.execute(sa.select(sa.func.sum(usage.c.calls), sa.func.count())).one() == (3400, 1700)
        assert len(totals(c, ["2026-11"], [f"t{number}" for number in range(1700)])) == 1700


def test_a_keys_last_use_only_goes_forward(store: Store) -> None:
    with store.transaction() as c:
        create_key(c, key_id="k", tenant="acme", secret_sha256=HASH, roles=(), now=NOW)
        before = current_revision(c)
    summed(store, None, 1, report(1, hour=HOUR))
    summed(store, 1, 2, report(2, hour=HOUR - timedelta(hours=5)))
    with store.transaction(read_only=True) as c:
        found = key(c, "k")
        assert found is not None
        assert found.last_used_at == HOUR
        assert current_revision(c) == before  # no gateway has to read anything


def test_old_usage_is_forgotten_a_day_at_a_time(store: Store) -> None:
    for number in range(3):
        summed(store, number or None, number + 1, report(number + 1, hour=HOUR - timedelta(days=number)))
    forgotten = []
    for _ in range(3):
        with store.transaction() as c:
            forgotten.append(forget_before(c, HOUR))
    assert forgotten == [1, 1, 0]
    assert calls_of(store) == 1


# When it is away.


async def test_a_server_that_goes_away_is_told_within_the_deadline_and_used_again_when_it_is_back(
    postgres: Postgres,
) -> None:
    async with Store(postgres.url(postgres.create()), password=PASSWORD) as store:
        await asyncio.to_thread(store.upgrade)
        assert await store.run(current_revision) == 0
        postgres.stop()
        with pytest.raises(StoreUnavailableError) as away:
            await store.run(current_revision)
        assert PASSWORD not in str(away.value)
        assert "does not answer" in str(away.value)
        postgres.start()
        assert await store.run(current_revision) == 0


async def test_a_wrong_password_is_told_and_not_repeated(postgres_server: Postgres) -> None:
    async with Store(postgres_server.url("postgres"), password=WRONG) as store:
        with pytest.raises(StoreUnavailableError) as refused:
            await store.run(current_revision)
    assert "refuses: " in str(refused.value)
    assert "password authentication failed" in str(refused.value)
    assert WRONG not in str(refused.value)


@pytest.fixture
async def locked(place: Place) -> AsyncIterator[Store]:
    """A database whose tenants somebody else holds."""
    other = place.store()
    other.upgrade()
    with other.transaction() as c:
        create_tenant(c, "acme", {}, now=NOW)
        store = place.store()
        yield store
    await asyncio.to_thread(store.close)
    other.close()


async def test_what_takes_too_long_is_given_up(locked: Store) -> None:
    def work(c: sa.Connection) -> None:
        create_tenant(c, "other", {}, now=NOW)

    with pytest.raises(StoreUnavailableError, match=r"within 0\.1 s"):
        await locked.run(work, seconds=0.1)


async def test_who_reads_waits_for_nobody_who_writes(locked: Store) -> None:
    assert await locked.run(current_revision, read_only=True) == 0


def test_who_only_looks_makes_no_file(tmp_path: Path) -> None:
    with (
        closing(Store(f"sqlite:///{tmp_path}/headrace.db")) as store,
        pytest.raises(SchemaError, match="no tables yet"),
    ):
        store.check()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailableError, match="No such file"):
        Store(f"sqlite:///{tmp_path}/none/headrace.db").check()


def test_who_changes_what_it_has_read_loses_no_change_of_another(place: Place, store: Store) -> None:
    with store.transaction() as c:
        create_tenant(c, "a", {"number": 0}, now=NOW)

    def add_one(_: int) -> None:
        with closing(place.store()) as own, own.transaction() as c:
            hold_changes(c)
            known = tenant(c, "a")
            assert known is not None
            change_tenant(c, "a", {"number": int(str(known.grants["number"])) + 1}, now=NOW)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(add_one, range(20)))

    with store.transaction(read_only=True) as c:
        known = tenant(c, "a")
    assert known is not None
    assert known.grants == {"number": 20}
