"""The outbox of notifications: one row for each job, occasion and target, so that each is told once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import RowMapping

from trainforge.config.errors import NotFound
from trainforge.config.views import NoticeView
from trainforge.sender import schema as s
from trainforge.sender.database import Database
from trainforge.sender.schema_trust import notices

SINCE = "notices.since"  # up to when it is noted who is to be told of the ends of jobs
OVERLAP_S = 60.0  # an end is written a little later than the time that it carries
AT_ONCE = 50
SHOWN = 200
WAITING_AT_ONCE = 200


@dataclass(frozen=True)
class Notice:
    """`occasion` is `end` or `waiting`; with a `problem` it is never sent."""

    job: str
    occasion: str
    target: str
    kind: str
    problem: str = ""


@dataclass(frozen=True)
class Due:
    notice: Notice
    created: float
    tries: int
    project: str
    repository: str
    commit: str
    subject: str
    author: str
    code: str
    reason: str


class NoticeStore(Database):
    def begin_notices(self, now: float) -> None:
        """From the first time on; a clock that was set back is followed."""
        with self.write() as c:
            self.add_new(c, s.meta, {"key": SINCE, "value": str(now)})
            known = float(c.execute(sa.select(s.meta.c.value).where(s.meta.c.key == SINCE)).scalar_one())
            if known > now:
                c.execute(sa.update(s.meta).where(s.meta.c.key == SINCE).values(value=str(now)))

    def ended_untold(self, now: float) -> list[tuple[RowMapping, bool]]:
        """Jobs that have ended of late and of which nothing is noted; and whether the one before failed."""
        j, n = s.jobs, notices
        before = j.alias()
        last = (
            sa.select(before.c.state)
            .where(
                before.c.repository_id == j.c.repository_id,
                before.c.ref == j.c.ref,
                before.c.manifest_path == j.c.manifest_path,
                before.c.ended.is_not(None),
                before.c.created < j.c.created,
                before.c.state != "cancelled",
            )
            .order_by(before.c.created.desc())
            .limit(1)
            .scalar_subquery()
        )
        noted = sa.exists().where(n.c.job_id == j.c.id, n.c.occasion == "end")
        with self.read() as c:
            since = c.execute(sa.select(s.meta.c.value).where(s.meta.c.key == SINCE)).scalar_one()
            query = sa.select(j, last.label("before")).where(
                j.c.ended > float(since) - OVERLAP_S, j.c.ended <= now, ~noted, j.c.source != "prepare"
            )
            rows: Sequence[RowMapping] = c.execute(query).mappings().all()
        return [(row, row["before"] == "failed") for row in rows]

    def told_until(self, now: float) -> None:
        with self.write() as c:
            c.execute(sa.update(s.meta).where(s.meta.c.key == SINCE).values(value=str(now)))

    def waiting_since(self, moment: float) -> Sequence[RowMapping]:
        """Jobs that have waited for machines since before a moment."""
        j = s.jobs
        query = sa.select(j).where(
            j.c.ended.is_(None), j.c.state.in_(("pending", "planning")), j.c.queued < moment
        )
        with self.read() as c:
            return c.execute(query.order_by(j.c.queued).limit(WAITING_AT_ONCE)).mappings().all()

    def add_notice(self, notice: Notice, now: float) -> None:
        """Noting it again changes nothing."""
        row: dict[str, object] = {"job_id": notice.job, "occasion": notice.occasion, "target": notice.target}
        row |= {"kind": notice.kind, "created": now, "problem": notice.problem}
        with self.write() as c:
            self.add_new(c, notices, row | {"due": None if notice.problem else now})

    def due_notices(self, now: float) -> list[Due]:
        n, j, r = notices, s.jobs, s.repositories
        names = ("project", "commit", "subject", "author", "code", "reason")
        query = (
            sa.select(n, *(j.c[name] for name in names), r.c.name.label("repository"))
            .join(j, j.c.id == n.c.job_id)
            .join(r, r.c.id == j.c.repository_id)
            .where(n.c.due <= now)
            .order_by(n.c.due)
            .limit(AT_ONCE)
        )
        with self.read() as c:
            rows = c.execute(query).mappings().all()
        return [
            Due(
                Notice(row["job_id"], row["occasion"], row["target"], row["kind"]),
                row["created"],
                row["tries"],
                repository=row["repository"],
                **{name: row[name] for name in names},
            )
            for row in rows
        ]

    def unsent_notices(self) -> list[NoticeView]:
        """Those that were given up or have failed so far, the newest first."""
        n = notices.c
        failed = sa.and_(n.sent.is_(None), sa.or_(n.problem != "", n.tries > 0))
        query = sa.select(notices).where(failed).order_by(n.created.desc(), n.job_id).limit(SHOWN)
        with self.read() as c:
            return [_view(row) for row in c.execute(query).mappings()]

    def send_again(self, job: str, occasion: str, target: str, now: float) -> NoticeView:
        """Raises NotFound: nothing of the kind is unsent."""
        n = notices.c
        mine = (n.job_id == job, n.occasion == occasion, n.target == target, n.sent.is_(None))
        values = {"due": now, "created": now, "tries": 0, "problem": ""}
        with self.write() as c:
            if c.execute(sa.update(notices).where(*mine).values(values)).rowcount != 1:
                raise NotFound(f"no notification of job {job[:26]} to {target[:80]} is unsent")
            return _view(c.execute(sa.select(notices).where(*mine)).mappings().one())

    def sent_notice(self, notice: Notice, now: float) -> None:
        self._change(notice, due=None, sent=now)

    def rest_notice(self, notice: Notice, until: float) -> None:
        self._change(notice, due=until, tries=notices.c.tries + 1)

    def give_up_notice(self, notice: Notice, problem: str) -> None:
        self._change(notice, due=None, problem=problem)

    def _change(self, notice: Notice, **values: object) -> None:
        n = notices
        mine = (n.c.job_id == notice.job, n.c.occasion == notice.occasion, n.c.target == notice.target)
        with self.write() as c:
            c.execute(sa.update(n).where(*mine).values(values))


def _view(row: RowMapping) -> NoticeView:
    names = ("occasion", "target", "kind", "created", "due", "tries", "problem")
    return NoticeView(job=row["job_id"], **{name: row[name] for name in names})
