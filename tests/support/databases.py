"""Databases for tests: SQLite in a folder, and PostgreSQL where TRAINFORGE_TEST_POSTGRES names a server."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator

import pytest
import sqlalchemy as sa

POSTGRES = os.environ.get("TRAINFORGE_TEST_POSTGRES", "")
KINDS = ["sqlite", "postgres"]


def database_url(kind: str) -> Iterator[str]:
    """A database of one test's own: its URL; empty for SQLite in the data directory."""
    if kind == "sqlite":
        yield ""
        return
    if not POSTGRES:
        pytest.skip("TRAINFORGE_TEST_POSTGRES names no server")
    name = f"tf_{secrets.token_hex(6)}"
    admin = sa.create_engine(
        POSTGRES.replace("postgresql://", "postgresql+psycopg://"), isolation_level="AUTOCOMMIT"
    )
    with admin.connect() as c:
        c.exec_driver_sql(f"CREATE DATABASE {name}")
    yield sa.engine.make_url(POSTGRES).set(database=name).render_as_string(hide_password=False)
    with admin.connect() as c:
        c.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")
    admin.dispose()
