"""`headrace tenants`: the tenants of the database, and what each is granted."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headrace.cli import moments
from headrace.cli.beside import see_nothing_written
from headrace.cli.common import FAILED, USAGE, AsJson, StateDir, fail, read_text, readable
from headrace.cli.grants import granted, limit_rows, see_claims
from headrace.cli.stores import Database, opened
from headrace.cli.table import table
from headrace.cli.terms import Terms, takes_terms

if TYPE_CHECKING:  # slow to import
    from headrace.store.tenants import StoredTenant

app = typer.Typer(no_args_is_help=True, help="The tenants of the database, and what each is granted.")

Name = Annotated[str, typer.Argument(metavar="TENANT", help="The tenant's name.", callback=readable)]


@app.callback()
def _group() -> None:
    """The tenants of the database, and what each is granted.

    Gateways take a change within a second. Of a tenant that is in the policy file too, the file's word counts: it is
    changed there, and not here.
    """


@app.command(name="create")
@takes_terms
def _create(*, name: Name, terms: Terms, database: Database = None, state_dir: StateDir = None) -> None:
    """Add a tenant. Without `--models` every model exists for it.

    `--file` takes all that a policy can say; options beside it win over the file. A limit of 0 is none.

    For example:

        headrace tenants create acme --calls-per-second 10 --calls-per-day 10000

        headrace tenants create acme --models simple --models 'text_*' --concurrency 4

        headrace tenants create acme --file acme.yaml
    """
    from headrace.store.acts import record, this_actor  # noqa: PLC0415  slow to import
    from headrace.store.tenants import AlreadyExistsError, all_tenants, create_tenant  # noqa: PLC0415

    see_nothing_written(name, database, state_dir)
    grants = terms.over({"models": ["*"]} if terms.file is None else _read(terms.file))
    made = granted(name, grants, told=terms.told)
    now = moments.now()
    with opened(database, state_dir) as store, store.transaction() as connection:
        try:
            create_tenant(connection, name, grants, now=now)
        except AlreadyExistsError:
            fail(f"there is a tenant {name}: `headrace tenants change {name}` changes it", code=USAGE)
        see_claims(made, all_tenants(connection))
        record(connection, "tenants create", by=this_actor(), tenant=name, detail={"grants": grants}, now=now)
    typer.echo(f"tenant {name} is there; `headrace keys create {name}` makes it a key")


@app.command(name="change")
@takes_terms
def _change(*, name: Name, terms: Terms, database: Database = None, state_dir: StateDir = None) -> None:
    """Change what a tenant is granted: what options name, or everything with `--file`.

    0 takes a limit or quota away, `--no-certificates` all certificates.

    For example:

        headrace tenants change acme --calls-per-second 20 --calls-per-day 0

        headrace tenants show acme --json | jq .grants | headrace tenants change acme --file -
    """
    from headrace.store.acts import record, this_actor  # noqa: PLC0415  slow to import
    from headrace.store.revisions import hold_changes  # noqa: PLC0415
    from headrace.store.tenants import all_tenants, change_tenant, tenant  # noqa: PLC0415

    if not terms.stated and terms.file is None:
        fail("nothing to change: name it by options, or give --file", code=USAGE)
    see_nothing_written(name, database, state_dir)
    base = None if terms.file is None else _read(terms.file)
    now = moments.now()
    with opened(database, state_dir) as store, store.transaction() as connection:
        hold_changes(connection)
        known = tenant(connection, name)
        if known is None:
            fail(_unknown(name), code=USAGE)
        grants = terms.over(known.grants if base is None else base)
        made = granted(name, grants, told=terms.told)
        change_tenant(connection, name, grants, now=now)
        see_claims(made, all_tenants(connection))
        record(connection, "tenants change", by=this_actor(), tenant=name, detail={"grants": grants}, now=now)
    typer.echo(f"tenant {name} has changed")


@app.command(name="list")
def _list(database: Database = None, state_dir: StateDir = None, as_json: AsJson = False) -> None:
    """Show every tenant of the database.

    For example:

        headrace tenants list

        headrace tenants list --json | jq -r '.[] | select(.disabled) | .name'
    """
    from headrace.store.tenants import all_tenants  # noqa: PLC0415  slow to import

    with opened(database, state_dir) as store, store.transaction(read_only=True) as connection:
        found = all_tenants(connection)
    if as_json:
        typer.echo(json.dumps([_as_json(each) for each in found], indent=1))
        return
    rows = [
        (
            each.name,
            "disabled" if each.disabled else "active",
            f"{each.changed_at:%Y-%m-%d %H:%M}",
            " ".join(map(str, _listed(each.grants.get("models")))),
        )
        for each in found
    ]
    typer.echo(table(("TENANT", "STATE", "CHANGED (UTC)", "MODELS"), rows))


@app.command(name="show")
def _show(name: Name, database: Database = None, state_dir: StateDir = None, as_json: AsJson = False) -> None:
    """Show what a tenant is granted, and its keys.

    For example:

        headrace tenants show acme
    """
    from headrace.store.keys import keys_of  # noqa: PLC0415  slow to import
    from headrace.store.tenants import tenant  # noqa: PLC0415

    with opened(database, state_dir) as store, store.transaction(read_only=True) as connection:
        known = tenant(connection, name)
        if known is None:
            fail(_unknown(name), code=USAGE)
        keys = [each.id for each in keys_of(connection, name)]
    if as_json:
        typer.echo(json.dumps({**_as_json(known), "keys": keys}, indent=1))
        return
    read = granted(name, known.grants, code=FAILED)
    rows = [
        ("state", "", "disabled" if known.disabled else "active"),
        ("models", "", " ".join(read.models)),
        ("allowed", "", " ".join(sorted(read.allow))),
        ("priority", "", read.priority),
        ("keys", "", " ".join(keys) or "none"),
        *limit_rows(read),
    ]
    typer.echo(table((name.upper() if name.islower() else name, "", ""), rows))


@app.command(name="disable")
def _disable(name: Name, database: Database = None, state_dir: StateDir = None) -> None:
    """Refuse a tenant everything, within a second. Nothing of it is forgotten.

    For example:

        headrace tenants disable acme
    """
    _switch(name, database, state_dir, disabled=True)


@app.command(name="enable")
def _enable(name: Name, database: Database = None, state_dir: StateDir = None) -> None:
    """Let a disabled tenant in again.

    For example:

        headrace tenants enable acme
    """
    _switch(name, database, state_dir, disabled=False)


def _switch(name: str, database: str | None, state_dir: Path | None, *, disabled: bool) -> None:
    from headrace.store.acts import record, this_actor  # noqa: PLC0415  slow to import
    from headrace.store.revisions import hold_changes  # noqa: PLC0415
    from headrace.store.tenants import set_tenant_disabled, tenant  # noqa: PLC0415

    see_nothing_written(name, database, state_dir)
    now = moments.now()
    with opened(database, state_dir) as store, store.transaction() as connection:
        hold_changes(connection)
        known = tenant(connection, name)
        if known is None:
            fail(_unknown(name), code=USAGE)
        if known.disabled != disabled:
            set_tenant_disabled(connection, name, disabled, now=now)
            act = "tenants disable" if disabled else "tenants enable"
            record(connection, act, by=this_actor(), tenant=name, now=now)
    already = " already" if known.disabled == disabled else ""
    typer.echo(f"tenant {name} is {'disabled' if disabled else 'active'}{already}")


def _unknown(name: str) -> str:
    return f"the database has no tenant {name}; those of a policy file are changed there"


def _read(file: Path) -> dict[str, object]:
    from gateway.policy.document import PolicyError, read_grants  # noqa: PLC0415  slow to import

    try:
        return read_grants(read_text(file))
    except PolicyError as exc:
        fail(f"{file}: {exc}", code=USAGE)


def _listed(value: object) -> Sequence[object]:
    return value if isinstance(value, list) else ()


def _as_json(tenant: "StoredTenant") -> dict[str, object]:
    return {
        "name": tenant.name,
        "disabled": tenant.disabled,
        "created_at": tenant.created_at.isoformat(),
        "changed_at": tenant.changed_at.isoformat(),
        "grants": dict(tenant.grants),
    }
