"""`headrace policy` and `headrace limits`: what a policy file says, without a gateway."""

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headrace.cli.common import USAGE, StateDir, fail, readable, resolved
from headrace.cli.grants import granted, limit_rows
from headrace.cli.stores import Database, opened
from headrace.cli.table import table
from headrace.local.options import DATABASE
from headrace.local.tenants import POLICY

if TYPE_CHECKING:  # slow to import
    from gateway.policy.model import Tenant

policy = typer.Typer(no_args_is_help=True, help="The policy file: what each tenant may call and use.")
limits = typer.Typer(no_args_is_help=True, help="How much a tenant may use.")


@policy.callback()
def _policy() -> None:
    """The policy file: what each tenant may call and use."""


@limits.callback()
def _limits() -> None:
    """How much a tenant may use."""


@policy.command(name="check")
def _check(file: Annotated[Path, typer.Argument(metavar="FILE", help="A policy in YAML.")]) -> None:
    """Check a policy file, and say what each tenant is granted.

    Every mistake is told with its line; the exit code is 2 then. A gateway that runs takes a good file within a second,
    and goes on with the one before where it is not good.

    For example:

        headrace policy check ~/.local/state/headrace/tenants.yaml
    """
    from gateway.policy.document import load_policy  # noqa: PLC0415  slow to import
    from headrace.runtime.settings import SettingsError  # noqa: PLC0415

    try:
        read = load_policy(file)
    except (SettingsError, OSError) as exc:
        fail(str(exc), code=USAGE)
    rows = [
        (each.name, " ".join(sorted(each.allow)), each.priority, " ".join(each.models))
        for _, each in sorted(read.tenants.items())
    ]
    typer.echo(table(("TENANT", "ALLOWED", "PRIORITY", "MODELS"), rows))


@limits.command(name="show")
def _show(
    tenant: Annotated[str, typer.Argument(metavar="TENANT", help="A tenant of the policy.", callback=readable)],
    file: Annotated[
        Path | None,
        typer.Option("--policy", metavar="FILE", help="The policy. [default: the running stack's]", show_default=False),
    ] = None,
    database: Database = None,
    state_dir: StateDir = None,
) -> None:
    """Show every limit and quota that holds for a tenant, and whose it is.

    The tenant is looked for in the policy, then in the database.

    For example:

        headrace limits show sample
    """
    from gateway.policy.document import load_policy  # noqa: PLC0415  slow to import
    from gateway.policy.model import Limits, Policy, plain  # noqa: PLC0415
    from headrace.runtime.settings import SettingsError  # noqa: PLC0415

    kept = resolved(state_dir) / POLICY
    try:
        # Without a policy file the database alone says what a tenant may.
        read = load_policy(file or kept) if file is not None or kept.exists() else Policy()
    except (SettingsError, OSError) as exc:
        fail(str(exc), code=USAGE)
    known = read.tenant(tenant)
    if known is None:
        known = _stored(tenant, database, state_dir)
    scopes = [
        *((f"each model {each.pattern}, all tenants", each.limits) for each in read.models),
        ("each gateway, all tenants", read.gateway),
    ]
    rows = limit_rows(known) + [
        (scope, field.name, plain(value))
        for scope, held in scopes
        for field in fields(Limits)
        if (value := getattr(held, field.name)) is not None
    ]
    typer.echo(table(("WHOSE", "LIMIT", "VALUE"), rows) if rows else f"{tenant} has no limits")


def _stored(name: str, database: str | None, state_dir: Path | None) -> "Tenant":
    from headrace.store.tenants import tenant  # noqa: PLC0415  slow to import

    known = None
    if database is not None or (resolved(state_dir) / DATABASE).exists():
        with opened(database, state_dir) as store, store.transaction(read_only=True) as connection:
            known = tenant(connection, name)
    if known is None or known.disabled:
        fail(f"there is no tenant {name} in the policy or the database: it may call nothing", code=USAGE)
    return granted(name, known.grants)
