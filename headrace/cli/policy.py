"""`headrace policy` and `headrace limits`: what a policy file says, without a gateway."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headrace.cli import moments
from headrace.cli.beside import Beside, beside, warn
from headrace.cli.common import FAILED, USAGE, StateDir, fail, read_text, readable
from headrace.cli.grants import granted, limit_rows
from headrace.cli.stores import Database, connected, meant
from headrace.cli.table import table

if TYPE_CHECKING:  # slow to import
    from gateway.policy.model import Policy, Tenant
    from headrace.store.tenants import StoredTenant

policy = typer.Typer(no_args_is_help=True, help="The policy file: what each tenant may call and use.")
limits = typer.Typer(no_args_is_help=True, help="How much a tenant may use.")

_AMOUNTS = {"calls": "calls", "bytes": "bytes", "model_seconds": "model_micros"}


@policy.callback()
def _policy() -> None:
    """The policy file: what each tenant may call and use."""


@limits.callback()
def _limits() -> None:
    """How much a tenant may use."""


@policy.command(name="check")
def _check(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A policy in YAML; `-` reads it from here.")],
) -> None:
    """Check a policy file, and say what each tenant is granted.

    Every mistake is told with its line; the exit code is 2 then. What is no YAML, or stands there twice, ends the
    reading and is told alone: check again when it is mended. A gateway that runs takes a good file within a second,
    and goes on with the one before where it is not good.

    For example:

        headrace policy check ~/.local/state/headrace/tenants.yaml
    """
    read = _read(file)
    rows = [
        (each.name, " ".join(sorted(each.allow)), each.priority, " ".join(each.models))
        for _, each in sorted(read.tenants.items())
    ]
    typer.echo(table(("TENANT", "ALLOWED", "PRIORITY", "MODELS"), rows))


@limits.command(name="show")
def _show(
    tenant: Annotated[
        str, typer.Argument(metavar="TENANT", help="A tenant of the policy or of the database.", callback=readable)
    ],
    file: Annotated[
        Path | None,
        typer.Option("--policy", metavar="FILE", help="The policy. [default: the running stack's]", show_default=False),
    ] = None,
    database: Database = None,
    state_dir: StateDir = None,
) -> None:
    """Show every limit and quota that holds for a tenant, whose it is, and what is left of quotas.

    The tenant is looked for in the policy, then in the database. What is used of a quota is what the database has
    summed, some two seconds ago: USED and LEFT are there where it answers. `warn_at` are the shares of a quota that
    gateways tell in their log.

    For example:

        headrace limits show sample
    """
    from gateway.policy.model import NO_QUOTAS, Limits, plain  # noqa: PLC0415  slow to import

    read = beside(database, state_dir) if file is None else Beside(file=file, policy=_read(file), trouble="")
    if read.trouble:
        warn(read.trouble)
    known, used = read.tenant(tenant), None
    if (known is None or known.quotas != NO_QUOTAS) and meant(database, state_dir).url is not None:
        stored, used = _stored(tenant, database, state_dir, needed=known is None)
        known = known or _granted(tenant, stored)
    if known is None:
        also = "" if read.trouble else ": it may call nothing"
        fail(f"there is no tenant {tenant} in {read.name} or the database{also}", code=USAGE)
    scopes = [
        *((f"each model {each.pattern}, all tenants", each.limits) for each in read.policy.models),
        ("each gateway, all tenants", read.policy.gateway),
    ]
    rows = limit_rows(known) + [
        (scope, field.name, plain(value))
        for scope, held in scopes
        for field in fields(Limits)
        if (value := getattr(held, field.name)) is not None
    ]
    if not rows:
        typer.echo(f"{tenant} has no limits")
    elif used is None or known.quotas == NO_QUOTAS:
        typer.echo(table(("WHOSE", "LIMIT", "VALUE"), rows))
    else:
        told = [(*row, *_use(row, used)) for row in rows]
        typer.echo(table(("WHOSE", "LIMIT", "VALUE", "USED", "LEFT"), told))


def _read(file: Path) -> "Policy":
    from gateway.policy.document import PolicyError, read_policy  # noqa: PLC0415  slow to import

    try:
        return read_policy(read_text(file))
    except PolicyError as exc:
        fail("\n".join(f"{file}: {line}" for line in str(exc).splitlines()), code=USAGE)


def _stored(
    name: str, database: str | None, state_dir: Path | None, *, needed: bool
) -> "tuple[StoredTenant | None, Mapping[str, float] | None]":
    """A tenant of the database, and what is used of each quota there is; None where the database does not say.

    Ends the command where it has to say.
    """
    from headrace.store.engine import SchemaError, StoreUnavailableError  # noqa: PLC0415  slow to import
    from headrace.store.tenants import tenant  # noqa: PLC0415
    from headrace.store.usage import Totals, totals  # noqa: PLC0415

    now = moments.now()
    periods = {"day": f"{now:%Y-%m-%d}", "month": f"{now:%Y-%m}"}
    try:
        with connected(database, state_dir) as store:
            store.check()
            with store.transaction(read_only=True) as connection:
                found = tenant(connection, name)
                sums = totals(connection, list(periods.values()), [name])
    except (SchemaError, StoreUnavailableError) as exc:
        if needed:
            fail(str(exc), code=FAILED)
        warn(f"what is used of quotas is not known: {exc}")
        return None, None
    used: dict[str, float] = {}
    for period, key in periods.items():
        summed = sums.get((key, name), Totals(0, 0, 0))
        for what, column in _AMOUNTS.items():
            amount = getattr(summed, column)
            used[f"{what}_per_{period}"] = amount / 1e6 if what == "model_seconds" else amount
    return found, used


def _granted(name: str, stored: "StoredTenant | None") -> "Tenant | None":
    if stored is None:
        return None
    if stored.disabled:
        fail(f"tenant {name} is disabled, and may call nothing: `headrace tenants enable {name}`", code=USAGE)
    return granted(name, stored.grants)


def _use(row: tuple[str, str, str], used: Mapping[str, float]) -> tuple[str, str]:
    from gateway.policy.model import plain  # noqa: PLC0415  slow to import

    _, name, value = row
    if name not in used:
        return "", ""
    return plain(round(used[name], 3)), plain(round(max(0.0, float(value) - used[name]), 3))
