"""`headrace database`: the tables of the database."""

import json
from dataclasses import asdict
from typing import Annotated

import typer

from headrace.cli import moments
from headrace.cli.common import AsJson, StateDir
from headrace.cli.stores import Database, opened, reached
from headrace.cli.table import table

app = typer.Typer(no_args_is_help=True, help="The tables of the database that holds tenants, keys and usage.")


@app.callback()
def _group() -> None:
    """The tables of the database that holds tenants, keys and usage."""


@app.command(name="upgrade")
def _upgrade(database: Database = None, state_dir: StateDir = None) -> None:
    """Make the tables, or bring them up to date. Nothing is lost, and two at once do it once.

    To be run before the processes of a new version start; those that run go on.

    For example:

        HEADRACE_DATABASE__PASSWORD_FILE=password headrace database upgrade --database postgresql://headrace@db/headrace
    """
    with reached(database, state_dir) as store:
        done = store.upgrade()
    typer.echo(f"upgraded: {' '.join(done)}" if done else "the tables are up to date")


@app.command(name="check")
def _check(database: Database = None, state_dir: StateDir = None) -> None:
    """Say whether the database answers and has the tables of this version. The status is 1 where not.

    For example:

        headrace database check
    """
    with opened(database, state_dir):
        typer.echo("the database answers, and the tables are up to date")


@app.command(name="log")
def _log(
    *,
    since: Annotated[
        str | None,
        typer.Option(metavar="WHEN", help=f"From when: {moments.WHEN}. [default: whenever it was]", show_default=False),
    ] = None,
    limit: Annotated[
        int, typer.Option(metavar="N", min=1, max=1_000_000, help="How many at most, the last ones.")
    ] = 50,
    database: Database = None,
    state_dir: StateDir = None,
    as_json: AsJson = False,
) -> None:
    """Show who changed tenants and keys: the last acts, the newest at the end. `--json` also says what was granted.

    What was refused has changed nothing, and is not there. Nor is what was changed by hand, in SQL.

    For example:

        headrace database log --since 7d

        headrace database log --limit 1000 --json | jq -r '.[] | select(.tenant == "acme") | .act'
    """
    from headrace.store.acts import last_acts  # noqa: PLC0415  slow to import

    start = None if since is None else moments.moment("--since", since, moments.now())
    with opened(database, state_dir) as store, store.transaction(read_only=True) as connection:
        found = last_acts(connection, since=start, limit=limit)
    if as_json:
        typer.echo(json.dumps([{**asdict(each), "at": each.at.isoformat()} for each in found], indent=1))
        return
    rows = [
        (
            f"{each.at:%Y-%m-%d %H:%M:%S}",
            str(each.revision),
            f"{each.os_user}@{each.host}",
            each.act,
            each.tenant,
            each.key or "-",
        )
        for each in found
    ]
    typer.echo(table(("WHEN (UTC)", "REVISION", "WHO", "ACT", "TENANT", "KEY"), rows))
