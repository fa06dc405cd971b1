"""Results that the remote should have: which of them are gone, and who may have them still."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import Any

import sqlalchemy as sa

from trainforge.config.messages import NodeKey
from trainforge.sender import schema as s
from trainforge.sender.store_jobs import JobStore

MOST = 1000
MOST_TOLD = 100


class ResultStore(JobStore):
    _missing: dict[str, list[NodeKey]] | None = None  # of each executor
    _flagged = 0

    def is_result(self, repository_id: str, commit: str) -> bool:
        """Whether a commit is known to hold a result of one of this repository's jobs."""
        t = s.jobs
        query = sa.select(t.c.id).where(t.c.repository_id == repository_id, t.c.result_commit == commit)
        with self.read() as c:
            return c.execute(query.limit(1)).first() is not None

    def results_of(self, repository_id: str, branch: str, since: float) -> Sequence[Any]:
        """The newest jobs whose result was seen on this branch."""
        t, n = s.jobs, s.nodes
        ours = sa.exists().where(
            n.c.job_id == t.c.id, n.c.attempt == t.c.attempt, n.c.rank == 0, n.c.published.is_not(None)
        )
        query = (
            sa.select(t.c.id, t.c.state, t.c.result_path, t.c.result_missing, ours.label("by_executor"))
            .where(t.c.repository_id == repository_id, t.c.result_branch == branch)
            .where(t.c.ended > since, t.c.result_commit != "")
        )
        with self.read() as c:
            return c.execute(query.order_by(t.c.ended.desc()).limit(MOST)).all()

    def flag_results(self, missing: Collection[str], present: Collection[str], now: float) -> None:
        """Note whose result is gone from the remote, and whose is there again; their states stay."""
        t = s.jobs
        with self.write() as c:
            for jobs, flag, words in (
                (missing, now, "its result is not on the remote any more"),
                (present, None, "its result is on the remote again"),
            ):
                for job in jobs:
                    c.execute(sa.update(t).where(t.c.id == job).values(result_missing=flag))
                    self.note(c, job, "note", words, now)
        self._flagged += 1
        self._missing = None

    def missing_results(self, executor: str) -> list[NodeKey]:
        """Nodes of this executor whose published results are gone.

        Kept in memory, for each heartbeat asks, and `flag_results` alone changes it.
        """
        known = self._missing
        if known is None:
            flagged = self._flagged
            known = self._read_missing()
            if flagged == self._flagged:
                self._missing = known
        return known.get(executor, [])[:MOST_TOLD]

    def _read_missing(self) -> dict[str, list[NodeKey]]:
        t, n = s.jobs, s.nodes
        query = (
            sa.select(n.c.executor_id, n.c.job_id, n.c.attempt, n.c.rank)
            .join(t, sa.and_(t.c.id == n.c.job_id, t.c.attempt == n.c.attempt))
            .where(t.c.result_missing.is_not(None))
            .where(n.c.rank == 0, n.c.published.is_not(None))
        )
        found: dict[str, list[NodeKey]] = defaultdict(list)
        with self.read() as c:
            for row in c.execute(query):
                key = NodeKey(job=row.job_id, attempt=row.attempt, rank=row.rank)
                found[row.executor_id].append(key)
        return dict(found)
