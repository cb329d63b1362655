"""The command line, `headrace …`: a thin layer that parses, calls `headrace.local`, and prints.

One module per group of commands. Slow imports stay inside the commands that need them, so that `--help` is quick.
"""

from headrace.runtime import orders  # noqa: F401  what it does is done by importing it

# isort: split
import sys
from importlib import metadata
from typing import Annotated

import typer

from headrace.cli import calls, database, keyfiles, keys, machine, policy, processes, tenants, top, up, usage

app = typer.Typer(
    name="headrace",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
up.register(app)
calls.register(app)
processes.register(app)
machine.register(app)
top.register(app)
usage.register(app)
app.add_typer(tenants.app, name="tenants")
keyfiles.register(keys.app)
app.add_typer(keys.app, name="keys")
app.add_typer(database.app, name="database")
app.add_typer(policy.policy, name="policy")
app.add_typer(policy.limits, name="limits")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"headrace {metadata.version('headrace')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Identity, fairness and a durable queue in front of NVIDIA Triton.

    Start the whole system on this machine with `headrace up`, then call it with `headrace infer`.
    """
    del version


def main() -> None:
    """The entry point of the `headrace` command."""
    try:
        app()
    except KeyboardInterrupt:
        # Before or after a command's own handling of signals.
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(141)
