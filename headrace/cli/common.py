"""What several commands share: the state folder's option, names that are text, and how a command fails."""

import sys
from pathlib import Path
from typing import Annotated, NoReturn, TypeVar

import typer

from headrace.local.paths import default_state_dir
from headrace.local.state import Description, StateError, described

FAILED, USAGE = 1, 2
_Given = TypeVar("_Given", str | None, list[str] | None)

StateDir = Annotated[
    Path | None,
    typer.Option(
        "--state-dir",
        metavar="DIR",
        help="Where the stack keeps data, key and logs. [default: $XDG_STATE_HOME/headrace or ~/.local/state/headrace]",
        show_default=False,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


def fail(text: str, *, code: int = FAILED) -> NoReturn:
    """End the command with one line on stderr."""
    typer.echo(f"headrace: {text}", err=True)
    raise typer.Exit(code)


def readable(given: _Given) -> _Given:
    """Names as they were given. Ends the command where bytes of them are no text: nothing has such a name."""
    try:
        "".join(given or ()).encode()
    except UnicodeEncodeError:
        fail("a name is no text in UTF-8", code=USAGE)
    return given


def read_text(file: Path) -> str:
    """What is in a file, or comes from stdin where it is `-`. Ends the command where that can't be read."""
    try:
        return sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
    except OSError as exc:
        fail(f"{file}: {exc.strerror}", code=USAGE)
    except UnicodeDecodeError as exc:
        fail(f"{file}: no text: {exc.reason}", code=USAGE)


def resolved(state_dir: Path | None) -> Path:
    """The state folder that is meant."""
    return (state_dir or default_state_dir()).expanduser().absolute()


def running_stack(state_dir: Path | None) -> Description | None:
    """The stack that runs from the state folder; None where none does."""
    try:
        description = described(resolved(state_dir))
    except StateError as exc:
        fail(str(exc))
    return description if description is not None and description.running else None
