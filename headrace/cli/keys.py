"""`headrace keys`."""

from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from headrace.cli.common import USAGE, fail
from headrace.local.keys import KeyRequestError, new_key

app = typer.Typer(no_args_is_help=True, help="API keys for the gateway's key file.")


@app.callback()
def _group() -> None:
    """API keys for the gateway's key file."""


@app.command(name="new")
def _new(
    tenant: Annotated[str, typer.Option(help="Whose key it is.")],
    key_id: Annotated[
        str | None, typer.Option("--id", help="The key's public name. [default: random]", show_default=False)
    ] = None,
    admin: Annotated[bool, typer.Option("--admin", help="May load and unload models.")] = False,
    observer: Annotated[bool, typer.Option("--observer", help="May ask what there is, and run nothing.")] = False,
    days: Annotated[
        float | None,
        typer.Option(metavar="N", min=0, help="How long it is valid. [default: ever]", show_default=False),
    ] = None,
) -> None:
    """Make a key: printed once, kept nowhere. The gateway gets only its hash.

    The key goes to stderr and the entry to stdout, so that the entry can be appended to the key file.

    For example:

        headrace keys new --tenant billing

        headrace keys new --tenant platform --id ops-1 --admin >>keys.toml

        headrace keys new --tenant guest --days 7 >>keys.toml
    """
    try:
        roles = [role for role, wanted in (("admin", admin), ("observer", observer)) if wanted]
        expires = None if days is None else datetime.now(UTC) + timedelta(days=days)
        made = new_key(tenant=tenant, key_id=key_id, roles=roles, expires=expires)
    except KeyRequestError as exc:
        fail(str(exc), code=USAGE)
    typer.echo(f"The key, shown only now: {made.key}", err=True)
    typer.echo("The entry for the file that HEADRACE_GATEWAY__IDENTITY__KEY_FILE names:", err=True)
    typer.echo(made.entry, nl=False)
