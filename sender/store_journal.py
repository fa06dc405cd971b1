"""The journal's rows: what executors said, each record once, and reading it back for a result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import RowMapping

from trainforge.config.errors import Forbidden
from trainforge.config.messages import FencingToken, JournalBatch, NodeKey
from trainforge.sender import schema as s
from trainforge.sender.facts import may_speak
from trainforge.sender.intake import Intake, fresh_records, read_records
from trainforge.sender.store_jobs import JobStore


@dataclass(frozen=True)
class Stored:
    """What became of a batch. `intake` is None when it held nothing new."""

    acknowledged: int
    intake: Intake | None = None


class JournalStore(JobStore):
    def check_node(self, executor: str, key: NodeKey) -> RowMapping:
        """The node's row, if it is this executor's.

        Raises:
            Forbidden: the node does not exist, or is another executor's.
        """
        t = s.nodes
        query = sa.select(t).where(t.c.job_id == key.job, t.c.attempt == key.attempt, t.c.rank == key.rank)
        with self.read() as c:
            row = c.execute(query).mappings().first()
        if row is None or row["executor_id"] != executor:
            raise Forbidden(f"node {key} is not yours")
        return row

    def append_journal(
        self, executor: str, key: NodeKey, batch: JournalBatch, now: float, lease_ttl: float
    ) -> Stored:
        """Store a batch, renew the lease, and say up to where the journal is here.

        Repeating a batch changes nothing; one that starts too late is not stored and the answer says
        where to go on from.

        Raises:
            Forbidden: the node is not this executor's.
            Conflict: the attempt was given up, or the token is not its own.
            MessageInvalid: the batch is not numbered without gaps.
        """
        node = self.check_node(executor, key)
        fresh = fresh_records(batch, node["acknowledged"])
        intake = read_records(fresh) if fresh else None
        t = s.nodes
        mine = sa.and_(t.c.job_id == key.job, t.c.attempt == key.attempt, t.c.rank == key.rank)
        with self.write() as c:
            if intake is not None and fresh:
                cursor = self.take_cursors(c, key.job, _size(intake))  # before anything: it locks the job
            self._check_token(c, key, batch.token)
            known = c.execute(sa.select(t.c.acknowledged).where(mine)).scalar_one()
            if intake is None or not fresh or known != node["acknowledged"]:
                c.execute(sa.update(t).where(mine).values(lease_until=now + lease_ttl))
                return Stored(known)
            changes: dict[str, Any] = {"acknowledged": fresh[-1].n, "lease_until": now + lease_ttl}
            if node["started"] is None:
                changes |= {"started": now, "state": "running"}
            c.execute(sa.update(t).where(mine).values(changes | intake.node))
            self._write_rows(c, key, intake, cursor)
            self._update_job(c, key.job, intake)
            if known == 0:
                self._accept_run(c, key, now)
        return Stored(fresh[-1].n, intake)

    @staticmethod
    def _check_token(c: sa.Connection, key: NodeKey, token: FencingToken) -> None:
        a = s.attempts
        query = sa.select(a).where(a.c.job_id == key.job, a.c.number == key.attempt)
        attempt = c.execute(query).mappings().one()
        own = FencingToken(incarnation=attempt["token_incarnation"], number=attempt["token_number"])
        newest = c.execute(sa.select(s.jobs.c.attempt).where(s.jobs.c.id == key.job)).scalar_one()
        may_speak(token, own, attempt["state"], newest=newest == key.attempt)

    @staticmethod
    def _accept_run(c: sa.Connection, key: NodeKey, now: float) -> None:
        """Who speaks of a node has its run order, whether or not its acceptance arrived."""
        t = s.orders
        mine = (t.c.job_id == key.job, t.c.attempt == key.attempt, t.c.rank == key.rank, t.c.kind == "run")
        c.execute(sa.update(t).where(*mine, t.c.closed.is_(None)).values(accepted=now, closed=now))

    @staticmethod
    def _write_rows(c: sa.Connection, key: NodeKey, intake: Intake, cursor: int) -> None:
        base = {"job_id": key.job, "attempt": key.attempt}
        for table, rows, place in (
            (s.timeline, intake.timeline, {"rank": key.rank}),
            (s.metric_points, intake.points, {"node": key.rank}),
            (s.log_lines, intake.lines, {"node": key.rank}),
        ):
            if rows:
                numbered = [{**base, **place, **row, "cursor": cursor + i} for i, row in enumerate(rows)]
                c.execute(sa.insert(table), numbered)
                cursor += len(rows)

    @staticmethod
    def _update_job(c: sa.Connection, job_id: str, intake: Intake) -> None:
        t = s.jobs
        values: dict[str, Any] = {}
        if intake.metrics:
            known = c.execute(sa.select(t.c.metrics).where(t.c.id == job_id)).scalar_one()
            values["metrics"] = {**known, **intake.metrics}
        if intake.progress is not None:
            values["progress"] = intake.progress
        if intake.waiting is not None:
            values["waiting"] = {"remote": intake.waiting}
        if values:
            c.execute(sa.update(t).where(t.c.id == job_id, t.c.ended.is_(None)).values(values))

    # --- reading back for the result --------------------------------------------------------------------

    def history(self, job_id: str) -> dict[str, Sequence[RowMapping]]:
        """Everything a result is made of beside the job's own row, in one consistent read."""
        a, n, e, p, o = s.attempts, s.nodes, s.executors, s.metric_points, s.timeline
        with self.read() as c:
            newest = sa.select(sa.func.max(a.c.number)).where(a.c.job_id == job_id).scalar_subquery()
            nodes = (
                sa.select(n, e.c.name, e.c.capabilities)
                .join(e, e.c.id == n.c.executor_id)
                .where(n.c.job_id == job_id, n.c.attempt == newest)
                .order_by(n.c.rank)
            )
            points = sa.select(p).where(p.c.job_id == job_id, p.c.attempt == newest).order_by(p.c.cursor)
            lines = sa.select(o).where(o.c.job_id == job_id).order_by(o.c.cursor)
            return {
                "nodes": c.execute(nodes).mappings().all(),
                "metrics": c.execute(points).mappings().all(),
                "timeline": c.execute(lines).mappings().all(),
            }

    def logs_of(self, job_id: str, attempt: int) -> dict[str, str]:
        """The log of each rank of an attempt as text, by file name."""
        t = s.log_lines
        query = sa.select(t.c.rank, t.c.node, t.c.text).where(t.c.job_id == job_id, t.c.attempt == attempt)
        texts: dict[str, list[str]] = {}
        with self.read() as c:
            for row in c.execute(query.order_by(t.c.cursor)):
                name = f"rank{row.rank}.log" if row.rank >= 0 else f"node{row.node}.log"
                texts.setdefault(name, []).append(row.text + "\n")
        return {name: "".join(lines) for name, lines in texts.items()}


def _size(intake: Intake) -> int:
    return len(intake.lines) + len(intake.points) + len(intake.timeline)
