"""Writes that share a commit: durable once acknowledged, and each undone alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa

from support.waiting import wait_for
from trainforge.sender.database import Database

THREADS = 8
tables = sa.MetaData()
rows = sa.Table("rows", tables, sa.Column("n", sa.Integer, primary_key=True))
strict = sa.Table(
    "strict",
    tables,
    sa.Column("n", sa.Integer, sa.ForeignKey("rows.n", deferrable=True, initially="DEFERRED")),
)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(f"sqlite:///{tmp_path / 'some.db'}")
    tables.create_all(database.engine)
    yield database
    database.close()


@pytest.fixture
def commits(database: Database) -> list[str]:
    seen: list[str] = []
    sa.event.listen(database.engine, "commit", lambda connection: seen.append("commit"))
    return seen


def add(database: Database, n: int) -> None:
    with database.write() as c:
        c.execute(sa.insert(rows).values(n=n))


def stored(database: Database) -> set[int]:
    with database.read() as c:
        return set(c.execute(sa.select(rows.c.n)).scalars())


def together(database: Database, *writes: Callable[[], None]) -> list[Future[None]]:
    """Have these writes wait for their turn behind one other, and so share its commit."""
    with ThreadPoolExecutor(len(writes)) as pool, database.write() as c:
        done = [pool.submit(write) for write in writes]
        wait_for("writes in the queue", lambda: database.queue == len(writes), 20)
        c.execute(sa.insert(rows).values(n=0))
    return done


def test_waiting_writes_share_a_commit(database: Database, commits: list[str]) -> None:
    done = together(database, *(lambda n=n: add(database, n) for n in range(1, THREADS + 1)))
    assert [one.exception() for one in done] == [None] * THREADS
    assert stored(database) == set(range(THREADS + 1))
    assert len(commits) <= 1 + THREADS // 2, "the one it waited for, and few more"


def test_an_error_undoes_its_own_write_alone(database: Database) -> None:
    def fail() -> None:
        with database.write() as c:
            c.execute(sa.insert(rows).values(n=100))
            raise ValueError("mine")

    good, bad, double = together(database, lambda: add(database, 1), fail, lambda: add(database, 0))
    assert good.exception() is None
    assert isinstance(bad.exception(), ValueError)
    assert isinstance(double.exception(), sa.exc.IntegrityError)
    assert stored(database) == {0, 1}
    add(database, 2)
    assert stored(database) == {0, 1, 2}


def test_a_commit_that_fails_is_told_to_all_who_share_it(database: Database) -> None:
    def break_at_commit() -> None:
        with database.write() as c:
            c.execute(sa.insert(strict).values(n=12345))

    done: list[Future[None]] = []
    with pytest.raises(sa.exc.IntegrityError), ThreadPoolExecutor(1) as pool, database.write() as c:
        done.append(pool.submit(break_at_commit))
        wait_for("a write in the queue", lambda: database.queue == 1, 20)
        c.execute(sa.insert(rows).values(n=0))
    assert isinstance(done[0].exception(), sa.exc.IntegrityError)
    assert stored(database) == set()
    add(database, 1)
    assert stored(database) == {1}, "the next write has a transaction of its own"


WRITE_FOREVER = """
import os, sys, threading
from itertools import count
import sqlalchemy as sa
from trainforge.sender.database import Database

database, numbers = Database(sys.argv[1]), count()

def work():
    while True:
        n = next(numbers)
        with database.write() as c:
            c.execute(sa.text("INSERT INTO rows (n) VALUES (:n)"), {"n": n})
        os.write(1, b"%d\\n" % n)

for _ in range(8):
    threading.Thread(target=work).start()
"""


def test_what_was_acknowledged_survives_a_kill(database: Database) -> None:
    writer = subprocess.Popen([sys.executable, "-c", WRITE_FOREVER, database.url], stdout=subprocess.PIPE)
    assert writer.stdout is not None
    with writer.stdout as told:
        lines = [told.readline() for _ in range(300)]
        os.kill(writer.pid, signal.SIGKILL)
        lines += told.readlines()
    assert writer.wait(20) == -signal.SIGKILL
    acknowledged = {int(line) for line in lines if line.endswith(b"\n")}
    assert len(acknowledged) >= 300
    assert acknowledged <= stored(database)
    with database.read() as c:
        assert c.exec_driver_sql("PRAGMA quick_check").scalar() == "ok"
