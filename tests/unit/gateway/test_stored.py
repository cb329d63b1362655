"""Tenants and keys from a database: what is in force, how soon, and what holds while it is away."""

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from gateway.errors import KeyExpired, KeysUnavailable
from gateway.identity import Caller
from gateway.stored import LOOK_SECONDS, StoredAccess, sums_of
from headrace.runtime import reload
from headrace.runtime.lifecycle import Unstartable
from headrace.store.engine import Store, StoreUnavailableError
from headrace.store.keys import create_key, set_key_disabled, set_key_expiry
from headrace.store.revisions import next_revision
from headrace.store.tenants import change_tenant, create_tenant, set_tenant_disabled
from headrace.store.usage import Amounts, Batch, SourceReport, UsageKey, sum_batch

NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)
SECRET = hashlib.sha256(b"secret").hexdigest()


class Bench:
    """A database of its own, and who reads it."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.now = NOW
        self.told: list[str] = []
        self.stored = StoredAccess(
            store,
            keys_changed=lambda: self.told.append("keys"),
            tenants_changed=lambda: self.told.append("tenants"),
            clock=lambda: self.now.timestamp(),  # noqa: PLW0108  the time then
        )

    def key(self, key_id: str = "k", tenant: str = "acme", roles: tuple[str, ...] = ()) -> None:
        with self.store.transaction() as c:
            create_key(c, key_id=key_id, tenant=tenant, secret_sha256=SECRET, roles=roles, now=NOW)


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    store = Store(f"sqlite:///{tmp_path}/headrace.db")
    store.upgrade()
    async with store:
        yield Bench(store)


async def test_a_key_is_known_once_it_was_read(bench: Bench) -> None:
    bench.key(roles=("admin",))
    with pytest.raises(KeysUnavailable):
        bench.stored("hr_k_secret")
    assert not bench.stored.ready
    await bench.stored.look()
    assert bench.stored.ready
    assert bench.stored("hr_k_secret") == Caller("acme", "k", frozenset({"admin"}))
    assert bench.stored("hr_k_wrong") is None
    assert bench.stored("hr_other_secret") is None
    assert bench.told == ["keys", "tenants"]


async def test_what_is_no_key_is_left_to_others_also_before_the_database_was_read(bench: Bench) -> None:
    assert bench.stored("eyJ.a.b") is None


async def test_a_disabled_key_is_refused_at_the_next_look(bench: Bench) -> None:
    bench.key()
    await bench.stored.look()
    with bench.store.transaction() as c:
        set_key_disabled(c, "k", True, now=NOW)
    bench.told.clear()
    await bench.stored.look()
    assert bench.stored("hr_k_secret") is None
    assert bench.told == ["keys"]


async def test_a_key_that_expired_is_refused_without_a_look(bench: Bench) -> None:
    bench.key()
    with bench.store.transaction() as c:
        set_key_expiry(c, "k", NOW + timedelta(seconds=5), now=NOW)
    await bench.stored.look()
    assert bench.stored("hr_k_secret") is not None
    bench.now += timedelta(seconds=5)
    with pytest.raises(KeyExpired):
        bench.stored("hr_k_secret")


async def test_a_tenant_comes_changes_and_goes(bench: Bench) -> None:
    await bench.stored.look()
    with bench.store.transaction() as c:
        create_tenant(c, "acme", {"models": ["simple"]}, now=NOW)
    await bench.stored.look()
    assert bench.stored.tenants["acme"].models == ("simple",)
    with bench.store.transaction() as c:
        change_tenant(c, "acme", {"models": ["*"], "limits": {"concurrency": 3}}, now=NOW)
    await bench.stored.look()
    assert bench.stored.tenants["acme"].limits.concurrency == 3
    with bench.store.transaction() as c:
        set_tenant_disabled(c, "acme", True, now=NOW)
    await bench.stored.look()
    assert bench.stored.tenants == {}


async def test_a_tenant_that_cannot_be_understood_is_granted_nothing_and_told(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    with bench.store.transaction() as c:
        create_tenant(c, "acme", {"models": ["simple"]}, now=NOW)
        create_tenant(c, "other", {"models": ["*"]}, now=NOW)
    await bench.stored.look()
    with bench.store.transaction() as c:
        change_tenant(c, "acme", {"models": ["simple"], "powers": "all"}, now=NOW)
    with caplog.at_level(logging.ERROR):
        await bench.stored.look()
    assert set(bench.stored.tenants) == {"other"}
    assert "powers: no such field" in caplog.text


def by_hand(store: Store, column: str, value: str) -> None:
    """Write a field of the key `k` as nobody but SQL does."""
    with store.transaction() as c:
        statement = f"UPDATE keys SET {column} = :value, revision = :revision WHERE id = 'k'"  # noqa: S608  our names
        c.execute(sa.text(statement), {"value": value, "revision": next_revision(c)})


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("secret_sha256", "no hex"),
        ("secret_sha256", SECRET[:-2]),
        ("roles", "null"),
        ("roles", '"admin"'),
        ("roles", '{"admin": true}'),
        ("roles", "[null]"),
        ("roles", '[["admin"]]'),
        ("roles", '["root"]'),
    ],
)
async def test_a_key_that_cannot_be_understood_is_not_taken_and_told(
    bench: Bench, caplog: pytest.LogCaptureFixture, column: str, value: str
) -> None:
    """Also where it was known before; the others go on."""
    bench.key()
    bench.key("other")
    await bench.stored.look()
    by_hand(bench.store, column, value)
    with caplog.at_level(logging.ERROR):
        await bench.stored.look()
    assert bench.stored("hr_k_secret") is None
    assert bench.stored("hr_other_secret") is not None
    assert [(vars(record)["event"], vars(record)["key_id"]) for record in caplog.records] == [("key_rejected", "k")]
    assert bench.told == ["keys", "tenants", "keys"]


@pytest.mark.parametrize(("column", "value"), [("expires", "tomorrow"), ("roles", "no JSON")])
async def test_what_the_database_itself_cannot_read_leaves_what_was_read(
    bench: Bench, caplog: pytest.LogCaptureFixture, column: str, value: str
) -> None:
    bench.key()
    await bench.stored.look()
    by_hand(bench.store, column, value)
    await bench.stored.look()
    await bench.stored.look()
    assert bench.stored("hr_k_secret") is not None
    assert [vars(record)["event"] for record in caplog.records] == ["database_away"]


async def test_changes_are_looked_for_more_than_once_a_second(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 2:
            raise asyncio.CancelledError

    bench.key()
    monkeypatch.setattr(asyncio, "sleep", sleep)
    with pytest.raises(asyncio.CancelledError):
        await bench.stored.keep()
    assert slept == [LOOK_SECONDS, LOOK_SECONDS]
    assert bench.stored("hr_k_secret") is not None
    assert max(LOOK_SECONDS, reload.LOOK_SECONDS) < 1


async def test_nothing_is_read_again_where_nothing_changed(bench: Bench) -> None:
    bench.key()
    await bench.stored.look()
    bench.told.clear()
    await bench.stored.look()
    assert bench.told == []


async def test_what_was_read_stands_while_the_database_is_away(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bench.key()
    await bench.stored.look()

    async def away(*_: object, **__: object) -> None:
        raise StoreUnavailableError("it is away")

    with monkeypatch.context() as patched, caplog.at_level(logging.INFO):
        patched.setattr(bench.store, "run", away)
        await bench.stored.look()
        await bench.stored.look()
        assert bench.stored("hr_k_secret") is not None
    with caplog.at_level(logging.INFO):
        await bench.stored.look()
    assert [record.event for record in caplog.records] == ["database_away", "database_back"]  # type: ignore[attr-defined]


async def test_another_database_in_its_place_is_read_as_a_whole(bench: Bench, tmp_path: Path) -> None:
    bench.key("old")
    bench.key("older")
    await bench.stored.look()
    other = Store(f"sqlite:///{tmp_path}/other.db")
    other.upgrade()
    async with other:
        with other.transaction() as c:
            create_key(c, key_id="new", tenant="acme", secret_sha256=SECRET, roles=(), now=NOW)
        bench.stored._store = other
        await bench.stored.look()
    assert bench.stored("hr_new_secret") is not None
    assert bench.stored("hr_old_secret") is None


async def test_tables_of_another_version_end_the_process(tmp_path: Path) -> None:
    async with Store(f"sqlite:///{tmp_path}/empty.db") as store:
        with pytest.raises(Unstartable, match="headrace database upgrade"):
            await Bench(store).stored.look()


async def test_sums_are_those_of_the_tenants_and_periods_that_are_asked_for(bench: Bench) -> None:
    hour = NOW.replace(hour=10)
    amounts = {
        UsageKey(hour, tenant, "k", "simple"): Amounts(calls=calls, request_bytes=5, response_bytes=6, model_micros=7)
        for tenant, calls in (("acme", 3), ("other", 9))
    }
    report = SourceReport("gateway/a/1", 4, amounts, {"k": NOW})
    with bench.store.transaction() as c:
        sum_batch(c, Batch("headrace.usage", 0, None, 1, [report]), now=NOW)
    sums = await sums_of(bench.store, "gateway/a/1")(("2026-11-26", "2026-11"), ["acme", "nobody"])
    assert sums.sequence == 4
    assert sums.used == {("2026-11-26", "acme"): (3, 11, 7), ("2026-11", "acme"): (3, 11, 7)}
    assert (await sums_of(bench.store, "gateway/b/1")(("2026-11",), [])).sequence == 0
