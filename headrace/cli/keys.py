"""`headrace keys`: API keys in the database."""

import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headrace.cli import moments
from headrace.cli.beside import beside, see_use, warn
from headrace.cli.common import USAGE, AsJson, StateDir, fail, readable
from headrace.cli.stores import Database, opened
from headrace.cli.table import table
from headrace.local.keys import KeyRequestError, NewKey, new_key

if TYPE_CHECKING:  # slow to import
    from sqlalchemy import Connection

    from headrace.store.keys import StoredKey

app = typer.Typer(no_args_is_help=True, help="API keys, in the database or for a key file.")

Id = Annotated[
    str,
    typer.Argument(metavar="ID", help="The key's public name: what stands between `hr_` and `_`.", callback=readable),
]
NewId = Annotated[str | None, typer.Option("--id", help="The key's public name. [default: random]", show_default=False)]
Admin = Annotated[bool, typer.Option("--admin", help="May load and unload models, where its tenant may.")]
Observer = Annotated[bool, typer.Option("--observer", help="May ask what there is, and run nothing.")]
Days = Annotated[
    float | None,
    typer.Option(metavar="N", min=0.001, help="How long it is valid. [default: ever]", show_default=False),
]


@app.callback()
def _group() -> None:
    """API keys, in the database or for a key file.

    A key is shown once, when it is made; what is kept is its hash. Gateways take a change within a second.
    """


@app.command(name="create")
def _create(
    *,
    tenant: Annotated[str, typer.Argument(metavar="TENANT", help="Whose key it is.")],
    key_id: NewId = None,
    admin: Admin = False,
    observer: Observer = False,
    days: Days = None,
    force: Annotated[
        bool, typer.Option("--force", help="Also for a tenant that is neither in the database nor in the policy file.")
    ] = False,
    database: Database = None,
    state_dir: StateDir = None,
    as_json: AsJson = False,
) -> None:
    """Make a key in the database and print it: it is not shown again.

    A tenant that is only in a policy file elsewhere can't be told from a typing mistake: `--force` makes its keys.

    For example:

        headrace keys create acme

        headrace keys create platform --id ops-1 --admin --days 90
    """
    from headrace.store.acts import record, this_actor  # noqa: PLC0415  slow to import
    from headrace.store.tenants import tenant as known_tenant  # noqa: PLC0415

    now = moments.now()
    roles, expires = roles_of(admin=admin, observer=observer), expiry(days, now)
    made = made_key(tenant, key_id, roles, expires)
    detail = {"roles": roles or ["user"], "expires": _iso(expires)}
    written = beside(database, state_dir)
    with opened(database, state_dir) as store, store.transaction() as connection:
        stored = known_tenant(connection, tenant)
        if stored is None and written.tenant(tenant) is None and not force:
            if written.trouble:
                warn(written.trouble)
            fail(
                f"neither the database nor {written.name} has a tenant {tenant}: "
                f"`headrace tenants create {tenant}` makes it, and --force the key without it",
                code=USAGE,
            )
        _add(connection, made, tenant, roles, expires, now=now)
        record(connection, "keys create", by=this_actor(), tenant=tenant, key=made.id, detail=detail, now=now)
    see_use(written.tenant(tenant), stored, roles)
    _tell(made, tenant, as_json=as_json)


@app.command(name="list")
def _list(
    *,
    tenant: Annotated[
        str | None,
        typer.Argument(
            metavar="TENANT", help="Whose keys. [default: everybody's]", show_default=False, callback=readable
        ),
    ] = None,
    database: Database = None,
    state_dir: StateDir = None,
    as_json: AsJson = False,
) -> None:
    """Show keys of the database: whose they are, how they stand, and when they were last used.

    A call that is answered is a use, told some seconds later.

    For example:

        headrace keys list acme

        headrace keys list --json | jq -r '.[] | select(.last_used_at == null) | .id'
    """
    from headrace.store.keys import keys_of  # noqa: PLC0415  slow to import

    with opened(database, state_dir) as store, store.transaction(read_only=True) as connection:
        found = keys_of(connection, tenant)
    if as_json:
        typer.echo(json.dumps([_as_json(each) for each in found], indent=1))
        return
    rows = [
        (
            each.id,
            each.tenant,
            " ".join(each.roles) or "user",
            _standing(each),
            _minute(each.expires),
            _minute(each.last_used_at),
        )
        for each in found
    ]
    typer.echo(table(("KEY", "TENANT", "ROLES", "STATE", "EXPIRES (UTC)", "LAST USED (UTC)"), rows))


@app.command(name="show")
def _show(key_id: Id, database: Database = None, state_dir: StateDir = None, as_json: AsJson = False) -> None:
    """Show one key of the database, without its secret, which nobody has.

    For example:

        headrace keys show ops-1
    """
    with opened(database, state_dir) as store, store.transaction(read_only=True) as connection:
        facts = _as_json(_known(connection, key_id))
    if as_json:
        typer.echo(json.dumps(facts, indent=1))
        return
    rows = [(name.replace("_", " "), _plain(value)) for name, value in facts.items()]
    typer.echo(table(("KEY", ""), rows))


@app.command(name="disable")
def _disable(key_id: Id, database: Database = None, state_dir: StateDir = None) -> None:
    """Refuse a key, within a second.

    For example:

        headrace keys disable ops-1
    """
    _switch(key_id, database, state_dir, disabled=True)


@app.command(name="enable")
def _enable(key_id: Id, database: Database = None, state_dir: StateDir = None) -> None:
    """Take a disabled key again.

    For example:

        headrace keys enable ops-1
    """
    _switch(key_id, database, state_dir, disabled=False)


@app.command(name="rotate")
def _rotate(
    *,
    key_id: Id,
    new_id: NewId = None,
    hours: Annotated[
        float, typer.Option("--hours", metavar="N", min=0, help="How long the old key goes on being taken.")
    ] = 24.0,
    days: Days = None,
    database: Database = None,
    state_dir: StateDir = None,
    as_json: AsJson = False,
) -> None:
    """Make a key that takes another's place, and let the old one expire.

    The new one has the tenant and the roles of the old one, and an end where `--days` gives it one. A key that is
    disabled or has expired gets no successor: `headrace keys create` makes a new one.

    For example:

        headrace keys rotate ops-1 --hours 48
    """
    from headrace.store.acts import record, this_actor  # noqa: PLC0415  slow to import
    from headrace.store.keys import set_key_expiry  # noqa: PLC0415
    from headrace.store.revisions import hold_changes  # noqa: PLC0415
    from headrace.store.tenants import tenant as known_tenant  # noqa: PLC0415

    now = moments.now()
    expires, ends = expiry(days, now), moments.later("--hours", now, hours=hours)
    with opened(database, state_dir) as store, store.transaction() as connection:
        hold_changes(connection)
        old = _known(connection, key_id)
        state = _standing(old)
        if state in {"disabled", "expired"}:
            fail(f"key {key_id} is {state}: `headrace keys create {old.tenant}` makes a new one", code=USAGE)
        made = made_key(old.tenant, new_id, old.roles, expires)
        stored = known_tenant(connection, old.tenant)
        _add(connection, made, old.tenant, old.roles, expires, now=now)
        if old.expires is None or ends < old.expires:
            set_key_expiry(connection, key_id, ends, now=now)
        else:
            ends = old.expires
        detail = {"successor": made.id, "taken_until": _iso(ends), "expires": _iso(expires)}
        record(connection, "keys rotate", by=this_actor(), tenant=old.tenant, key=key_id, detail=detail, now=now)
    typer.echo(f"{key_id} is taken until {ends:%Y-%m-%d %H:%M} UTC", err=True)
    if old.expires is not None and expires is None:
        warn(f"{key_id} had an end, {made.id} has none: --days gives one")
    see_use(beside(database, state_dir).tenant(old.tenant), stored, old.roles)
    _tell(made, old.tenant, as_json=as_json)


def _switch(key_id: str, database: str | None, state_dir: Path | None, *, disabled: bool) -> None:
    from headrace.store.acts import record, this_actor  # noqa: PLC0415  slow to import
    from headrace.store.keys import set_key_disabled  # noqa: PLC0415
    from headrace.store.revisions import hold_changes  # noqa: PLC0415

    now = moments.now()
    act = "keys disable" if disabled else "keys enable"
    with opened(database, state_dir) as store, store.transaction() as connection:
        hold_changes(connection)
        known = _known(connection, key_id)
        if known.disabled != disabled:
            set_key_disabled(connection, key_id, disabled, now=now)
            record(connection, act, by=this_actor(), tenant=known.tenant, key=key_id, now=now)
    already = " already" if known.disabled == disabled else ""
    typer.echo(f"key {key_id} is {'disabled' if disabled else 'enabled'}{already}")
    if not disabled and known.expires is not None and known.expires <= now:
        ended = f"key {key_id} expired at {_minute(known.expires)} UTC"
        warn(f"{ended}, and is refused: `headrace keys create {known.tenant}` makes a new one")


def _known(connection: "Connection", key_id: str) -> "StoredKey":
    from headrace.store.keys import key  # noqa: PLC0415  slow to import

    known = key(connection, key_id)
    if known is None:
        fail(f"the database has no key {key_id}; those of a key file are changed there", code=USAGE)
    return known


def _add(
    connection: "Connection",
    made: NewKey,
    tenant: str,
    roles: Sequence[str],
    expires: datetime | None,
    *,
    now: datetime,
) -> None:
    from headrace.store.keys import create_key  # noqa: PLC0415  slow to import
    from headrace.store.tenants import AlreadyExistsError  # noqa: PLC0415

    try:
        create_key(
            connection,
            key_id=made.id,
            tenant=tenant,
            secret_sha256=made.secret_sha256,
            roles=tuple(roles),
            expires=expires,
            now=now,
        )
    except AlreadyExistsError:
        fail(f"there is a key {made.id}: choose another --id", code=USAGE)


def made_key(tenant: str, key_id: str | None, roles: Sequence[str], expires: datetime | None) -> NewKey:
    """A new key. Ends the command where there can be none like this."""
    try:
        return new_key(tenant=tenant, key_id=key_id, roles=roles, expires=expires)
    except KeyRequestError as exc:
        fail(str(exc), code=USAGE)


def roles_of(*, admin: bool, observer: bool) -> list[str]:
    """The roles that are asked for. Ends the command where one of them takes the other's point away."""
    if admin and observer:
        fail("--admin may do everything and --observer run nothing: choose one", code=USAGE)
    return [role for role, wanted in (("admin", admin), ("observer", observer)) if wanted]


def expiry(days: float | None, now: datetime) -> datetime | None:
    """When a key expires that is valid for so long; None is never."""
    return None if days is None else moments.later("--days", now, days=days)


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()


def _tell(made: NewKey, tenant: str, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({"id": made.id, "tenant": tenant, "key": made.key}))
    else:
        typer.echo("The key, shown only now:", err=True)
        typer.echo(made.key)


def _standing(key: "StoredKey") -> str:
    now = moments.now()
    if key.disabled:
        return "disabled"
    if key.expires is not None and key.expires <= now:
        return "expired"
    return "not yet valid" if key.not_before is not None and now < key.not_before else "active"


def _minute(moment: datetime | None) -> str:
    return "-" if moment is None else f"{moment:%Y-%m-%d %H:%M}"


def _plain(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else "-" if value is None else str(value)


def _as_json(key: "StoredKey") -> dict[str, object]:  # Any: its module is slow to import
    named = ("not_before", "expires", "created_at", "last_used_at")
    return {
        "id": key.id,
        "tenant": key.tenant,
        "roles": list(key.roles) or ["user"],
        "state": _standing(key),
        **{name: _iso(getattr(key, name)) for name in named},
    }
