"""Databases for tests: SQLite in a folder, and a PostgreSQL server that the first test in need starts."""

from __future__ import annotations

import functools
import os
import pwd
import secrets
import shutil
import socket
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import sqlalchemy as sa

KINDS = ["sqlite", "postgres"]
_stops: list[Callable[[], None]] = []


def database_url(kind: str) -> Iterator[str]:
    """A database of one test's own: its URL; empty for SQLite in the data directory."""
    if kind == "sqlite":
        yield ""
        return
    server = postgres()
    name = f"tf_{secrets.token_hex(6)}"
    admin = sa.create_engine(
        server.replace("postgresql://", "postgresql+psycopg://"), isolation_level="AUTOCOMMIT"
    )
    with admin.connect() as c:
        c.exec_driver_sql(f"CREATE DATABASE {name}")
    yield sa.engine.make_url(server).set(database=name).render_as_string(hide_password=False)
    with admin.connect() as c:
        c.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")
    admin.dispose()


def prepared(folder: Path) -> Path:
    """The folder, with an empty database of today's schema in it: making one takes longer than most tests."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    file = folder / "trainforge.db"
    if not file.exists():
        with _making:  # worlds side by side are threads of one process, and alembic knows one
            file.write_bytes(_empty())
    return folder


_making = threading.Lock()


@functools.cache
def _empty() -> bytes:
    from trainforge.sender.store import Store  # noqa: PLC0415 - most test processes need no sender

    with tempfile.TemporaryDirectory() as made:
        Store.open("", Path(made)).close()
        return Path(made, "trainforge.db").read_bytes()


@functools.cache
def postgres() -> str:
    """The URL of a PostgreSQL server of this test process, until `stop_postgres`."""
    folder = Path(tempfile.mkdtemp(prefix="trainforge-postgres-"))
    user = _owner(folder)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    data, log = folder / "data", folder / "log"
    _run(user, "initdb", "-D", str(data), "-A", "trust", "-U", "postgres", "--no-sync")
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder} -c fsync=off"
    _run(user, "pg_ctl", "-D", str(data), "-l", str(log), "-o", options, "-w", "start")

    def stop() -> None:
        _run(user, "pg_ctl", "-D", str(data), "-m", "immediate", "stop")
        shutil.rmtree(folder, ignore_errors=True)

    _stops.append(stop)
    return f"postgresql://postgres@127.0.0.1:{port}/postgres"


def stop_postgres() -> None:
    while _stops:
        _stops.pop()()


def _owner(folder: Path) -> str | None:
    """PostgreSQL refuses to run as root: then its own user gets the folder."""
    if os.getuid() != 0:
        return None
    user = pwd.getpwnam("postgres")
    os.chown(folder, user.pw_uid, user.pw_gid)
    return user.pw_name


def _run(user: str | None, program: str, *arguments: str) -> None:
    # Debian keeps the server's programs off PATH; pg_ctl holds a pipe open, so its output goes to a file.
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{program}"))
    path = shutil.which(program) or (str(found[-1]) if found else program)
    with tempfile.TemporaryFile() as said:
        done = subprocess.run(
            [path, *arguments],
            user=user,
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            check=False,
        )
        said.seek(0)
        assert done.returncode == 0, said.read().decode(errors="replace")
