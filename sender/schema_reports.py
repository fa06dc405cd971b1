"""The tables of telling GitHub: what it was told of each job and pull request, and what people asked there.

As in `schema.py`: only the `store*` modules and `queries.py` speak SQL, times are unix seconds. `told` is a
digest of what was told last, `begun` when telling it was first tried, `due` when it may be tried again.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    Index,
    Integer,
    PrimaryKeyConstraint,
    Table,
    Text,
    text,
)

from trainforge.sender.schema_trust import metadata

__all__ = ["metadata"]


def _no(name: str) -> Column[bool]:
    return Column(name, Boolean, nullable=False, server_default=text("false"))


def _text(name: str) -> Column[str]:
    return Column(name, Text, nullable=False, server_default="")


def _telling() -> list[Column[Any]]:
    return [
        _text("told"),
        Column("remote_id", BigInteger),  # of the check run or comment, as the API calls it
        Column("due", Float, nullable=False, server_default="0"),
        Column("tries", Integer, nullable=False, server_default="0"),
        _text("problem"),
    ]


# The commit status or check run of each job; `done`: nothing of it will change any more.
github_reports = Table(
    "github_reports",
    metadata,
    Column("job_id", Text, primary_key=True),
    Column("begun", Float),
    _no("done"),
    *_telling(),
)

# The pull requests that are open, as the API last said, and the comment that each has.
github_pulls = Table(
    "github_pulls",
    metadata,
    Column("repository_id", Text, nullable=False),
    Column("number", Integer, nullable=False),
    Column("head_sha", Text, nullable=False),
    Column("head_ref", Text, nullable=False),
    Column("base_ref", Text, nullable=False),
    Column("base_sha", Text, nullable=False),
    _no("fork"),
    _no("open"),
    Column("seen", Float, nullable=False),
    Column("plan", JSON(none_as_null=True)),  # what it would run, worked out once for each head and base
    _text("planned"),  # the head and base that `plan` is for; empty once it is closed and its jobs are over
    _no("asked"),  # somebody asked for the plan
    _no("stale"),  # something was said of it: the API is asked how it stands
    _text("mark"),  # of its comment, drawn before that is written: by it, it is found again
    *_telling(),
    PrimaryKeyConstraint("repository_id", "number"),
    Index("ix_github_pulls_head", "repository_id", "head_sha"),
)

# What comments and buttons asked for. `answer` is written with what was done, and told after it.
github_commands = Table(
    "github_commands",
    metadata,
    Column("repository_id", Text, nullable=False),
    Column("origin", Text, nullable=False),  # the comment, or the delivery of a button's event
    Column("comment_id", BigInteger),
    Column("number", Integer),  # of the pull request; of a button null
    _text("job"),  # that a button is of
    Column("author", Text, nullable=False),
    Column("words", Text, nullable=False),
    Column("created", Float, nullable=False),
    Column("acted", Float),
    _text("reaction"),
    _text("answer"),
    Column("answered", Float),
    Column("due", Float, nullable=False, server_default="0"),
    Column("tries", Integer, nullable=False, server_default="0"),
    PrimaryKeyConstraint("repository_id", "origin"),
    Index(
        "ix_github_commands_open",
        "created",
        sqlite_where=text("answered IS NULL"),
        postgresql_where=text("answered IS NULL"),
    ),
)
