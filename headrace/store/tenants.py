"""Tenants, in the database: functions over a transaction. Every change takes the next revision; see `revisions`."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from headrace.store.revisions import next_revision
from headrace.store.schema import tenants


class AlreadyExistsError(Exception):
    """There is one of that name."""


class UnknownError(Exception):
    """There is none of that name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTenant:
    """A tenant."""

    name: str
    grants: Mapping[str, object]
    """What a policy has below the tenant's name."""
    disabled: bool
    created_at: datetime
    changed_at: datetime


_COLUMNS = (tenants.c.name, tenants.c.grants, tenants.c.disabled, tenants.c.created_at, tenants.c.changed_at)


def create_tenant(c: sa.Connection, name: str, grants: Mapping[str, object], *, now: datetime) -> StoredTenant:
    """Add a tenant. Raises AlreadyExistsError."""
    made = StoredTenant(name=name, grants=grants, disabled=False, created_at=now, changed_at=now)
    revision = next_revision(c)
    try:
        with c.begin_nested():
            c.execute(
                tenants.insert().values(
                    name=name,
                    grants=dict(grants),
                    disabled=False,
                    created_at=now,
                    changed_at=now,
                    revision=revision,
                )
            )
    except IntegrityError:
        raise AlreadyExistsError(name) from None
    return made


def change_tenant(c: sa.Connection, name: str, grants: Mapping[str, object], *, now: datetime) -> None:
    """Grant a tenant this, and nothing else, from now on. Raises UnknownError."""
    _change(c, name, now, grants=dict(grants))


def set_tenant_disabled(c: sa.Connection, name: str, disabled: bool, *, now: datetime) -> None:
    """Refuse a tenant everything, or let it in again. Raises UnknownError."""
    _change(c, name, now, disabled=disabled)


def tenant(c: sa.Connection, name: str) -> StoredTenant | None:
    """A tenant; None where there is none of that name."""
    row = c.execute(sa.select(*_COLUMNS).where(tenants.c.name == name)).one_or_none()
    return None if row is None else _made(row)


def all_tenants(c: sa.Connection) -> list[StoredTenant]:
    """Every tenant, by name."""
    return [_made(row) for row in c.execute(sa.select(*_COLUMNS).order_by(tenants.c.name))]


def tenants_since(c: sa.Connection, revision: int) -> list[StoredTenant]:
    """Those that changed after a revision."""
    return [_made(row) for row in c.execute(sa.select(*_COLUMNS).where(tenants.c.revision > revision))]


def _made(row: sa.Row[*tuple[Any, ...]]) -> StoredTenant:
    """A row as a tenant."""
    return StoredTenant(**row._mapping)  # noqa: SLF001  a public name of SQLAlchemy's, despite its look


def _change(c: sa.Connection, name: str, now: datetime, **values: object) -> None:
    revision = next_revision(c)
    done = c.execute(tenants.update().where(tenants.c.name == name).values(**values, changed_at=now, revision=revision))
    if done.rowcount == 0:
        raise UnknownError(name)
