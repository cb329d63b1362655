"""`headrace keys new` and `headrace keys check`: API keys in a file, for who keeps them in version control."""

from pathlib import Path
from typing import Annotated

import typer

from headrace.cli import moments
from headrace.cli.common import USAGE, fail
from headrace.cli.keys import Admin, Days, NewId, Observer, expiry, made_key, roles_of


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(name="new")(_new)
    app.command(name="check")(_check)


def _new(
    *,
    tenant: Annotated[str, typer.Option(help="Whose key it is.")],
    key_id: NewId = None,
    admin: Admin = False,
    observer: Observer = False,
    days: Days = None,
) -> None:
    """Make a key for a key file: printed once, kept nowhere. The gateway gets only its hash.

    The key goes to stderr and the entry to stdout, so that the entry can be appended to the key file.

    For example:

        headrace keys new --tenant billing

        headrace keys new --tenant platform --id ops-1 --admin >>keys.toml

        headrace keys new --tenant guest --days 7 >>keys.toml
    """
    made = made_key(tenant, key_id, roles_of(admin=admin, observer=observer), expiry(days, moments.now()))
    typer.echo(f"The key, shown only now: {made.key}", err=True)
    typer.echo("The entry for the key file, which HEADRACE_GATEWAY__IDENTITY__KEY_FILE names:", err=True)
    typer.echo(made.entry, nl=False)


def _check(file: Annotated[Path, typer.Argument(metavar="FILE", help="A key file, in TOML.")]) -> None:
    """Check a key file. The exit code is 2 where it has a mistake, such as a key that is there twice.

    A gateway that runs takes a good file within a second, and goes on with the keys before where it is not good.

    For example:

        headrace keys check ~/.local/state/headrace/keys.toml
    """
    from gateway.identity import KeyFile  # noqa: PLC0415  slow to import
    from headrace.runtime.settings import SettingsError  # noqa: PLC0415

    try:
        keys = len(KeyFile(file))
    except SettingsError as exc:
        fail(str(exc).replace("\n", "\nheadrace: "), code=USAGE)
    typer.echo(f"{file}: {keys} {'key' if keys == 1 else 'keys'}")
