"""The database of a local stack: brought up to date before anybody uses it."""

import os
from pathlib import Path

PASSWORD_FILE = "HEADRACE_DATABASE__PASSWORD_FILE"  # noqa: S105  a setting's name


class DatabaseError(Exception):
    """The database can't be used; the text says why."""


def password_of(url: str) -> str | None:
    """The password of a database, from the file that this process's environment names. Raises SettingsError, OSError.

    A file of our own has none, whatever is named.
    """
    from headrace.runtime.settings import read_secret  # noqa: PLC0415  slow to import

    named = os.environ.get(PASSWORD_FILE) if url.startswith("postgresql") else None
    return read_secret(Path(named)) if named else None


def upgrade_database(url: str) -> None:
    """Make the schema, or bring it up to date. Raises DatabaseError."""
    from headrace.runtime.settings import SettingsError  # noqa: PLC0415  slow to import, and off the loop
    from headrace.store.engine import SchemaError, Store, StoreUnavailableError  # noqa: PLC0415

    try:
        store = Store(url, password=password_of(url))
        try:
            store.upgrade()
        finally:
            store.close()
    except (SchemaError, StoreUnavailableError, SettingsError, OSError) as exc:
        raise DatabaseError(f"the database can't be used: {exc}") from None
