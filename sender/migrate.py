"""Bringing a database's schema up to date: alembic's steps from `migrations/`, in one transaction."""

from __future__ import annotations

import contextlib
import logging
import sqlite3
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from trainforge.config.errors import SettingsError
from trainforge.config.failpoints import failpoint

log = logging.getLogger(__name__)
FOLDER = Path(__file__).resolve().parent / "migrations"
HEAD = "0003"  # the newest step; a test compares it with the folder


def current(connection: Connection) -> str | None:
    """The step that this database is at; None for an empty one."""
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    row = connection.exec_driver_sql("SELECT version_num FROM alembic_version").first()
    return str(row[0]) if row else None


def back_up(engine: Engine, folder: Path) -> Path | None:
    """Copy a SQLite database that is about to be changed; gives the copy, or None where nothing changes.

    The copy appears whole or not at all, and is never written over.
    """
    with engine.connect() as connection:
        at = current(connection)
        if at is None or at >= HEAD:
            return None
        copy = folder / f"before-{HEAD}.db"
        if copy.exists():
            return copy
        folder.mkdir(mode=0o700, exist_ok=True)
        aside = copy.with_suffix(".new")
        aside.unlink(missing_ok=True)
        connection.rollback()  # copying waits for writers, and this connection would be one
        source = connection.connection.driver_connection
        if not isinstance(source, sqlite3.Connection):
            return None
        with contextlib.closing(sqlite3.connect(aside)) as target:
            source.backup(target)
        aside.chmod(0o600)
        aside.replace(copy)
        log.info("the database as it was is kept in %s", copy)
        return copy


def migrate(engine: Engine) -> None:
    """Take every step that is missing, all of them or none.

    Raises:
        SettingsError: the database was written by a newer TrainForge.
    """
    with engine.begin() as connection:
        if connection.dialect.name == "postgresql":  # one of several starting senders migrates
            connection.exec_driver_sql("SELECT pg_advisory_xact_lock(724837)")
        at = current(connection)
        if at == HEAD:
            return
        if at is not None and at > HEAD:
            raise SettingsError(
                f"the database is at schema {at}, this program knows {HEAD}", hint="upgrade this sender"
            )
        upgrade(connection, HEAD)
        failpoint("51.sender.migrate")


def upgrade(connection: Connection, to: str) -> None:
    """Take the steps up to `to`, in the transaction that the connection has begun."""
    from alembic import command  # noqa: PLC0415 - a quarter of a second that an up-to-date database saves
    from alembic.config import Config  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", str(FOLDER).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    command.upgrade(config, to)
