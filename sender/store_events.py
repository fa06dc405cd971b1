"""Repositories, what was pushed to them, and the jobs that came of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.engine import Connection, RowMapping

from trainforge.config.errors import Conflict, NotFound
from trainforge.config.matrix import cell_name
from trainforge.config.result import result_path
from trainforge.sender import schema as s
from trainforge.sender.database import Database
from trainforge.sender.schema_trust import pushes

Decision = Literal["job", "ignored", "refused"]
PUSH_SOURCES = ("push", "webhook", "hook", "poll", "watch")
REPOSITORY_DISPATCH = "repository_dispatch"
DELIVERY_LIFE_S = 30 * 86400.0  # GitHub offers redelivery for three days


@dataclass(frozen=True)
class Repo:
    id: str
    name: str
    url: str
    kind: str
    primed: bool = False


@dataclass(frozen=True)
class NewEvent:
    source: str
    repository_id: str
    repository: str
    decision: Decision
    reason: str = ""
    ref: str = ""
    old: str = ""
    new: str = ""


@dataclass(frozen=True)
class NewJob:
    """A job to make; `problems` says why its manifest cannot be used, and is usually empty."""

    id: str
    repository_id: str
    commit: str
    manifest_path: str
    manifest_blob: str
    source: str
    dated: float = 0.0  # the commit's time: names the result's folder, also when the job is made again
    ref: str = ""
    subject: str = ""
    author: str = ""
    manifest_text: str = ""
    project: str = ""
    result_branch: str = ""
    priority: int = 0
    nodes: int = 1
    cell: Mapping[str, Any] = field(default_factory=dict)
    matrix: str = ""
    concurrency: str = ""
    cancels: bool = False
    rerun: str = ""
    rerun_of: str = ""
    overrides: Mapping[str, Any] = field(default_factory=dict)
    executors: tuple[str, ...] = ()
    problems: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class Noted:
    """A push that somebody was told is noted."""

    repository_id: str
    ref: str
    before: str
    commit: str


@dataclass(frozen=True)
class PushedJob:
    """What the person who pushed is told of a job."""

    id: str
    project: str
    manifest_path: str
    cell: str = ""
    problems: tuple[Mapping[str, Any], ...] = ()


class EventStore(Database):
    # --- repositories -----------------------------------------------------------------------------------

    def add_repository(self, repo: Repo, now: float) -> Repo:
        """Watch a repository; doing it twice changes nothing.

        Raises:
            Conflict: the name belongs to another repository.
        """
        with self.write() as c:
            row = self._repository(c, s.repositories.c.id == repo.id)
            if row is None:
                if self._repository(c, s.repositories.c.name == repo.name) is not None:
                    raise Conflict(
                        f"another repository is called {repo.name}", hint="give this one another name"
                    )
                c.execute(sa.insert(s.repositories).values(**asdict(repo), created=now))
                return repo
            again = sa.update(s.repositories).where(s.repositories.c.id == repo.id).values(unwatched=None)
            c.execute(again.where(s.repositories.c.unwatched.is_not(None)))
            return row

    def unwatch(self, repository_id: str, now: float) -> None:
        """Look at it no more. Watched again, it begins anew: what was pushed meanwhile leads to no job."""
        table = s.repositories
        with self.write() as c:
            for kept in (s.heads, s.schedules):
                c.execute(sa.delete(kept).where(kept.c.repository_id == repository_id))
            values = {"unwatched": now, "primed": False, "scheduled": ""}
            c.execute(sa.update(table).where(table.c.id == repository_id).values(values))

    def watches(self, repository_id: str) -> bool:
        table = s.repositories.c
        with self.read() as c:
            mine = (table.id == repository_id, table.unwatched.is_(None))
            return c.execute(sa.select(table.id).where(*mine)).first() is not None

    def repository(self, name_or_id: str) -> Repo:
        with self.read() as c:
            row = self._repository(
                c, sa.or_(s.repositories.c.id == name_or_id, s.repositories.c.name == name_or_id)
            )
        if row is None:
            raise NotFound(f"no repository {name_or_id} is known here", hint="push to it, or add it first")
        return row

    def repositories(self) -> list[Repo]:
        with self.read() as c:
            watched = sa.select(s.repositories).where(s.repositories.c.unwatched.is_(None))
            return [_repo(row) for row in c.execute(watched).mappings()]

    def note_check(self, repository_id: str, now: float, error: str = "") -> None:
        """When the remote's heads were last asked for, and why that failed if it did."""
        table = s.repositories
        with self.write() as c:
            c.execute(sa.update(table).where(table.c.id == repository_id).values(checked=now, error=error))

    @staticmethod
    def _repository(c: Connection, where: sa.ColumnElement[bool]) -> Repo | None:
        row = c.execute(sa.select(s.repositories).where(where)).mappings().first()
        return None if row is None else _repo(row)

    # --- heads ------------------------------------------------------------------------------------------

    def heads(self, repository_id: str) -> dict[str, str]:
        """The commit of each ref that was handled last."""
        table = s.heads
        with self.read() as c:
            rows = c.execute(
                sa.select(table.c.ref, table.c.commit).where(table.c.repository_id == repository_id)
            )
            return {row.ref: row.commit for row in rows}

    def prime(self, repository_id: str, heads: Mapping[str, str], event: NewEvent, now: float) -> None:
        """Take the heads that existed before a remote was watched as handled."""
        with self.write() as c:
            for ref, commit in heads.items():
                self._move_head(c, repository_id, ref, move=("", commit), now=now)
            table = s.repositories
            c.execute(sa.update(table).where(table.c.id == repository_id).values(primed=True))
            self._add_event(c, event, [], now)

    def move_head(self, repository_id: str, ref: str, move: tuple[str, str], now: float) -> bool:
        """Mark a change as handled that nobody needs to hear of."""
        with self.write() as c:
            return self._move_head(c, repository_id, ref, move=move, now=now)

    def results_branches(self, repository_id: str) -> set[str]:
        """Branches that results of this repository's jobs go to."""
        t = s.jobs
        query = sa.select(t.c.result_branch).where(t.c.repository_id == repository_id).distinct()
        with self.read() as c:
            return {branch for branch in c.execute(query).scalars() if branch}

    def _move_head(
        self, c: Connection, repository_id: str, ref: str, *, move: tuple[str, str], now: float
    ) -> bool:
        """Compare-and-swap: whether `ref` stood at the old commit (empty: unknown) and is now at the new."""
        old, new = move
        table = s.heads
        here = sa.and_(table.c.repository_id == repository_id, table.c.ref == ref)
        if not old:
            row = {"repository_id": repository_id, "ref": ref, "commit": new, "updated": now}
            return self.add_new(c, table, row)
        stood = sa.and_(here, table.c.commit == old)
        if not new:
            return c.execute(sa.delete(table).where(stood)).rowcount == 1
        return c.execute(sa.update(table).where(stood).values(commit=new, updated=now)).rowcount == 1

    # --- events and jobs --------------------------------------------------------------------------------

    def record_push(self, event: NewEvent, jobs: list[NewJob], now: float) -> list[str] | None:
        """Mark a head as handled, with the event and its jobs, at once; None if somebody else has."""
        with self.write() as c:
            if not self._move_head(c, event.repository_id, event.ref, move=(event.old, event.new), now=now):
                return None
            self._add_event(c, event, jobs, now)
            return [job.id for job in jobs]

    def record_request(self, event: NewEvent, jobs: list[NewJob], now: float) -> list[str]:
        """Jobs that were asked for without a push; those that exist already stay as they are."""
        with self.write() as c:
            self._add_event(c, event, jobs, now)
        return [job.id for job in jobs]

    def record_event(self, event: NewEvent, now: float) -> None:
        with self.write() as c:
            self._add_event(c, event, [], now)

    def recent_decisions(self, repository_id: str, since: float) -> list[tuple[str, list[PushedJob]]]:
        """Of each push since a moment: why it led to no job, or its jobs."""
        e, j = s.events, s.jobs
        query = sa.select(e.c.reason, e.c.jobs).where(
            e.c.repository_id == repository_id, e.c.time >= since, e.c.ref != ""
        )
        with self.read() as c:
            events = c.execute(query.order_by(e.c.id)).all()
            wanted = [job for event in events for job in event.jobs]
            columns = (j.c.id, j.c.project, j.c.manifest_path, j.c.cell, j.c.problems)
            rows = c.execute(sa.select(*columns).where(j.c.id.in_(wanted)))
            jobs = {
                row.id: PushedJob(
                    row.id, row.project, row.manifest_path, cell_name(row.cell), tuple(row.problems)
                )
                for row in rows
            }
        return [(event.reason, [jobs[job] for job in event.jobs if job in jobs]) for event in events]

    def count_triggers(self, repository_id: str, since: float) -> int:
        """How many pushes to a repository, or programs at GitHub, have led to jobs since a moment."""
        t = s.events
        sources = (*PUSH_SOURCES, REPOSITORY_DISPATCH)
        pushes = (t.c.decision == "job", t.c.source.in_(sources), t.c.time >= since)
        query = sa.select(sa.func.count()).where(t.c.repository_id == repository_id, *pushes)
        with self.read() as c:
            return int(c.execute(query).scalar_one())

    def count_reruns(self, job: str) -> int:
        with self.read() as c:
            query = sa.select(sa.func.count()).select_from(s.jobs).where(s.jobs.c.rerun_of == job)
            return int(c.execute(query).scalar_one())

    def first_delivery(self, source: str, delivery: str, now: float, push: Noted | None = None) -> bool:
        """Whether this delivery id is new; it is remembered for as long as a redelivery can be asked for.

        The push that it tells of is noted with it, unless it has led to an event before.
        """
        t, e = s.deliveries, s.events
        with self.write() as c:
            c.execute(sa.delete(t).where(t.c.time < now - DELIVERY_LIFE_S))
            new = self.add_new(c, t, {"source": source, "delivery": delivery, "time": now})
            if new and push is not None:
                mine = (e.c.repository_id == push.repository_id, e.c.ref == push.ref, e.c.new == push.commit)
                if c.execute(sa.select(e.c.id).where(*mine).limit(1)).first() is None:
                    self.add_new(c, pushes, {**asdict(push), "time": now})
            return new

    def noted_pushes(self, repository_id: str) -> list[Noted]:
        """The pushes that were acknowledged and have led to no event, oldest first."""
        columns = (pushes.c.repository_id, pushes.c.ref, pushes.c.before, pushes.c.commit)
        query = sa.select(*columns).where(pushes.c.repository_id == repository_id)
        with self.read() as c:
            rows = c.execute(query.order_by(pushes.c.time, pushes.c.commit))
            return [Noted(*row) for row in rows]

    def record_noted(self, event: NewEvent, jobs: list[NewJob], now: float) -> list[str] | None:
        """The event of a noted push that the branch has moved on from, with its jobs, at once.

        None if somebody else has recorded it.
        """
        with self.write() as c:
            if self._strike_out(c, event) == 0:
                return None
            self._add_event(c, event, jobs, now)
            return [job.id for job in jobs]

    @staticmethod
    def _strike_out(c: Connection, event: NewEvent) -> int:
        t = pushes
        mine = (t.c.repository_id == event.repository_id, t.c.ref == event.ref, t.c.commit == event.new)
        return c.execute(sa.delete(t).where(*mine)).rowcount

    def _add_event(self, c: Connection, event: NewEvent, jobs: list[NewJob], now: float) -> None:
        self._strike_out(c, event)
        values = {**asdict(event), "time": now, "jobs": [job.id for job in jobs]}
        event_id = c.execute(sa.insert(s.events).values(values).returning(s.events.c.id)).scalar_one()
        for position, job in enumerate(jobs):  # the cells of a matrix keep their order
            self._add_job(c, job, event_id, now + position * 1e-6)

    def _add_job(self, c: Connection, job: NewJob, event_id: int, now: float) -> None:
        values = {
            **{name: value for name, value in asdict(job).items() if name != "dated"},
            "event_id": event_id,
            "cell": dict(job.cell),
            "overrides": dict(job.overrides),
            "executors": list(job.executors),
            "problems": [dict(problem) for problem in job.problems],
            "created": now,
            "state": "pending",
            "waiting": {},
            "artifacts": [],
            "metrics": {},
            "result_path": result_path(job.id, job.dated or now),
            "cursor": 1,
        }
        if self.add_new(c, s.jobs, values):
            text = f"asked for by {job.source}"
            c.execute(
                sa.insert(s.timeline).values(job_id=job.id, cursor=1, time=now, kind="state", text=text)
            )


def _repo(row: RowMapping) -> Repo:
    return Repo(row["id"], row["name"], row["url"], row["kind"], bool(row["primed"]))
