"""The tables of trust: what is secret, who may do what, what was done by whom.

As in `schema.py`: only the `store*` modules and `queries.py` speak SQL, times are unix seconds.
"""

from __future__ import annotations

from sqlalchemy import JSON, CheckConstraint, Column, Float, Index, Integer, Table, Text, UniqueConstraint

from trainforge.sender.schema import metadata

__all__ = ["metadata"]

# `sealed` is encrypted with the key in a file beside the database (`sealed.py`).
secrets = Table(
    "secrets",
    metadata,
    Column("repository_id", Text, primary_key=True),  # a built-in one may have yet to be pushed
    Column("name", Text, primary_key=True),
    Column("sealed", Text, nullable=False),
    Column("branches", JSON, nullable=False),  # globs; [] is the default branch alone
    Column("changed", Float, nullable=False),
    Column("by", Text, nullable=False),
)

# Append-only; each row's hash covers the one before it (`store_audit.py`).
audit = Table(
    "audit",
    metadata,
    Column("n", Integer, primary_key=True, autoincrement=False),
    Column("time", Float, nullable=False),
    Column("actor", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("detail", JSON, nullable=False),
    Column("hash", Text, nullable=False),
)

# Pushes that a webhook was acknowledged for and that have led to no event yet.
pushes = Table(
    "pushes",
    metadata,
    Column("repository_id", Text, primary_key=True),
    Column("ref", Text, primary_key=True),
    Column("commit", Text, primary_key=True),
    Column("before", Text, nullable=False),
    Column("time", Float, nullable=False),
)

# The outbox of notifications: one row for each job, occasion (`end`, `waiting`) and target.
notices = Table(
    "notices",
    metadata,
    Column("job_id", Text, primary_key=True),
    Column("occasion", Text, primary_key=True),
    Column("target", Text, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("created", Float, nullable=False),
    Column("due", Float),  # when it is sent next; null once it was sent or given up
    Column("tries", Integer, nullable=False, server_default="0"),
    Column("sent", Float),
    Column("problem", Text, nullable=False, server_default=""),
    Index("ix_notices_due", "due"),
)

# The people who may log in. Without a password one gets in by a one-time link alone.
users = Table(
    "users",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("name", Text, nullable=False),
    Column("role", Text, nullable=False),
    Column("password", Text),
    Column("created", Float, nullable=False),
    Column("seen", Float),
    CheckConstraint("role IN ('viewer', 'operator', 'admin')", name="role"),
    UniqueConstraint("name"),
    sqlite_autoincrement=True,  # the id of somebody who was removed is never another's
)
