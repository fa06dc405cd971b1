"""The sender's tables. The `store*` modules write them, `queries.py` reads them; nobody else speaks SQL.

Times are unix seconds. JSON columns hold what the models in `config` dump. What is numbered per job
(`cursor`) is drawn from the job's own counter inside the writing transaction, so that readers who ask
for "everything after" never miss a row that was committed late.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    UniqueConstraint,
    text,
)


def _one_of(column: str, *values: str) -> CheckConstraint:
    listed = ", ".join(f"'{value}'" for value in values)
    return CheckConstraint(f"{column} IN ({listed})", name=column)


metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def _json() -> JSON:
    return JSON(none_as_null=True)


def _text(name: str, default: str = "") -> Column[str]:
    return Column(name, Text, nullable=False, server_default=default)


meta = Table(
    "meta",
    metadata,
    Column("key", Text, primary_key=True),
    Column("value", Text, nullable=False),
)

# Small things kept by name: planned jobs that wait to be confirmed, machines expected, preferences.
documents = Table(
    "documents",
    metadata,
    Column("kind", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("value", _json(), nullable=False),
    Column("updated", Float, nullable=False),
    PrimaryKeyConstraint("kind", "name"),
)

# --- what is watched, and what arrived ----------------------------------------------------------------

repositories = Table(
    "repositories",
    metadata,
    Column("id", Text, primary_key=True),  # "builtin:<name>" or "git:<normalised url>"
    Column("name", Text, nullable=False, unique=True),
    Column("url", Text, nullable=False),  # of the remote; for a built-in one, empty
    Column("kind", Text, nullable=False),
    _one_of("kind", "builtin", "remote", "local"),
    Column("created", Float, nullable=False),
    # False until the heads of a remote that existed before it was watched were noted without a job.
    Column("primed", Boolean, nullable=False, server_default=text("false")),
    Column("checked", Float),
    _text("error"),
    _text("scheduled"),  # the default branch's commit whose schedules were read
    Column("unwatched", Float),  # since when it is no longer looked at; its jobs stay
)

# The manifests of default branches that run at times; `handled` is the newest time that has led to jobs.
schedules = Table(
    "schedules",
    metadata,
    Column("repository_id", Text, ForeignKey("repositories.id", ondelete="CASCADE"), nullable=False),
    Column("manifest_path", Text, nullable=False),
    Column("ref", Text, nullable=False),
    Column("commit", Text, nullable=False),
    Column("crons", _json(), nullable=False),
    Column("handled", Float, nullable=False),
    PrimaryKeyConstraint("repository_id", "manifest_path"),
)

# The last commit of each branch that was handled: compared with the real heads, never with payloads.
heads = Table(
    "heads",
    metadata,
    Column("repository_id", Text, ForeignKey("repositories.id", ondelete="CASCADE"), nullable=False),
    Column("ref", Text, nullable=False),
    Column("commit", Text, nullable=False),
    Column("updated", Float, nullable=False),
    PrimaryKeyConstraint("repository_id", "ref"),
)

events = Table(
    "events",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("time", Float, nullable=False),
    Column("source", Text, nullable=False),
    Column("repository_id", Text, nullable=False),
    Column("repository", Text, nullable=False),
    _text("ref"),
    _text("old"),
    _text("new"),
    Column("decision", Text, nullable=False),
    _one_of("decision", "job", "ignored", "refused"),
    _text("reason"),
    Column("jobs", _json(), nullable=False),
    Index("ix_events_repository", "repository_id", "id"),
)

# Webhook delivery ids that were accepted, so that a redelivery is answered without work.
deliveries = Table(
    "deliveries",
    metadata,
    Column("source", Text, nullable=False),
    Column("delivery", Text, nullable=False),
    Column("time", Float, nullable=False),
    PrimaryKeyConstraint("source", "delivery"),
)

# --- jobs ---------------------------------------------------------------------------------------------

jobs = Table(
    "jobs",
    metadata,
    Column("id", Text, primary_key=True),
    Column("repository_id", Text, ForeignKey("repositories.id"), nullable=False),
    Column("event_id", Integer),
    _text("ref"),
    Column("commit", Text, nullable=False),
    _text("subject"),
    _text("author"),
    Column("manifest_path", Text, nullable=False),
    Column("manifest_blob", Text, nullable=False),
    _text("manifest_text"),  # as committed; empty where it was too large to be read
    Column("problems", _json(), nullable=False),  # why the manifest cannot be used, placed; usually []
    _text("project"),
    Column("source", Text, nullable=False),
    Column("overrides", _json(), nullable=False),
    Column("executors", _json(), nullable=False),  # ids chosen by hand; [] is any
    Column("priority", Integer, nullable=False, server_default="0"),
    Column("cell", _json(), nullable=False),  # parameters that its matrix gave it; {} where there is none
    _text("matrix"),  # the same for all jobs of one matrix
    _text("concurrency"),  # group of the repository's jobs that run one after the other
    Column("cancels", Boolean, nullable=False, server_default=text("false")),  # older ones of the group
    _text("rerun"),
    _text("rerun_of"),
    Column("created", Float, nullable=False),
    Column("queued", Float),  # since when it waits for machines alone; null while for other jobs
    Column("started", Float),
    Column("ended", Float),
    Column("state", Text, nullable=False),
    _one_of("state", "pending", "planning", "dispatching", "running", "completed", "failed", "cancelled"),
    Column("version", Integer, nullable=False, server_default="0"),  # optimistic lock of the life cycle
    Column("ending", Text),  # the outcome decided, not yet seen on the remote
    _text("code"),
    _text("reason"),
    Column("stop_requested", Float),
    _text("stop_code"),
    _text("stop_reason"),
    Column("waiting", _json(), nullable=False),  # {executor name or "remote": why}
    Column("plan", _json()),  # of the newest attempt
    Column("nodes", Integer, nullable=False, server_default="1"),
    Column("attempt", Integer, nullable=False, server_default="0"),  # number of the newest; 0 is none yet
    Column("publish_blocked", Text),  # the remote's words, where it refuses the result for good
    _text("result_branch"),
    _text("result_path"),
    _text("result_commit"),
    _text("result_outcome"),  # what the result on the remote says; the life cycle makes it the state
    _text("result_code"),
    _text("result_reason"),
    Column("result_missing", Float),  # since when its result is not on the remote any more
    Column("artifacts", _json(), nullable=False),  # of the result: [{path, size, sha256}]
    Column("gates", _json(), nullable=False, server_default=text("'[]'")),  # of the result: verdicts
    Column("metrics", _json(), nullable=False),  # the newest value of each
    Column("progress", Float),
    Column(
        "cursor", BigInteger, nullable=False, server_default="0"
    ),  # counter of log lines, metrics, timeline
    Index("ix_jobs_created", "created"),
    Index("ix_jobs_ended", "ended"),
    # Everything that the list of jobs is filtered by. PostgreSQL keeps wide values outside of the row anyway.
    Index(
        "ix_jobs_listing",
        *("created", "id", "state", "project", "repository_id", "ref", "author", "source"),
        *("commit", "subject"),
    ).ddl_if(dialect="sqlite"),
    Index(
        "ix_jobs_unfinished",
        "state",
        sqlite_where=text("ended IS NULL"),
        postgresql_where=text("ended IS NULL"),
    ),
    Index("ix_jobs_commit", "repository_id", "commit"),
    Index(
        "ix_jobs_matrix", "matrix", sqlite_where=text("matrix <> ''"), postgresql_where=text("matrix <> ''")
    ),
)

attempts = Table(
    "attempts",
    metadata,
    Column("job_id", Text, ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False),
    Column("number", Integer, nullable=False),
    Column("state", Text, nullable=False),
    _one_of(
        "state", "offered", "accepted", "running", "succeeded", "failed", "lost", "superseded", "cancelled"
    ),
    Column("token_incarnation", Integer, nullable=False),
    Column("token_number", BigInteger, nullable=False),
    Column("plan", _json()),
    Column("created", Float, nullable=False),
    Column("started", Float),
    Column("ended", Float),
    _text("code"),
    _text("reason"),
    PrimaryKeyConstraint("job_id", "number"),
)

nodes = Table(
    "nodes",
    metadata,
    Column("job_id", Text, ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("rank", Integer, nullable=False),
    Column("executor_id", Text, ForeignKey("executors.id"), nullable=False),
    Column("state", Text, nullable=False),
    _one_of("state", "pending", "running", "completed", "failed"),
    Column("phase", Text),
    _text("detail"),
    Column("gpus", _json(), nullable=False),
    Column("lease_until", Float, nullable=False),
    Column("acknowledged", BigInteger, nullable=False, server_default="0"),  # journal records stored
    Column("ready", _json()),  # the journal's facts, as the models of messages.py dump
    Column("reached", _json()),
    Column("begun", _json()),
    Column("outcome", _json()),  # `ended`
    Column("published", _json()),
    Column("finished", _json()),
    _text("code"),
    _text("reason"),
    Column("exit_code", Integer),
    Column("created", Float, nullable=False),
    Column("started", Float),
    Column("ended", Float),
    PrimaryKeyConstraint("job_id", "attempt", "rank"),
    Index("ix_nodes_executor", "executor_id", "ended"),
)

# The outbox: written with the change that causes it, delivered until accepted.
orders = Table(
    "orders",
    metadata,
    Column("id", Text, primary_key=True),
    Column("job_id", Text, ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("rank", Integer, nullable=False),
    Column("executor_id", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("body", _json(), nullable=False),
    Column("created", Float, nullable=False),
    Column("accepted", Float),
    Column("closed", Float),  # accepted, refused or withdrawn: no longer to be delivered
    _text("refused"),
    Index("ix_orders_node", "job_id", "attempt"),
    Index(
        "ix_orders_open",
        "executor_id",
        sqlite_where=text("closed IS NULL"),
        postgresql_where=text("closed IS NULL"),
    ),
)

# --- what a job said ----------------------------------------------------------------------------------

log_lines = Table(
    "log_lines",
    metadata,
    Column("job_id", Text, ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False),
    Column("cursor", BigInteger, nullable=False),
    Column("time", Float, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("node", Integer, nullable=False),
    Column("rank", Integer, nullable=False),
    Column("stream", Text, nullable=False),
    Column("text", Text, nullable=False),
    _text("level", "info"),
    PrimaryKeyConstraint("job_id", "cursor"),
    sqlite_with_rowid=False,
)

metric_points = Table(
    "metric_points",
    metadata,
    Column("job_id", Text, ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False),
    Column("cursor", BigInteger, nullable=False),
    Column("time", Float, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("node", Integer, nullable=False),
    Column("rank", Integer, nullable=False),
    Column("step", BigInteger),
    Column("epoch", Float),
    Column("values", _json(), nullable=False),
    PrimaryKeyConstraint("job_id", "cursor"),
    sqlite_with_rowid=False,
)

# Append-only: every state change and decision of a job.
timeline = Table(
    "timeline",
    metadata,
    Column("job_id", Text, ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False),
    Column("cursor", BigInteger, nullable=False),
    Column("time", Float, nullable=False),
    Column("kind", Text, nullable=False),  # state, attempt, phase, order, note, error
    Column("attempt", Integer),
    Column("rank", Integer),
    Column("text", Text, nullable=False),
    PrimaryKeyConstraint("job_id", "cursor"),
    sqlite_with_rowid=False,
)

# --- executors ----------------------------------------------------------------------------------------

executors = Table(
    "executors",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("public_key", _json(), nullable=False),
    Column("capabilities", _json(), nullable=False),
    Column("load", _json(), nullable=False),
    _text("endpoint"),  # empty: pull only
    Column("endpoint_seq", BigInteger, nullable=False, server_default="0"),
    Column("draining", Boolean, nullable=False, server_default=text("false")),  # as it says itself
    Column("drained", Boolean, nullable=False, server_default=text("false")),  # as people asked of it
    Column("joined", Float, nullable=False),
    Column("last_seen", Float),
    Column("revoked", Float),
    Column("pending", Boolean, nullable=False, server_default=text("false")),  # a person has to approve it
    Column(
        "ephemeral", Boolean, nullable=False, server_default=text("false")
    ),  # gone when it is not heard of
    Column("jobs_left", Integer),  # how many more it may get; null: any number
    Column("previous_key", _json()),  # good until `previous_until`, while a new one takes over
    Column("previous_until", Float),
)

join_tokens = Table(
    "join_tokens",
    metadata,
    Column("digest", Text, primary_key=True),
    Column("created", Float, nullable=False),
    Column("expires", Float, nullable=False),
    Column("used", Float),
    _text("used_by"),
    Column("approval", Boolean, nullable=False, server_default=text("false")),
    Column("ephemeral", Boolean, nullable=False, server_default=text("false")),
    Column("max_jobs", Integer),
)

# Proofs of requests that were accepted, kept until they have expired, so that none counts twice.
proofs = Table(
    "proofs",
    metadata,
    Column("jti", Text, nullable=False),
    Column("executor_id", Text, nullable=False),
    Column("expires", Float, nullable=False),
    PrimaryKeyConstraint("executor_id", "jti"),
    Index("ix_proofs_expires", "expires"),
)

# Passwords for git that a job's executor got; SHA-256 only.
job_credentials = Table(
    "job_credentials",
    metadata,
    Column("digest", Text, primary_key=True),
    Column("job_id", Text, ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False),
    Column("executor_id", Text, nullable=False),
    Column("repository_id", Text, nullable=False),
    Column("expires", Float, nullable=False),
)

# --- people -------------------------------------------------------------------------------------------

access_tokens = Table(
    "access_tokens",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("name", Text, nullable=False),
    Column("digest", Text, nullable=False),
    Column("created", Float, nullable=False),
    Column("expires", Float),
    Column("revoked", Float),
    Column("role", Text, nullable=False, server_default="admin"),
    Column("user_id", Integer),  # whose it is; it may never do more than they may
    UniqueConstraint("digest"),
)

login_links = Table(
    "login_links",
    metadata,
    Column("digest", Text, primary_key=True),
    Column("user_id", ForeignKey("users.id", ondelete="CASCADE"), nullable=False),
    Column("created", Float, nullable=False),
    Column("expires", Float, nullable=False),
    Column("used", Float),
)

sessions = Table(
    "sessions",
    metadata,
    Column("digest", Text, primary_key=True),
    Column("user_id", ForeignKey("users.id", ondelete="CASCADE"), nullable=False),
    Column("created", Float, nullable=False),
    Column("expires", Float, nullable=False),
    Column("seen", Float, nullable=False),
)
