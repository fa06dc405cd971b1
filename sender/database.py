"""The engine below the store: SQLite with the right pragmas, PostgreSQL by URL, one writer at a time.

A write to SQLite waits its turn in this process on a plain lock, so that nothing ever polls for the file's
lock; `synchronous=FULL` makes a commit durable, and `group_commit` lets many writes share one.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.pool import ConnectionPoolEntry

from trainforge.config.disk import is_full
from trainforge.config.errors import SettingsError, StorageFull
from trainforge.config.failpoints import failpoint
from trainforge.sender.group_commit import Writer

BUSY_MS = 15_000
AUDITED = "audited"  # in a connection's `info`: lines of the audit log to note once they are committed
log = logging.getLogger(__name__)


def database_url(url: str, data_dir: Path) -> str:
    """The configured URL with its driver named, or the SQLite file in the data directory."""
    if not url:
        return f"sqlite:///{data_dir / 'trainforge.db'}"
    for prefix in ("postgresql://", "postgres://"):
        if url.startswith(prefix):
            return "postgresql+psycopg://" + url.removeprefix(prefix)
    if url.startswith(("postgresql+psycopg://", "sqlite:///")):
        return url
    raise SettingsError(
        "database_url names a database that is not supported", hint="use postgresql://… or leave it empty"
    )


def make_engine(url: str) -> Engine:
    if not url.startswith("sqlite"):
        return sa.create_engine(url, pool_pre_ping=True, pool_size=10, isolation_level="READ COMMITTED")
    engine = sa.create_engine(
        url,
        pool_size=10,
        max_overflow=-1,  # as many as there are threads; few at a time, for each has a cache of its own
        pool_use_lifo=True,
        connect_args={"check_same_thread": False, "timeout": 15},
    )
    sa.event.listen(engine, "connect", _configure_sqlite)
    sa.event.listen(engine, "begin", _begin_sqlite)
    return engine


def _configure_sqlite(connection: Any, _entry: ConnectionPoolEntry) -> None:
    connection.isolation_level = None  # transactions begin where `_begin_sqlite` says, not at pysqlite's whim
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", f"busy_timeout={BUSY_MS}", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    options = connection.get_execution_options()
    if not options.get("trainforge_single", False):
        read_only = options.get("trainforge_read_only", False)
        connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")


def _append(path: Path, text: str) -> None:
    """What is told here is committed: failing to repeat it in the file is a warning, not a failure."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(descriptor, text.encode())
        finally:
            os.close(descriptor)
    except OSError as error:
        log.warning("the audit log's hashes cannot be noted in %s: %s", path, error)


def _no_room(error: sa.exc.OperationalError | OSError) -> bool:
    cause = error.orig if isinstance(error, sa.exc.OperationalError) else error
    full = getattr(cause, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
    return full or getattr(cause, "sqlstate", None) == "53100" or (cause is not None and is_full(cause))


class Database:
    """Transactions, and what the two dialects spell differently."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.engine = make_engine(url)
        self.is_sqlite = self.engine.dialect.name == "sqlite"
        self.audit_heads: Path | None = None  # the file that repeats the audit log's hashes
        self.on_full: Callable[[], None] = lambda: None  # called when a write found no room
        options: dict[str, Any] = (
            {"trainforge_read_only": True} if self.is_sqlite else {"isolation_level": "REPEATABLE READ"}
        )
        self._reading = self.engine.execution_options(**options)
        options = {"trainforge_single": True} if self.is_sqlite else {"isolation_level": "AUTOCOMMIT"}
        self._asking = self.engine.execution_options(**options)
        self._writer = Writer(self.engine) if self.is_sqlite else None

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self.engine.dispose()

    @property
    def queue(self) -> int:
        """How many writes wait for their turn in this process."""
        return 0 if self._writer is None else self._writer.queue

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """One read-write transaction, durable at the end and rolled back on an exception.

        Raises:
            StorageFull: there is no room for it on the disk.
        """
        audited: list[str] = []
        try:
            failpoint("40.sender.write")
            with self._transaction() as connection:
                connection.info[AUDITED] = audited
                yield connection
        except (sa.exc.OperationalError, OSError) as error:
            if not _no_room(error):
                raise
            self.on_full()
            raise StorageFull("the disk of the sender's database is full", hint="free space on it") from error
        if audited and self.audit_heads is not None:
            _append(self.audit_heads, "".join(audited))

    def _transaction(self) -> AbstractContextManager[Connection]:
        return self.engine.begin() if self._writer is None else self._writer.write()

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """One consistent read; sees the newest committed state, never blocks a writer."""
        with self._reading.begin() as connection:
            yield connection

    @contextmanager
    def ask(self) -> Iterator[Connection]:
        """For one query that is consistent in itself; it spares the begin and the end of a transaction."""
        with self._asking.connect() as connection:
            yield connection

    def insert(self, table: sa.Table) -> sqlite.Insert | postgresql.Insert:
        """An INSERT that knows `on_conflict_do_nothing` and `on_conflict_do_update`."""
        return sqlite.insert(table) if self.is_sqlite else postgresql.insert(table)

    def add_new(self, c: Connection, table: sa.Table, values: Mapping[str, Any]) -> bool:
        """Insert a row unless its key is taken; whether it was new."""
        new = self.insert(table).values(dict(values)).on_conflict_do_nothing()
        return c.execute(new.returning(sa.literal(1))).first() is not None
