"""What GitHub was told of jobs and pull requests, and what is to be told: level-triggered, so each once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import RowMapping

from trainforge.config.gates import BaseResult
from trainforge.sender import schema as s
from trainforge.sender.database import Database
from trainforge.sender.schema_reports import github_pulls, github_reports

UNTIL = "github.told_until"
OVERLAP_S = 60.0  # an end is written a little later than the time that it carries
CANDIDATES = 200  # jobs that are looked at for one to compare with
MOST = 500


@dataclass(frozen=True)
class Pull:
    """A pull request as the API says; `fork`: its head is in another repository than its base."""

    repository_id: str
    number: int
    head_sha: str
    head_ref: str
    base_ref: str
    base_sha: str
    fork: bool
    open: bool


class ReportStore(Database):
    # --- what a job is compared with --------------------------------------------------------------------

    def base_ref(self, repository_id: str, commit: str) -> str:
        """The branch that a pull request brings a commit to, an open one first; empty where there is none."""
        p = github_pulls
        query = (
            sa.select(p.c.base_ref)
            .where(p.c.repository_id == repository_id, p.c.head_sha == commit)
            .order_by(p.c.open.desc(), p.c.number)
        )
        with self.read() as c:
            branch = c.execute(query.limit(1)).scalar()
        return f"refs/heads/{branch}" if branch else ""

    def base_result(self, job: RowMapping, ref: str) -> BaseResult | None:
        """The newest completed job for another commit of the same manifest and cell on a branch."""
        j = s.jobs
        query = (
            sa.select(j.c.id, j.c.ref, j.c.commit, j.c.metrics, j.c.cell)
            .where(j.c.repository_id == job["repository_id"], j.c.manifest_path == job["manifest_path"])
            .where(j.c.ref == ref, j.c.state == "completed", j.c.commit != job["commit"])
            .where(j.c.created <= job["created"])
            .order_by(j.c.created.desc())
            .limit(CANDIDATES)
        )
        with self.read() as c:
            for row in c.execute(query).mappings():
                if row["cell"] == job["cell"]:
                    branch = row["ref"].removeprefix("refs/heads/")
                    return BaseResult(
                        job=row["id"], branch=branch, commit=row["commit"], metrics=row["metrics"] or {}
                    )
        return None

    def durations(self, repository_id: str, manifest_path: str) -> list[float]:
        """Seconds that the newest completed jobs of a manifest took, newest first."""
        j = s.jobs
        query = (
            sa.select(j.c.ended - j.c.started)
            .where(j.c.repository_id == repository_id, j.c.manifest_path == manifest_path)
            .where(j.c.state == "completed", j.c.started.is_not(None))
            .order_by(j.c.created.desc())
        )
        with self.read() as c:
            return [float(seconds) for seconds in c.execute(query.limit(20)).scalars()]

    # --- statuses and check runs ------------------------------------------------------------------------

    def begin_reports(self, now: float) -> None:
        """From the first time on; a clock that was set back is followed."""
        with self.write() as c:
            self.add_new(c, s.meta, {"key": UNTIL, "value": str(now)})
            known = float(c.execute(sa.select(s.meta.c.value).where(s.meta.c.key == UNTIL)).scalar_one())
            if known > now:
                c.execute(sa.update(s.meta).where(s.meta.c.key == UNTIL).values(value=str(now)))

    def reportable(self, since: Mapping[str, float]) -> list[tuple[RowMapping, RowMapping | None]]:
        """Jobs of which something may be told, those of which nothing was told first, and what was told.

        `since` has the repositories' ids, and from when on their jobs count.
        """
        j, r = s.jobs, github_reports
        open_ = sa.select(r.c.job_id).where(r.c.done.is_(False))
        untold = sa.select(r.c.job_id).where(r.c.done.is_(False), r.c.told != "")
        with self.read() as c:
            until = float(c.execute(sa.select(s.meta.c.value).where(s.meta.c.key == UNTIL)).scalar_one())
            query = (
                sa.select(j)
                .where(j.c.repository_id.in_(since))
                .where(sa.or_(j.c.ended.is_(None), j.c.ended > until - OVERLAP_S, j.c.id.in_(open_)))
                .where(j.c.id.not_in(sa.select(r.c.job_id).where(r.c.done.is_(True))))
                .order_by(j.c.id.in_(untold), j.c.created, j.c.id)
                .limit(MOST)
            )
            rows = c.execute(query).mappings().all()
            mine = sa.select(r).where(r.c.job_id.in_([row["id"] for row in rows]))
            told = {row["job_id"]: row for row in c.execute(mine).mappings()}
        found = [(row, told.get(row["id"])) for row in rows]
        return [
            (row, report)
            for row, report in found
            if report is not None or row["created"] >= since[row["repository_id"]]
        ]

    def note_reports(self, jobs: Sequence[str], now: float) -> None:
        """Jobs that are to be told, whenever that will be possible, and up to when that is known."""
        with self.write() as c:
            for job in jobs:
                self.add_new(c, github_reports, {"job_id": job})
            c.execute(sa.update(s.meta).where(s.meta.c.key == UNTIL).values(value=str(now)))

    def newer_job(self, job: RowMapping) -> bool:
        """Whether a later job speaks for the same manifest and cell of the same commit."""
        j = s.jobs
        query = sa.select(j.c.cell).where(
            j.c.repository_id == job["repository_id"],
            j.c.commit == job["commit"],
            j.c.manifest_path == job["manifest_path"],
            j.c.created > job["created"],
            j.c.source != "prepare",
        )
        with self.read() as c:
            return any(cell == job["cell"] for cell in c.execute(query).scalars())

    def begin_report(self, job: str, now: float) -> None:
        """Noted before GitHub is told for the first time: what was begun is looked for before it is made."""
        with self.write() as c:
            r = github_reports
            self.add_new(c, r, {"job_id": job})
            c.execute(sa.update(r).where(r.c.job_id == job, r.c.begun.is_(None)).values(begun=now))

    def reported(self, job: str, told: str, remote_id: int | None, *, due: float, done: bool) -> None:
        self._report(job, told=told, remote_id=remote_id, done=done, tries=0, due=due, problem="")

    def rest_report(self, job: str, until: float, problem: str) -> None:
        self._report(job, due=until, problem=problem, tries=github_reports.c.tries + 1)

    def drop_report(self, job: str, now: float, problem: str) -> None:
        """Nothing more is told of this job."""
        self.begin_report(job, now)
        self._report(job, done=True, problem=problem)

    def _report(self, job: str, **values: object) -> None:
        r = github_reports
        with self.write() as c:
            c.execute(sa.update(r).where(r.c.job_id == job).values(values))

    # --- pull requests ----------------------------------------------------------------------------------

    def put_pull(self, pull: Pull, now: float) -> None:
        p = github_pulls
        key = {"repository_id": pull.repository_id, "number": pull.number}
        row: dict[str, Any] = {
            "head_sha": pull.head_sha, "head_ref": pull.head_ref, "base_ref": pull.base_ref,
            "base_sha": pull.base_sha, "fork": pull.fork, "open": pull.open, "seen": now,
        }  # fmt: skip
        with self.write() as c:
            put = self.insert(p).values(**key, **row)
            c.execute(put.on_conflict_do_update(index_elements=list(key), set_=row))

    def hint_pull(self, pull: Pull, now: float) -> None:
        """Something was said of a pull request, maybe late: the API is asked before anything follows."""
        p = github_pulls
        with self.write() as c:
            row = asdict(pull) | {"seen": now, "stale": True}
            if not self.add_new(c, p, row):
                mine = (p.c.repository_id == pull.repository_id, p.c.number == pull.number)
                c.execute(sa.update(p).where(*mine).values(stale=True))

    def pull(self, repository_id: str, number: int) -> RowMapping | None:
        p = github_pulls
        with self.read() as c:
            return (
                c.execute(sa.select(p).where(p.c.repository_id == repository_id, p.c.number == number))
                .mappings()
                .first()
            )

    def live_pulls(self, repository_id: str) -> Sequence[RowMapping]:
        """Those that are open, of which something was said, or whose comment has not come to its end."""
        p = github_pulls
        told = sa.and_(sa.or_(p.c.remote_id.is_not(None), p.c.mark != ""), p.c.planned != "")
        query = sa.select(p).where(
            p.c.repository_id == repository_id, sa.or_(p.c.open.is_(True), p.c.stale.is_(True), told)
        )
        with self.read() as c:
            return c.execute(query.order_by(p.c.number).limit(MOST)).mappings().all()

    def change_pull(self, repository_id: str, number: int, **values: object) -> None:
        """Note what was planned for, or told at, a pull request."""
        p = github_pulls
        with self.write() as c:
            mine = (p.c.repository_id == repository_id, p.c.number == number)
            c.execute(sa.update(p).where(*mine).values(values))

    def jobs_at(self, repository_id: str, commit: str) -> Sequence[RowMapping]:
        """The jobs for a commit, oldest first, without those that prepare an environment."""
        j = s.jobs
        query = sa.select(j).where(
            j.c.repository_id == repository_id, j.c.commit == commit, j.c.source != "prepare"
        )
        with self.read() as c:
            return c.execute(query.order_by(j.c.created, j.c.id).limit(MOST)).mappings().all()
