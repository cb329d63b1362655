"""`headrace database`: the tables of the database."""

import typer

from headrace.cli.common import StateDir
from headrace.cli.stores import Database, opened, reached

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
