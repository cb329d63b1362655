"""Who administered what: functions over a transaction. A row is kept with the change that it tells of, or neither is.

Rows are added only; triggers of the table refuse the rest.
"""

import os
import pwd
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

import sqlalchemy as sa

from headrace.store.revisions import current_revision
from headrace.store.schema import acts


class Actor(NamedTuple):
    """Who acts, as the machine tells it: the database can't know."""

    os_user: str
    host: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Act:
    """One act that was done; what was refused has changed nothing, and is not here."""

    revision: int
    """What it made of the tenants and keys; the last one where it made several."""
    at: datetime
    os_user: str
    host: str
    act: str
    """The command, as `keys rotate`."""
    tenant: str
    key: str | None
    detail: Mapping[str, object]
    """What it was changed to. No secrets, nor their hashes."""


def this_actor() -> Actor:
    """Who runs this process. No variable of the environment is believed."""
    try:
        user = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        user = str(os.getuid())
    return Actor(user, socket.gethostname())


def record(
    c: sa.Connection,
    act: str,
    *,
    by: Actor,
    tenant: str,
    key: str | None = None,
    detail: Mapping[str, object] | None = None,
    now: datetime,
) -> None:
    """Note an act, in the transaction that has made its change."""
    c.execute(
        acts.insert().values(
            revision=current_revision(c),
            at=now,
            os_user=by.os_user,
            host=by.host,
            act=act,
            tenant=tenant,
            key=key,
            detail=dict(detail or {}),
        )
    )


def last_acts(c: sa.Connection, *, since: datetime | None = None, limit: int) -> list[Act]:
    """The last so many acts, the last one at the end."""
    wanted = sa.select(acts).order_by(acts.c.revision.desc()).limit(limit)
    if since is not None:
        wanted = wanted.where(acts.c.at >= since)
    return [Act(**row._mapping) for row in c.execute(wanted)][::-1]  # noqa: SLF001  public, despite its look
