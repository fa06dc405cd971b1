"""GitHub and bundles"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """One function below per subject."""
    _gates()
    _reports()
    _connections()
    _unwatching()


def _unwatching() -> None:
    op.add_column("repositories", sa.Column("unwatched", sa.Float(), nullable=True))


def _gates() -> None:
    op.add_column("jobs", sa.Column("gates", sa.JSON(), server_default=sa.text("'[]'"), nullable=False))


def _telling() -> list[sa.Column[object]]:
    return [
        sa.Column("told", sa.Text(), server_default="", nullable=False),
        sa.Column("remote_id", sa.BigInteger(), nullable=True),
        sa.Column("due", sa.Float(), server_default="0", nullable=False),
        sa.Column("tries", sa.Integer(), server_default="0", nullable=False),
        sa.Column("problem", sa.Text(), server_default="", nullable=False),
    ]


def _reports() -> None:
    """What GitHub was told, and what was asked there."""
    no = sa.text("false")
    op.create_table(
        "github_reports",
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("begun", sa.Float(), nullable=True),
        sa.Column("done", sa.Boolean(), server_default=no, nullable=False),
        *_telling(),
        sa.PrimaryKeyConstraint("job_id", name="pk_github_reports"),
    )
    op.create_table(
        "github_pulls",
        sa.Column("repository_id", sa.Text(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("head_sha", sa.Text(), nullable=False),
        sa.Column("head_ref", sa.Text(), nullable=False),
        sa.Column("base_ref", sa.Text(), nullable=False),
        sa.Column("base_sha", sa.Text(), nullable=False),
        sa.Column("fork", sa.Boolean(), server_default=no, nullable=False),
        sa.Column("open", sa.Boolean(), server_default=no, nullable=False),
        sa.Column("seen", sa.Float(), nullable=False),
        sa.Column("plan", sa.JSON(), nullable=True),
        sa.Column("planned", sa.Text(), server_default="", nullable=False),
        sa.Column("asked", sa.Boolean(), server_default=no, nullable=False),
        sa.Column("stale", sa.Boolean(), server_default=no, nullable=False),
        sa.Column("mark", sa.Text(), server_default="", nullable=False),
        *_telling(),
        sa.PrimaryKeyConstraint("repository_id", "number", name="pk_github_pulls"),
    )
    op.create_index("ix_github_pulls_head", "github_pulls", ["repository_id", "head_sha"], unique=False)
    op.create_table(
        "github_commands",
        sa.Column("repository_id", sa.Text(), nullable=False),
        sa.Column("origin", sa.Text(), nullable=False),
        sa.Column("comment_id", sa.BigInteger(), nullable=True),
        sa.Column("number", sa.Integer(), nullable=True),
        sa.Column("job", sa.Text(), server_default="", nullable=False),
        sa.Column("author", sa.Text(), nullable=False),
        sa.Column("words", sa.Text(), nullable=False),
        sa.Column("created", sa.Float(), nullable=False),
        sa.Column("acted", sa.Float(), nullable=True),
        sa.Column("reaction", sa.Text(), server_default="", nullable=False),
        sa.Column("answer", sa.Text(), server_default="", nullable=False),
        sa.Column("answered", sa.Float(), nullable=True),
        sa.Column("due", sa.Float(), server_default="0", nullable=False),
        sa.Column("tries", sa.Integer(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("repository_id", "origin", name="pk_github_commands"),
    )
    op.create_index(
        "ix_github_commands_open",
        "github_commands",
        ["created"],
        sqlite_where=sa.text("answered IS NULL"),
        postgresql_where=sa.text("answered IS NULL"),
    )


def _connections() -> None:
    """Repositories that are connected to GitHub, and Apps of ours there."""
    op.create_table(
        "github_connections",
        sa.Column("repository_id", sa.Text(), nullable=False),
        sa.Column("full_name", sa.Text(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("api_url", sa.Text(), nullable=False),
        sa.Column("app_id", sa.BigInteger(), nullable=True),
        sa.Column("hook_id", sa.BigInteger(), nullable=True),
        sa.Column("by", sa.Text(), nullable=False),
        sa.Column("connected", sa.Float(), nullable=False),
        sa.Column("delivered", sa.Float(), nullable=True),
        sa.Column("pinged", sa.Float(), nullable=True),
        sa.Column("swept", sa.Float(), nullable=True),
        sa.Column("problem", sa.Text(), server_default="", nullable=False),
        sa.PrimaryKeyConstraint("repository_id", name="pk_github_connections"),
    )
    op.create_index("ix_github_connections_number", "github_connections", ["number"], unique=False)
    op.create_index("ix_github_connections_hook", "github_connections", ["hook_id"], unique=False)
    op.create_table(
        "github_apps",
        sa.Column("id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("api_url", sa.Text(), nullable=False),
        sa.Column("slug", sa.Text(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("by", sa.Text(), nullable=False),
        sa.Column("created", sa.Float(), nullable=False),
        sa.Column("pinged", sa.Float(), nullable=True),
        sa.Column("swept", sa.Float(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_github_apps"),
    )
