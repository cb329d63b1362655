"""What was used: functions over a transaction.

A batch of reports is summed as a whole or not at all, with the place in the topic that follows it. So who sums can be
killed at any moment, and two of them can't sum the same.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import islice
from typing import Any, Literal, NamedTuple, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from headrace.store.keys import used
from headrace.store.schema import usage, usage_offsets, usage_sources, usage_totals

_ROWS = 500
"""In one statement: neither database takes any number of values."""

T = TypeVar("T")
By = Literal["hour", "day", "model", "key"]


class UsageKey(NamedTuple):
    """What usage is summed by."""

    hour: datetime
    """Its start."""
    tenant: str
    key_id: str
    """Empty for what is not known by key."""
    model: str


@dataclass(slots=True)
class Amounts:
    """How much."""

    calls: int = 0
    request_bytes: int = 0
    response_bytes: int = 0
    model_micros: int = 0

    def add(self, other: "Amounts") -> None:
        """Add to it."""
        self.calls += other.calls
        self.request_bytes += other.request_bytes
        self.response_bytes += other.response_bytes
        self.model_micros += other.model_micros


class Totals(NamedTuple):
    """What a tenant used in a day or month."""

    calls: int
    bytes: int
    model_micros: int


@dataclass(frozen=True, slots=True)
class SourceReport:
    """What one process reports."""

    source: str
    sequence: int
    """Grows with every report of the source."""
    amounts: Mapping[UsageKey, Amounts]
    last_used: Mapping[str, datetime] = field(default_factory=dict)
    """By key."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Reports that follow each other in a topic."""

    topic: str
    partition: int
    after: int | None
    """Where the one before ended, as the database had it; None where there was none."""
    next_offset: int
    reports: Sequence[SourceReport]


class OffsetMovedError(Exception):
    """The batch does not follow the last one: another has summed meanwhile."""


@dataclass(frozen=True, slots=True)
class UsageRow:
    """What was used, by what was asked for; the rest is None."""

    calls: int
    request_bytes: int
    response_bytes: int
    model_micros: int
    hour: datetime | None = None
    day: str | None = None
    model: str | None = None
    key: str | None = None


def sum_batch(c: sa.Connection, batch: Batch, *, now: datetime) -> int:
    """Sum a batch; returns how many of its reports had not been summed before. Raises OffsetMovedError."""
    _move(c, batch)
    sequences = _sequences(c, {report.source for report in batch.reports})
    amounts: dict[UsageKey, Amounts] = defaultdict(Amounts)
    last_used: dict[str, datetime] = {}
    new = 0
    for report in batch.reports:
        if report.sequence <= sequences.get(report.source, 0):
            continue
        new += 1
        sequences[report.source] = report.sequence
        for key, each in report.amounts.items():
            amounts[key].add(each)
        for key_id, moment in report.last_used.items():
            last_used[key_id] = max(moment, last_used.get(key_id, moment))
    if new:
        _add(c, usage, ({**key._asdict(), **_columns(each)} for key, each in sorted(amounts.items(), key=_first)))
        _add(c, usage_totals, _by_period(amounts))
        _note(c, sequences, now)
        used(c, last_used)
    return new


def next_offset(c: sa.Connection, topic: str, partition: int) -> int | None:
    """Where the next batch begins; None where nothing was summed yet."""
    at = usage_offsets.c
    wanted = sa.select(at.next_offset).where(at.topic == topic, at.partition == partition)
    return c.execute(wanted).scalar_one_or_none()


def totals(c: sa.Connection, periods: Collection[str], tenants: Collection[str]) -> dict[tuple[str, str], Totals]:
    """What tenants used, by period (`2026-11-26`, `2026-11`) and tenant; where nothing, nothing."""
    at = usage_totals.c
    return {
        (row.period, row.tenant): Totals(row.calls, row.bytes, row.model_micros)
        for some in _chunks(tenants)
        for row in c.execute(sa.select(usage_totals).where(at.period.in_(list(periods)), at.tenant.in_(some)))
    }


def summed_sequence(c: sa.Connection, source: str) -> int:
    """The last report of a source that was summed; 0 where none was."""
    return _sequences(c, {source}).get(source, 0)


def usage_of(c: sa.Connection, tenant: str, *, since: datetime, until: datetime, by: Sequence[By]) -> list[UsageRow]:
    """What a tenant used in the hours from `since` to before `until`, in the order of what it is told apart by."""
    at = usage.c
    columns: dict[str, sa.ColumnElement[Any]] = {
        "hour": at.hour,
        "day": _day(c.dialect.name),
        "model": at.model,
        "key": at.key_id,
    }
    apart = [columns[name].label(name) for name in by]
    sums = [sa.cast(sa.func.sum(at[name]), sa.BigInteger).label(name) for name in _AMOUNTS]
    wanted = (
        sa.select(*apart, *sums)
        .where(at.tenant == tenant, at.hour >= since, at.hour < until)
        .group_by(*(columns[name] for name in by))
        .order_by(*(columns[name] for name in by))
    )
    return [UsageRow(**row._mapping) for row in c.execute(wanted) if row.calls is not None]  # noqa: SLF001  public


def has_usage(c: sa.Connection, tenant: str) -> bool:
    """Whether anything is kept of what a tenant used, whenever that was."""
    return bool(c.execute(sa.select(sa.exists().where(usage.c.tenant == tenant))).scalar_one())


def forget_before(c: sa.Connection, moment: datetime) -> int:
    """Delete a day of what was used before; returns how many rows. Call it until there are none."""
    c.execute(usage_totals.delete().where(usage_totals.c.period < moment.strftime("%Y-%m")))
    c.execute(usage_sources.delete().where(usage_sources.c.seen_at < moment))
    oldest = c.execute(sa.select(sa.func.min(usage.c.hour))).scalar_one_or_none()
    if oldest is None:
        return 0
    return c.execute(usage.delete().where(usage.c.hour < min(moment, oldest + timedelta(days=1)))).rowcount


_AMOUNTS = ("calls", "request_bytes", "response_bytes", "model_micros")


def _day(dialect: str) -> sa.ColumnElement[Any]:
    if dialect == "postgresql":
        return sa.func.to_char(sa.func.timezone("UTC", usage.c.hour), sa.literal_column("'YYYY-MM-DD'"))
    return sa.func.substr(sa.cast(usage.c.hour, sa.Text), sa.literal_column("1"), sa.literal_column("10"))


def _move(c: sa.Connection, batch: Batch) -> None:
    at = usage_offsets.c
    moving: sa.Insert | sa.Update
    if batch.after is None:
        first = {"topic": batch.topic, "partition": batch.partition, "next_offset": batch.next_offset}
        moving = _insert(c, usage_offsets).values(first).on_conflict_do_nothing()
    else:
        there = (at.topic == batch.topic, at.partition == batch.partition, at.next_offset == batch.after)
        moving = usage_offsets.update().where(*there).values(next_offset=batch.next_offset)
    if c.execute(moving.returning(at.next_offset)).one_or_none() is None:
        raise OffsetMovedError


def _sequences(c: sa.Connection, sources: Collection[str]) -> dict[str, int]:
    at = usage_sources.c
    return {
        row.source: row.sequence
        for some in _chunks(sources)
        for row in c.execute(sa.select(at.source, at.sequence).where(at.source.in_(some)))
    }


def _note(c: sa.Connection, sequences: Mapping[str, int], now: datetime) -> None:
    for some in _chunks(sorted(sequences.items())):
        rows = [{"source": source, "sequence": sequence, "seen_at": now} for source, sequence in some]
        insert = _insert(c, usage_sources).values(rows)
        new = {"sequence": insert.excluded.sequence, "seen_at": insert.excluded.seen_at}
        c.execute(insert.on_conflict_do_update(index_elements=["source"], set_=new))


def _by_period(amounts: Mapping[UsageKey, Amounts]) -> list[dict[str, object]]:
    found: dict[tuple[str, str], Amounts] = defaultdict(Amounts)
    for key, each in amounts.items():
        for period in (key.hour.strftime("%Y-%m-%d"), key.hour.strftime("%Y-%m")):
            found[period, key.tenant].add(each)
    return [
        {
            "period": period,
            "tenant": tenant,
            "calls": each.calls,
            "bytes": each.request_bytes + each.response_bytes,
            "model_micros": each.model_micros,
        }
        for (period, tenant), each in sorted(found.items(), key=_first)
    ]


def _add(c: sa.Connection, table: sa.Table, rows: Iterable[dict[str, object]]) -> None:
    """Add to rows, which come in the order of their keys, or make them."""
    keys = [column.name for column in table.primary_key]
    for some in _chunks(rows):
        insert = _insert(c, table).values(some)
        added = {
            column.name: table.c[column.name] + insert.excluded[column.name]
            for column in table.c
            if column.name not in keys
        }
        c.execute(insert.on_conflict_do_update(index_elements=keys, set_=added))


def _insert(c: sa.Connection, table: sa.Table) -> postgresql.Insert | sqlite.Insert:
    return postgresql.insert(table) if c.dialect.name == "postgresql" else sqlite.insert(table)


def _columns(amounts: Amounts) -> dict[str, object]:
    return {name: getattr(amounts, name) for name in _AMOUNTS}


def _first(pair: tuple[T, object]) -> T:
    return pair[0]


def _chunks(rows: Iterable[T]) -> Iterable[list[T]]:
    left = iter(rows)
    while some := list(islice(left, _ROWS)):
        yield some
