"""Deadlines as the database has them, to be moved when the clock was set and renewed at a start."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from trainforge.sender import schema as s
from trainforge.sender.database import Database

LIVE = ("offered", "accepted", "running")


class DeadlineStore(Database):
    def renew_leases(self, until: float) -> None:
        """Give every node that may be alive a lease, whether or not it has run out."""
        t = s.nodes
        with self.write() as c:
            c.execute(sa.update(t).where(_at_work()).values(lease_until=until))

    def move_deadlines(self, by: float, now: float, lease_ttl: float) -> None:
        """Move what limits of unfinished jobs count from; nothing lies later than if it began now."""
        ahead = max(by, 0.0)
        n, j, a, e = s.nodes, s.jobs, s.attempts, s.executors

        def moved(column: sa.ColumnElement[Any], latest: float) -> sa.ColumnElement[Any]:
            return sa.case((column + ahead > latest, latest), else_=column + ahead)

        unfinished = sa.exists().where(j.c.id == a.c.job_id, j.c.ended.is_(None))
        with self.write() as c:
            node = {
                "lease_until": moved(n.c.lease_until, now + lease_ttl),
                "created": moved(n.c.created, now),
            }
            c.execute(sa.update(n).where(_at_work()).values(node))
            c.execute(sa.update(j).where(j.c.ended.is_(None)).values(queued=moved(j.c.queued, now)))
            c.execute(sa.update(a).where(unfinished).values(ended=moved(a.c.ended, now)))
            c.execute(sa.update(e).values(last_seen=moved(e.c.last_seen, now)))


def _at_work() -> sa.ColumnElement[bool]:
    n, a = s.nodes, s.attempts
    live = sa.exists().where(a.c.job_id == n.c.job_id, a.c.number == n.c.attempt, a.c.state.in_(LIVE))
    return sa.and_(n.c.ended.is_(None) | n.c.published.is_(None), live)
