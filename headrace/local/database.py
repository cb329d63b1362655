"""The database of a local stack: brought up to date before anybody uses it."""

import os
from pathlib import Path

PASSWORD_FILE = "HEADRACE_DATABASE__PASSWORD_FILE"  # noqa: S105  a setting's name


class DatabaseError(Exception):
    """The database can't be used; the text says why."""


def upgrade_database(url: str) -> None:
    """Make the schema, or bring it up to date. Raises DatabaseError."""
    from headrace.runtime.settings import SettingsError, read_secret  # noqa: PLC0415  slow to import, and off the loop
    from headrace.store.engine import SchemaError, Store, StoreUnavailableError  # noqa: PLC0415

    try:
        password_file = os.environ.get(PASSWORD_FILE)
        password = read_secret(Path(password_file)) if password_file else None
        store = Store(url, password=password)
        try:
            store.upgrade()
        finally:
            store.close()
    except (SchemaError, StoreUnavailableError, SettingsError, OSError) as exc:
        raise DatabaseError(f"the database can't be used: {exc}") from None
