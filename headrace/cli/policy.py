"""`headrace policy` and `headrace limits`: what a policy file says, without a gateway."""

from dataclasses import fields
from pathlib import Path
from typing import Annotated

import typer

from headrace.cli.common import USAGE, StateDir, fail, resolved
from headrace.cli.table import table
from headrace.local.tenants import POLICY

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
    tenant: Annotated[str, typer.Argument(metavar="TENANT", help="A tenant of the policy.")],
    file: Annotated[
        Path | None,
        typer.Option("--policy", metavar="FILE", help="The policy. [default: the running stack's]", show_default=False),
    ] = None,
    state_dir: StateDir = None,
) -> None:
    """Show every limit that holds for a tenant, and whose it is.

    For example:

        headrace limits show sample
    """
    from gateway.policy.document import load_policy  # noqa: PLC0415  slow to import
    from gateway.policy.model import Limits, plain  # noqa: PLC0415
    from headrace.runtime.settings import SettingsError  # noqa: PLC0415

    try:
        read = load_policy(file or resolved(state_dir) / POLICY)
    except (SettingsError, OSError) as exc:
        fail(str(exc), code=USAGE)
    known = read.tenant(tenant)
    if known is None:
        fail(f"the policy has no tenant {tenant}: it may call nothing", code=USAGE)
    scopes = [
        ("the tenant", known.limits),
        ("each of its keys", known.each_key),
        *((f"its calls of {each.pattern}", each.limits) for each in known.by_model),
        *((f"each model {each.pattern}, all tenants", each.limits) for each in read.models),
        ("each gateway, all tenants", read.gateway),
    ]
    rows = [
        (scope, field.name, plain(value))
        for scope, held in scopes
        for field in fields(Limits)
        if (value := getattr(held, field.name)) is not None
    ]
    typer.echo(table(("WHOSE", "LIMIT", "VALUE"), rows) if rows else f"{tenant} has no limits")
