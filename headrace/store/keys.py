"""API keys, in the database: functions over a transaction. Every change takes the next revision; see `revisions`."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from headrace.store.revisions import next_revision
from headrace.store.schema import keys
from headrace.store.tenants import AlreadyExistsError, UnknownError


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredKey:
    """A key `hr_<id>_<secret>`."""

    id: str
    tenant: str
    secret_sha256: str
    """64 hexadecimal digits, unless it was written by hand."""
    roles: tuple[str, ...]
    """What was written by hand and is no list of texts is here as JSON, which no role is named like."""
    not_before: datetime | None
    expires: datetime | None
    disabled: bool
    created_at: datetime
    changed_at: datetime
    last_used_at: datetime | None


_COLUMNS = tuple(column for column in keys.c if column is not keys.c.revision)


def create_key(
    c: sa.Connection,
    *,
    key_id: str,
    tenant: str,
    secret_sha256: str,
    roles: Iterable[str],
    not_before: datetime | None = None,
    expires: datetime | None = None,
    now: datetime,
) -> None:
    """Add a key. Raises AlreadyExistsError."""
    values = {
        "id": key_id,
        "tenant": tenant,
        "secret_sha256": secret_sha256,
        "roles": list(roles),
        "not_before": not_before,
        "expires": expires,
        "disabled": False,
        "created_at": now,
        "changed_at": now,
        "revision": next_revision(c),
    }
    try:
        with c.begin_nested():
            c.execute(keys.insert().values(values))
    except IntegrityError:
        raise AlreadyExistsError(key_id) from None


def set_key_disabled(c: sa.Connection, key_id: str, disabled: bool, *, now: datetime) -> None:
    """Refuse a key, or take it again. Raises UnknownError."""
    _change(c, key_id, now, disabled=disabled)


def set_key_expiry(c: sa.Connection, key_id: str, expires: datetime | None, *, now: datetime) -> None:
    """Take a key until this moment; None is for ever. Raises UnknownError."""
    _change(c, key_id, now, expires=expires)


def key(c: sa.Connection, key_id: str) -> StoredKey | None:
    """A key; None where there is none of that id."""
    row = c.execute(sa.select(*_COLUMNS).where(keys.c.id == key_id)).one_or_none()
    return None if row is None else _made(row)


def keys_of(c: sa.Connection, tenant: str | None = None) -> list[StoredKey]:
    """Every key of a tenant, or of all, by tenant and id."""
    wanted = sa.select(*_COLUMNS).order_by(keys.c.tenant, keys.c.id)
    if tenant is not None:
        wanted = wanted.where(keys.c.tenant == tenant)
    return [_made(row) for row in c.execute(wanted)]


def keys_since(c: sa.Connection, revision: int) -> list[StoredKey]:
    """Those that changed after a revision."""
    return [_made(row) for row in c.execute(sa.select(*_COLUMNS).where(keys.c.revision > revision))]


def used(c: sa.Connection, last_used: Mapping[str, datetime]) -> None:
    """Note when keys were last used. No change that anybody has to be told of; keys from elsewhere are passed over."""
    if not last_used:
        return
    found = c.execute(sa.select(keys.c.id, keys.c.last_used_at).where(keys.c.id.in_(sorted(last_used))))
    newer = [
        {"at": last_used[key_id], "key": key_id}
        for key_id, known in found
        if known is None or known < last_used[key_id]
    ]
    if newer:
        c.execute(keys.update().where(keys.c.id == sa.bindparam("key")).values(last_used_at=sa.bindparam("at")), newer)


def _made(row: sa.Row[*tuple[Any, ...]]) -> StoredKey:
    values = dict(row._mapping)  # noqa: SLF001  a public name of SQLAlchemy's, despite its look
    return StoredKey(**{**values, "roles": _roles(values["roles"])})


def _roles(stated: object) -> tuple[str, ...]:
    listed = stated if isinstance(stated, list) else [json.dumps(stated)]
    return tuple(each if isinstance(each, str) else json.dumps(each) for each in listed)


def _change(c: sa.Connection, key_id: str, now: datetime, **values: object) -> None:
    revision = next_revision(c)
    done = c.execute(keys.update().where(keys.c.id == key_id).values(**values, changed_at=now, revision=revision))
    if done.rowcount == 0:
        raise UnknownError(key_id)
