"""The tables of GitHub: repositories that are connected to it, and Apps of ours there.

As in `schema.py`: only the `store*` modules and `queries.py` speak SQL, times are unix seconds. Tokens, keys
and secrets of webhooks are documents that are encrypted as secrets are (`sealed.py`).
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Float, Index, Table, Text

from trainforge.sender.schema_trust import metadata

__all__ = ["metadata"]

github_connections = Table(
    "github_connections",
    metadata,
    Column("repository_id", Text, primary_key=True),
    Column("full_name", Text, nullable=False),
    Column("number", BigInteger, nullable=False),  # GitHub's own id, which survives renames
    Column("api_url", Text, nullable=False),
    Column("app_id", BigInteger),  # null: by a token
    Column("hook_id", BigInteger),  # null: the App's own hook
    Column("by", Text, nullable=False),
    Column("connected", Float, nullable=False),
    Column("delivered", Float),  # when its last delivery came
    Column("pinged", Float),
    Column("swept", Float),  # until when failed deliveries have been asked for again
    Column("problem", Text, nullable=False, server_default=""),
    Index("ix_github_connections_number", "number"),
    Index("ix_github_connections_hook", "hook_id"),
)

github_apps = Table(
    "github_apps",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    Column("api_url", Text, nullable=False),
    Column("slug", Text, nullable=False),
    Column("url", Text, nullable=False),
    Column("by", Text, nullable=False),
    Column("created", Float, nullable=False),
    Column("pinged", Float),
    Column("swept", Float),
)
