"""Which database a command means, and what its troubles look like."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headrace.cli.common import FAILED, USAGE, fail, resolved
from headrace.local.database import PASSWORD_FILE
from headrace.local.options import DATABASE

if TYPE_CHECKING:  # slow to import
    from headrace.store.engine import Store

Database = Annotated[
    str | None,
    typer.Option(
        "--database",
        metavar="URL",
        envvar="HEADRACE_DATABASE__URL",
        help="The database: postgresql://USER@HOST:PORT/NAME, with the password in the file that "
        "HEADRACE_DATABASE__PASSWORD_FILE names, or sqlite:////PATH. [default: the one that `headrace up` keeps]",
        show_default=False,
    ),
]


@contextmanager
def reached(database: str | None, state_dir: Path | None) -> Iterator["Store"]:
    """The database that is meant, whatever its tables. Ends the command where it can't be used."""
    from headrace.runtime.settings import SettingsError, read_secret  # noqa: PLC0415  slow to import
    from headrace.store.engine import SchemaError, Store, StoreUnavailableError  # noqa: PLC0415
    from headrace.store.settings import database_url  # noqa: PLC0415

    kept = resolved(state_dir) / DATABASE
    if database is None and not kept.exists():
        fail(f"there is no database {kept}: `headrace up` makes it, and --database names another", code=USAGE)
    try:
        url = database_url(f"sqlite:///{kept}" if database is None else database)
    except ValueError as exc:
        fail(f"--database {exc}", code=USAGE)
    password_file = os.environ.get(PASSWORD_FILE)
    try:
        password = read_secret(Path(password_file)) if password_file else None
    except (SettingsError, OSError) as exc:
        fail(f"{PASSWORD_FILE}: {exc}", code=USAGE)
    store = Store(url, password=password)
    try:
        yield store
    except (SchemaError, StoreUnavailableError) as exc:
        fail(str(exc), code=FAILED)
    finally:
        store.close()


@contextmanager
def opened(database: str | None, state_dir: Path | None) -> Iterator["Store"]:
    """The database that is meant, with the tables of this version. Ends the command where it can't be used."""
    with reached(database, state_dir) as store:
        store.check()
        yield store
