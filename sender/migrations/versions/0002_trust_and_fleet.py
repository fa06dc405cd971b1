"""Trust and fleet"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """One function below per subject."""
    _listing()
    _notices()
    _audit()
    _secrets()
    _membership()
    _people()
    _pushes()
    _results()
    _levels()


def _listing() -> None:
    """What the list of jobs is filtered by; PostgreSQL reads it from the rows as quickly."""
    if op.get_bind().dialect.name == "sqlite":
        columns = ["created", "id", "state", "project", "repository_id", "ref", "author", "source"]
        op.create_index("ix_jobs_listing", "jobs", [*columns, "commit", "subject"], unique=False)


def _notices() -> None:
    op.create_table(
        "notices",
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("occasion", sa.Text(), nullable=False),
        sa.Column("target", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("created", sa.Float(), nullable=False),
        sa.Column("due", sa.Float(), nullable=True),
        sa.Column("tries", sa.Integer(), server_default="0", nullable=False),
        sa.Column("sent", sa.Float(), nullable=True),
        sa.Column("problem", sa.Text(), server_default="", nullable=False),
        sa.PrimaryKeyConstraint("job_id", "occasion", "target", name="pk_notices"),
    )
    op.create_index("ix_notices_due", "notices", ["due"], unique=False)
    op.create_index("ix_jobs_ended", "jobs", ["ended"], unique=False)


def _results() -> None:
    op.add_column("jobs", sa.Column("result_missing", sa.Float(), nullable=True))


def _levels() -> None:
    op.add_column("log_lines", sa.Column("level", sa.Text(), server_default="info", nullable=False))


def _secrets() -> None:
    op.create_table(
        "secrets",
        sa.Column("repository_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("sealed", sa.Text(), nullable=False),
        sa.Column("branches", sa.JSON(), nullable=False),
        sa.Column("changed", sa.Float(), nullable=False),
        sa.Column("by", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("repository_id", "name", name="pk_secrets"),
    )


def _pushes() -> None:
    op.create_table(
        "pushes",
        sa.Column("repository_id", sa.Text(), nullable=False),
        sa.Column("ref", sa.Text(), nullable=False),
        sa.Column("commit", sa.Text(), nullable=False),
        sa.Column("before", sa.Text(), nullable=False),
        sa.Column("time", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("repository_id", "ref", "commit", name="pk_pushes"),
    )


def _audit() -> None:
    op.create_table(
        "audit",
        sa.Column("n", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("time", sa.Float(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("detail", sa.JSON(), nullable=False),
        sa.Column("hash", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("n", name="pk_audit"),
    )


def _people() -> None:
    """Whoever was logged in logs in again: sessions and links belong to an account now."""
    op.create_table(
        "users",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("password", sa.Text(), nullable=True),
        sa.Column("created", sa.Float(), nullable=False),
        sa.Column("seen", sa.Float(), nullable=True),
        sa.CheckConstraint("role IN ('viewer', 'operator', 'admin')", name="ck_users_role"),
        sa.PrimaryKeyConstraint("id", name="pk_users"),
        sa.UniqueConstraint("name", name="uq_users_name"),
        sqlite_autoincrement=True,
    )
    op.add_column("access_tokens", sa.Column("role", sa.Text(), server_default="admin", nullable=False))
    op.add_column("access_tokens", sa.Column("user_id", sa.Integer(), nullable=True))
    op.drop_table("login_links")
    op.drop_table("sessions")
    op.create_table(
        "login_links",
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("user_id", sa.Integer(), nullable=False),
        sa.Column("created", sa.Float(), nullable=False),
        sa.Column("expires", sa.Float(), nullable=False),
        sa.Column("used", sa.Float(), nullable=True),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name="fk_login_links_user_id", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("digest", name="pk_login_links"),
    )
    op.create_table(
        "sessions",
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("user_id", sa.Integer(), nullable=False),
        sa.Column("created", sa.Float(), nullable=False),
        sa.Column("expires", sa.Float(), nullable=False),
        sa.Column("seen", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name="fk_sessions_user_id", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("digest", name="pk_sessions"),
    )


def _membership() -> None:
    """Executors that wait for approval, come for a while, or change their keys."""
    for table, names in (("executors", ("pending", "ephemeral")), ("join_tokens", ("approval", "ephemeral"))):
        for name in names:
            op.add_column(
                table, sa.Column(name, sa.Boolean(), server_default=sa.text("false"), nullable=False)
            )
    op.add_column("executors", sa.Column("jobs_left", sa.Integer(), nullable=True))
    op.add_column("executors", sa.Column("previous_key", sa.JSON(), nullable=True))
    op.add_column("executors", sa.Column("previous_until", sa.Float(), nullable=True))
    op.add_column("join_tokens", sa.Column("max_jobs", sa.Integer(), nullable=True))
