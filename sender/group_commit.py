"""Group commit for SQLite: small writes of many threads become durable together.

All threads write through one connection, one after the other, each inside a savepoint, so that an error
undoes one write and not its neighbours'. Whoever leaves while others wait for their turn leaves the
commit to them; the last one, or the one that makes the batch large or old enough, commits for all. A
write returns, or raises, only after that commit: nothing is acknowledged, and no refusal is founded on
anything, that a crash could still undo.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

MOST = 64
LONGEST_S = 0.05
ORPHANED_S = 1.0


@dataclass
class Batch:
    """The writes of one transaction. `failed`: why none of them was kept."""

    connection: Connection
    begun: float = field(default_factory=time.monotonic)
    writes: int = 0
    failed: BaseException | None = None
    over: threading.Event = field(default_factory=threading.Event)

    @property
    def full(self) -> bool:
        return self.writes >= MOST or time.monotonic() - self.begun >= LONGEST_S


class Writer:
    """The one who writes to a SQLite file in this process."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._turn = threading.Lock()
        self._counting = threading.Lock()
        self.queue = 0  # threads that wait for their turn
        self._connection: Connection | None = None
        self._batch: Batch | None = None

    def close(self) -> None:
        with self._turn:
            self._disconnect()

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """One write: undone alone on an exception, otherwise durable when this returns.

        Raises:
            sqlalchemy.exc.DBAPIError: the batch could not be committed, and nothing of it is kept.
        """
        self._take_turn()
        try:
            batch = self._batch = self._batch or self._begin()
        except BaseException:
            self._turn.release()
            raise
        try:
            with _part(batch):
                yield batch.connection
        finally:
            self._leave(batch)
            if batch.failed is not None:
                raise batch.failed

    # --- turns ------------------------------------------------------------------------------------------

    def _take_turn(self) -> None:
        with self._counting:
            self.queue += 1
        try:
            self._turn.acquire()
        finally:
            with self._counting:
                self.queue -= 1

    def _leave(self, batch: Batch) -> None:
        """Commit, or leave that to those who wait for their turn; either way, wait for it."""
        batch.writes += 1
        try:
            if not self.queue or batch.full or batch.failed is not None:
                self._commit(batch)
        finally:
            self._turn.release()
        while not batch.over.wait(ORPHANED_S):  # whoever was to commit was interrupted while it waited
            with self._turn:
                if not batch.over.is_set():
                    self._commit(batch)

    # --- in turn ----------------------------------------------------------------------------------------

    def _begin(self) -> Batch:
        if self._connection is None:
            self._connection = self._engine.connect()
        try:
            self._connection.begin()
        except BaseException:
            self._disconnect()
            raise
        return Batch(self._connection)

    def _commit(self, batch: Batch) -> None:
        self._batch = None
        try:
            if batch.failed is None:
                batch.connection.commit()
        except sa.exc.DBAPIError as error:
            batch.failed = error
        except BaseException as error:
            batch.failed = error
            raise
        finally:
            if batch.failed is not None:
                self._disconnect()
            batch.over.set()

    def _disconnect(self) -> None:
        """Closing the file itself rolls back what is not committed, also after a commit that failed."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.invalidate()
            connection.close()


@contextmanager
def _part(batch: Batch) -> Iterator[None]:
    """A savepoint. Where SQLite has given up the whole transaction (a full disk), the batch has failed."""
    connection = batch.connection
    connection.exec_driver_sql("SAVEPOINT part")
    try:
        yield
    except BaseException as error:
        try:
            connection.exec_driver_sql("ROLLBACK TO part")
            connection.exec_driver_sql("RELEASE part")
        except sa.exc.DBAPIError:
            batch.failed = error
        raise
    connection.exec_driver_sql("RELEASE part")
