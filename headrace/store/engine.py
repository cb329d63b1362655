"""How the database is reached: transactions with deadlines, in threads of the store's own, and the schema's version."""

import asyncio
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

import sqlalchemy as sa
from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.runtime.migration import MigrationContext, MigrationStep
from alembic.script import ScriptDirectory
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, SQLAlchemyError

from headrace.store.schema import metadata

_CONNECT_SECONDS = 3
_STATEMENT_SECONDS = 5
_BUSY_SECONDS = 5.0
_RETRY_SECONDS = 0.01
_MIGRATION_LOCK = 0x68656164  # any number that all of ours agree on
_MIGRATIONS = Path(__file__).parent / "migrations"

T = TypeVar("T")


class StoreUnavailableError(Exception):
    """The database is away, too slow, or refuses; the text says what, and holds no secret."""


class SchemaError(Exception):
    """The tables are those of another version; the text says what to do."""


class Store:
    """One database. Its transactions run one after the other; what they do is in the modules beside this one."""

    def __init__(self, url: str, *, password: str | None = None) -> None:
        """`url` as `settings.database_url` takes it. Connects to nothing yet."""
        self._file = _file(url)
        self._engine = _postgresql(url, password) if self._file is None else _sqlite(self._file)
        self._where = _where(url)
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="store")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # Connecting and statements have ends of their own, so this waits for so long at most.
        await asyncio.to_thread(self.close)

    def close(self) -> None:
        """Close every connection, once the transaction that runs has ended."""
        self._executor.shutdown(wait=True, cancel_futures=True)
        self._engine.dispose()

    @contextmanager
    def transaction(self, *, read_only: bool = False) -> Iterator[sa.Connection]:
        """One transaction: kept when it ends, undone when it raises. Raises StoreUnavailableError.

        A read-only one sees one moment of the database.
        """
        try:
            with self._engine.connect() as connection:
                if read_only:
                    connection.execution_options(**_READ_ONLY[connection.dialect.name])
                with connection.begin():
                    yield connection
        except (OperationalError, InterfaceError, sa.exc.TimeoutError) as exc:
            text = _text(exc)
            # A server that says FATAL has answered: whom it lets in, or to what, is for it to say.
            verb = "refuses" if "FATAL:" in text else "does not answer"
            raise StoreUnavailableError(f"{self._where} {verb}: {text}") from None
        except SQLAlchemyError as exc:
            raise StoreUnavailableError(f"{self._where} refuses: {_text(exc)}") from None

    async def run(self, work: Callable[[sa.Connection], T], *, seconds: float = 5.0, read_only: bool = False) -> T:
        """Do some work in a transaction, beside the loop. Raises StoreUnavailableError, also when it takes longer.

        What took longer may still be kept.
        """

        def worked() -> T:
            with self.transaction(read_only=read_only) as connection:
                return work(connection)

        try:
            async with asyncio.timeout(seconds):
                return await asyncio.get_running_loop().run_in_executor(self._executor, worked)
        except TimeoutError:
            raise StoreUnavailableError(f"{self._where} did not answer within {seconds:g} s") from None

    def upgrade(self) -> list[str]:
        """Bring the tables up to date; returns the versions that were gone through. Two at once do it once.

        Raises StoreUnavailableError, or SchemaError where the tables are newer.
        """
        scripts = ScriptDirectory(str(_MIGRATIONS))
        done: list[str] = []
        with self.transaction() as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(sa.text("SET LOCAL statement_timeout = 0"))
                connection.execute(sa.text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _MIGRATION_LOCK})
            _known(scripts, _version(connection))

            def steps(version: Any, context: MigrationContext) -> Sequence[MigrationStep]:  # noqa: ANN401  alembic's
                del context
                found = scripts._upgrade_revs("head", version)  # noqa: SLF001  what alembic's own command calls
                done.extend(str(step.revision.revision) for step in found)
                return found

            with EnvironmentContext(Config(), scripts, fn=steps) as environment:
                environment.configure(connection=connection, target_metadata=metadata)
                # The transaction is ours: a migration is whole, or was not there.
                environment.run_migrations()
        return done

    def check(self) -> None:
        """See that the tables are those of this version. Raises SchemaError, StoreUnavailableError."""
        scripts = ScriptDirectory(str(_MIGRATIONS))
        if self._file is not None and self._file.parent.is_dir() and not self._file.exists():
            version = None  # who only looks makes no file
        else:
            with self.transaction(read_only=True) as connection:
                version = _version(connection)
        _known(scripts, version)
        if version != scripts.get_current_head():
            raise SchemaError(
                f"{self._where} has {'no tables yet' if version is None else f'the tables of version {version}'},"
                f" {scripts.get_current_head()} is needed: run `headrace database upgrade`"
            )


_READ_ONLY: dict[str, dict[str, Any]] = {  # Any: execution options
    "postgresql": {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True},
    "sqlite": {"headrace_read_only": True},
}


def _file(url: str) -> Path | None:
    return Path(urlsplit(url).path.removeprefix("/")) if url.startswith("sqlite") else None


def _postgresql(url: str, password: str | None) -> sa.Engine:
    made = sa.make_url(url).set(drivername="postgresql+psycopg", password=password)
    return sa.create_engine(
        made,
        pool_size=1,
        max_overflow=2,
        pool_timeout=_CONNECT_SECONDS,
        pool_pre_ping=True,
        hide_parameters=True,
        connect_args={
            "connect_timeout": _CONNECT_SECONDS,
            "application_name": "headrace",
            "client_encoding": "utf8",  # a database in SQL_ASCII would have text come as bytes
            "options": f"-c statement_timeout={_STATEMENT_SECONDS}s -c lock_timeout={_STATEMENT_SECONDS}s"
            " -c timezone=UTC",
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 2,
            "tcp_user_timeout": 10_000,
        },
    )


def _sqlite(path: Path) -> sa.Engine:
    engine = sa.create_engine(f"sqlite:///{path}", hide_parameters=True, connect_args={"timeout": _BUSY_SECONDS})

    @sa.event.listens_for(engine, "do_connect")
    def private(*_: object) -> None:
        # Keys' hashes and who uses what are nobody else's.
        try:
            os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
        except OSError as exc:
            raise OperationalError(None, None, exc) from None

    @sa.event.listens_for(engine, "connect")
    def configured(connection: sqlite3.Connection, _: object) -> None:
        connection.isolation_level = None  # transactions begin where we say so, and hold what makes tables too
        _write_ahead(connection)
        connection.execute("PRAGMA synchronous = FULL")

    @sa.event.listens_for(engine, "begin")
    def begun(connection: sa.Connection) -> None:
        # Who will write says so at once: it could not any more, once another has written.
        read_only = connection.get_execution_options().get("headrace_read_only")
        connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")

    return engine


def _write_ahead(connection: sqlite3.Connection) -> None:
    """Readers and a writer beside each other. SQLite does not wait where two change a new file to it at once: we do."""
    deadline = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as exc:
            busy = exc.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY  # of which there are several kinds
            if not busy or time.monotonic() > deadline:
                raise
            time.sleep(_RETRY_SECONDS)  # the pace of retries
        else:
            return


def _version(connection: sa.Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _known(scripts: ScriptDirectory, version: str | None) -> None:
    if version is not None and version not in {script.revision for script in scripts.walk_revisions()}:
        raise SchemaError(f"the database has the tables of version {version}, which is newer than this Headrace")


def _where(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme == "sqlite":
        return f"the database {parts.path.removeprefix('/')}"
    return f"the database {parts.path.strip('/')} at {parts.hostname}:{parts.port or 5432}"


def _text(exc: SQLAlchemyError) -> str:
    """What the driver says, in one line. The statement and its values are left out."""
    said = str(exc.orig) if isinstance(exc, DBAPIError) and exc.orig is not None else type(exc).__name__
    return " ".join(said.split())[:300]
