"""Which database a command means, and what its troubles look like."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headrace.cli.common import FAILED, USAGE, fail, resolved, running_stack
from headrace.local.database import PASSWORD_FILE, password_of
from headrace.local.options import DATABASE
from headrace.local.tenants import POLICY, POLICY_FILE

if TYPE_CHECKING:  # slow to import
    from headrace.store.engine import Store

URL = "HEADRACE_DATABASE__URL"

Database = Annotated[
    str | None,
    typer.Option(
        "--database",
        metavar="URL",
        help="The database: postgresql://USER@HOST:PORT/NAME, with the password in the file that "
        "HEADRACE_DATABASE__PASSWORD_FILE names, or sqlite:////PATH. [default: that of the stack that runs from the "
        "state folder; where none runs, HEADRACE_DATABASE__URL; then the file that `headrace up` has left there]",
        show_default=False,
    ),
]


@dataclass(frozen=True, kw_only=True)
class Meant:
    """What a command is about."""

    url: str | None
    """Of the database; None where there is none."""
    said_by: str
    """What named it."""
    policy_file: Path | None
    """The policy whose word counts over the database's, where it is known from here which one that is."""
    runs: bool
    """Whether gateways of this machine hold it: they go on with what they read last where the file is bad or gone."""


def meant(database: str | None, state_dir: Path | None) -> Meant:
    """The database that is meant, and the policy file beside it.

    The option wins, then the stack that runs from the state folder, then the environment, then what is in that folder.
    """
    own_policy = Path(named) if (named := os.environ.get(POLICY_FILE)) else None
    stack = running_stack(state_dir)
    if stack is not None and database in {None, stack.database}:
        return Meant(url=stack.database, said_by="--state-dir", policy_file=Path(stack.policy_file), runs=True)
    folder = resolved(state_dir)
    ours = own_policy or folder / POLICY
    said_by = "--database"
    if database is None:
        database, said_by = os.environ.get(URL) or None, URL
    if database is not None:
        # Who names a database may mean any, and the folder of this machine only where that is named too.
        beside = own_policy if state_dir is None else ours
        return Meant(url=database, said_by=said_by, policy_file=beside, runs=False)
    kept = folder / DATABASE
    url = f"sqlite:///{kept}" if kept.exists() else None
    return Meant(url=url, said_by="--state-dir", policy_file=ours, runs=False)


@contextmanager
def connected(database: str | None, state_dir: Path | None) -> Iterator["Store"]:
    """The database that is meant, whatever its tables. Ends the command where none is, or what names it is no use.

    Raises what the store raises.
    """
    from headrace.runtime.settings import SettingsError  # noqa: PLC0415  slow to import
    from headrace.store.engine import Store  # noqa: PLC0415
    from headrace.store.settings import database_url  # noqa: PLC0415

    what = meant(database, state_dir)
    if what.url is None:
        kept = resolved(state_dir) / DATABASE
        fail(f"there is no database {kept}: `headrace up` makes it; {URL} or --database names another", code=USAGE)
    try:
        url = database_url(what.url)
    except ValueError as exc:
        fail(f"{what.said_by} {exc}", code=USAGE)
    try:
        password = password_of(url)
    except (SettingsError, OSError) as exc:
        fail(f"{PASSWORD_FILE}: {exc}", code=USAGE)
    store = Store(url, password=password)
    try:
        yield store
    finally:
        store.close()


@contextmanager
def reached(database: str | None, state_dir: Path | None) -> Iterator["Store"]:
    """The database that is meant, whatever its tables. Ends the command where it can't be used."""
    from headrace.store.engine import SchemaError, StoreUnavailableError  # noqa: PLC0415  slow to import

    try:
        with connected(database, state_dir) as store:
            yield store
    except (SchemaError, StoreUnavailableError) as exc:
        fail(str(exc), code=FAILED)


@contextmanager
def opened(database: str | None, state_dir: Path | None) -> Iterator["Store"]:
    """The database that is meant, with the tables of this version. Ends the command where it can't be used."""
    with reached(database, state_dir) as store:
        store.check()
        yield store
