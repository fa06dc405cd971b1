"""What people are shown: the read side of the store, as the views of `config/views.py`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, RowMapping

from trainforge.config.errors import Conflict, NotFound
from trainforge.config.messages import OUTCOMES, Capabilities, Load
from trainforge.config.trust import thumbprint
from trainforge.config.views import (
    AttemptView,
    EventView,
    ExecutorView,
    JobDetail,
    JobSummary,
    NodeView,
    RepositoryView,
)
from trainforge.sender import schema
from trainforge.sender.database import Database
from trainforge.sender.store_output import OutputQueries, bounded

TIMELINE_ROWS = 500
_PREFIX = re.compile(r"[a-z2-7]{1,26}\Z")
UNFINISHED = ("pending", "planning", "dispatching", "running")
_LIVE_ATTEMPTS = ("offered", "accepted", "running")


@dataclass(frozen=True)
class JobAccess:
    job: str
    repository: str
    result_branch: str


class Queries(OutputQueries):
    """Every method is one consistent read. `online_for` is in seconds since an executor's last word."""

    def __init__(self, database: Database, online_for: float = 30.0) -> None:
        super().__init__(database)
        self.online_for = online_for

    # --- jobs ----------------------------------------------------------------------------------------

    def resolve(self, prefix: str) -> str:
        """The one job whose id begins so.

        Raises:
            NotFound: none does.
            Conflict: several do.
        """
        prefix = prefix.lower()
        if not _PREFIX.match(prefix):
            raise NotFound(f"{prefix[:40]!r} is not a job's id", hint="`trainforge status` lists the jobs")
        jobs = schema.jobs
        query = sa.select(jobs.c.id).where(jobs.c.id.startswith(prefix)).order_by(jobs.c.id).limit(4)
        with self._database.read() as connection:
            found = list(connection.execute(query).scalars())
        if not found:
            raise NotFound(f"no job begins with {prefix}", hint="`trainforge status` lists the jobs")
        if len(found) > 1:
            several = ", ".join(job[: len(prefix) + 4] for job in found[:3])
            raise Conflict(f"several jobs begin with {prefix}: {several}", hint="type more of it")
        return str(found[0])

    def jobs(
        self, *, state: str = "", project: str = "", matrix: str = "", limit: int = 50, before: str = ""
    ) -> list[JobSummary]:
        """Newest first. `state` is a state, or `active` for all that have not ended."""
        jobs = schema.jobs
        query = _jobs_query().order_by(jobs.c.created.desc(), jobs.c.id.desc()).limit(bounded(limit))
        if state == "active":
            query = query.where(jobs.c.state.in_(UNFINISHED))
        elif state:
            query = query.where(jobs.c.state == state)
        if project:
            query = query.where(jobs.c.project == project)
        if matrix:
            query = query.where(jobs.c.matrix == matrix)
        if before:
            moment = sa.select(jobs.c.created).where(jobs.c.id == before).scalar_subquery()
            query = query.where(
                sa.or_(jobs.c.created < moment, sa.and_(jobs.c.created == moment, jobs.c.id < before))
            )
        with self._database.read() as connection:
            return [JobSummary(**summary(row)) for row in connection.execute(query).mappings()]

    def job(self, job: str) -> JobDetail:
        """Raises NotFound."""
        with self._database.read() as connection:
            row = connection.execute(_jobs_query().where(schema.jobs.c.id == job)).mappings().first()
            if row is None:
                raise NotFound(f"there is no job {job}", hint="`trainforge status` lists the jobs")
            plan = row["plan"] or {}
            return JobDetail(
                **summary(row),
                plan=plan,
                attempts=_attempts(connection, job),
                result_branch=row["result_branch"],
                result_path=row["result_path"],
                result_commit=row["result_commit"],
                result_missing=row["result_missing"],
                timeline=_timeline(connection, job),
                artifacts=row["artifacts"] or [],
                gates=row["gates"] or [],
                notices=_notices(row, plan),
            )

    def manifest(self, job: str) -> str:
        query = sa.select(schema.jobs.c.manifest_text).where(schema.jobs.c.id == job)
        with self._database.read() as connection:
            return str(connection.execute(query).scalar() or "")

    def job_access(self, digest: str, now: float) -> JobAccess | None:
        """What the git password of a job's executor opens."""
        given, jobs = schema.job_credentials, schema.jobs
        query = (
            sa.select(given.c.job_id, given.c.repository_id, jobs.c.result_branch)
            .join(jobs, jobs.c.id == given.c.job_id)
            .where(given.c.digest == digest, given.c.expires > now)
        )
        with self._database.read() as connection:
            row = connection.execute(query).first()
        return JobAccess(row[0], row[1], row[2]) if row is not None else None

    def meeting(self, job: str, attempt: int) -> tuple[str, int]:
        """Where the processes of an attempt meet; an empty address until that is decided."""
        orders = schema.orders
        query = sa.select(orders.c.body).where(
            orders.c.job_id == job, orders.c.attempt == attempt, orders.c.kind == "launch"
        )
        with self._database.read() as connection:
            body = connection.execute(query.limit(1)).scalar() or {}
        return str(body.get("master_address", "")), int(body.get("master_port", 0))

    # --- executors, events, repositories ----------------------------------------------------------------

    def executors(self, now: float) -> list[ExecutorView]:
        executors = schema.executors
        query = sa.select(executors).order_by(executors.c.revoked.is_not(None), executors.c.name)
        with self._database.read() as connection:
            busy = _busy(connection)
            return [
                self._executor(row, busy.get(row["id"], []), now)
                for row in connection.execute(query).mappings()
            ]

    def executor(self, which: str, now: float) -> ExecutorView:
        """By id or name. Raises NotFound."""
        for view in self.executors(now):
            if which in {view.id, view.name}:
                return view
        raise NotFound(f"there is no executor {which[:80]}", hint="`trainforge executor list` lists them")

    def loads(self, job: str) -> dict[str, Load]:
        """How busy the machines of a job's newest attempt are, by executor."""
        executors, nodes, jobs = schema.executors, schema.nodes, schema.jobs
        query = (
            sa.select(executors.c.id, executors.c.load)
            .join(nodes, nodes.c.executor_id == executors.c.id)
            .join(jobs, sa.and_(jobs.c.id == nodes.c.job_id, jobs.c.attempt == nodes.c.attempt))
            .where(jobs.c.id == job)
            .order_by(executors.c.id)
        )
        with self._database.read() as connection:
            return {row[0]: Load.model_validate(row[1] or {}) for row in connection.execute(query)}

    def _executor(self, row: RowMapping, jobs: list[str], now: float) -> ExecutorView:
        capabilities = Capabilities.model_validate(row["capabilities"])
        seen = row["last_seen"]
        status: Any = "online"
        if row["revoked"] is not None:
            status = "revoked"
        elif row["pending"]:
            status = "pending"
        elif seen is None or now - seen > self.online_for or row["draining"]:
            status = "offline"
        elif row["drained"]:
            status = "draining"
        elif len(jobs) >= capabilities.max_jobs:
            status = "busy"
        return ExecutorView(
            id=row["id"],
            name=row["name"],
            status=status,
            connection="push" if row["endpoint"] else "pull",
            endpoint=row["endpoint"],
            last_seen=seen,
            capabilities=capabilities,
            load=Load.model_validate(row["load"] or {}),
            jobs=jobs,
            fingerprint=thumbprint(row["public_key"]) if row["public_key"] else "",
            ephemeral=row["ephemeral"],
        )

    def events(
        self, *, repository: str = "", decision: str = "", before: int = 0, limit: int = 50
    ) -> list[EventView]:
        """Newest first; `before` is the id of the last one of the page before."""
        events = schema.events
        query = sa.select(events).order_by(events.c.id.desc()).limit(bounded(limit))
        if before:
            query = query.where(events.c.id < before)
        if decision:
            query = query.where(events.c.decision == decision)
        if repository:
            query = query.where(
                sa.or_(events.c.repository == repository, events.c.repository_id == repository)
            )
        names = ("id", "time", "source", "repository", "ref", "old", "new", "decision", "reason", "jobs")
        with self._database.read() as connection:
            rows = connection.execute(query).mappings()
            return [EventView(**{name: row[name] for name in names}) for row in rows]

    def repositories(self) -> list[RepositoryView]:
        repositories = schema.repositories
        names = ("id", "name", "url", "kind", "checked", "error")
        with self._database.read() as connection:
            watched = sa.select(repositories).where(repositories.c.unwatched.is_(None))
            rows = connection.execute(watched.order_by(repositories.c.name)).mappings()
            return [RepositoryView(**{name: row[name] for name in names}) for row in rows]


def _jobs_query() -> sa.Select[Any]:
    return sa.select(schema.jobs, schema.repositories.c.name.label("repository")).join(
        schema.repositories, schema.repositories.c.id == schema.jobs.c.repository_id
    )


SUMMARY = (
    "id", "project", "repository", "ref", "commit", "subject", "author", "manifest_path", "source", "state",
    "ending", "code", "reason", "nodes", "attempt", "created", "started", "ended", "progress", "rerun_of",
    "matrix",
)  # fmt: skip


def summary(row: RowMapping) -> dict[str, Any]:
    """The fields of a `JobSummary`."""
    fields = {name: row[name] for name in SUMMARY}
    fields["stopping"] = row["stop_requested"] is not None and row["state"] not in OUTCOMES
    fields["waiting"] = row["waiting"] or {}
    fields["cell"] = row["cell"] or {}
    fields["metrics"] = row["metrics"] or {}
    return fields


def _notices(row: RowMapping, plan: dict[str, Any]) -> list[str]:
    """What a person should know that is neither state nor failure: nothing is adapted silently."""
    said = plan.get("notices")
    notices = [str(notice) for notice in said] if isinstance(said, list) else []
    if row["publish_blocked"]:
        notices.append(f"the remote refuses the result: {row['publish_blocked']}")
    return notices


_NODE = (
    "rank", "executor_name", "state", "phase", "detail", "code", "reason", "exit_code", "started",
    "ended",
)  # fmt: skip


def _attempts(connection: Connection, job: str) -> list[AttemptView]:
    nodes, executors, attempts = schema.nodes, schema.executors, schema.attempts
    rows = connection.execute(
        sa.select(nodes, executors.c.name.label("executor_name"))
        .join(executors, executors.c.id == nodes.c.executor_id)
        .where(nodes.c.job_id == job)
        .order_by(nodes.c.attempt, nodes.c.rank)
    ).mappings()
    tried = connection.execute(
        sa.select(attempts).where(attempts.c.job_id == job).order_by(attempts.c.number)
    )
    names = ("number", "state", "started", "ended", "code", "reason")
    views = [AttemptView(**{name: row[name] for name in names}) for row in tried.mappings()]
    by_number = {view.number: view for view in views}
    for row in rows:
        attempt = by_number[row["attempt"]]
        node = NodeView(executor=row["executor_id"], **{name: row[name] for name in _NODE})
        # Rank 0 has its result to publish after its training, the others are done with theirs.
        over = attempt.ended is not None
        trained = node.state == "completed" and (node.rank > 0 or over)
        if trained or (over and node.phase in {"collecting", "publishing"}):
            node.phase, node.detail = "finished", ""
        attempt.nodes.append(node)
    return views


def _timeline(connection: Connection, job: str) -> list[dict[str, Any]]:
    """The newest entries, oldest first."""
    entries = schema.timeline
    query = sa.select(entries).where(entries.c.job_id == job).order_by(entries.c.cursor.desc())
    names = ("cursor", "time", "kind", "attempt", "rank", "text")
    rows: Sequence[RowMapping] = connection.execute(query.limit(TIMELINE_ROWS)).mappings().all()
    return [{name: row[name] for name in names} for row in reversed(rows)]


def _busy(connection: Connection) -> dict[str, list[str]]:
    """Which jobs each executor has a part in."""
    nodes, attempts = schema.nodes, schema.attempts
    query = (
        sa.select(nodes.c.executor_id, nodes.c.job_id)
        .join(
            attempts,
            sa.and_(attempts.c.job_id == nodes.c.job_id, attempts.c.number == nodes.c.attempt),
        )
        .where(nodes.c.ended.is_(None), attempts.c.state.in_(_LIVE_ATTEMPTS))
        .order_by(nodes.c.job_id)
    )
    found: dict[str, list[str]] = {}
    for executor, job in connection.execute(query):
        if job not in found.setdefault(executor, []):
            found[executor].append(job)
    return found
