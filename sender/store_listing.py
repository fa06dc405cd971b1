"""The list of jobs as people look through it: filtered, searched, in pages, also where there are very many.

A page is found by walking along one index from the newest job. Without a match it would walk along all of
them, so a search looks at so many jobs at a time, and says where the next one has to go on.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

import sqlalchemy as sa

from trainforge.config.views import JobSummary
from trainforge.sender import schema as s
from trainforge.sender.database import Database
from trainforge.sender.queries import SUMMARY, UNFINISHED, summary

SEARCHED_AT_ONCE = 50_000
_COLUMNS = (*SUMMARY, "stop_requested", "waiting", "cell", "metrics", "manifest_blob", "priority")


@dataclass(frozen=True)
class Wanted:
    """Which jobs; an empty word asks for nothing. `state` may be `active`, `before` is a job's id."""

    state: str = ""
    project: str = ""
    repository: str = ""
    branch: str = ""
    author: str = ""
    source: str = ""
    q: str = ""
    before: str = ""

    @property
    def filters(self) -> dict[str, str]:
        """What was asked for, but not from where on."""
        return {name: value for name, value in vars(self).items() if value and name != "before"}


@dataclass(frozen=True)
class Listed:
    job: JobSummary
    manifest_blob: str


@dataclass(frozen=True)
class JobPage:
    """`older`: the job after which the next page begins; `searched_all`: none is left to look at."""

    jobs: list[Listed]
    older: str = ""
    searched_all: bool = True


class ListingStore(Database):
    def list_jobs(self, wanted: Wanted, limit: int) -> JobPage:
        """Newest first."""
        t = s.jobs
        newest_first = (t.c.created.desc(), t.c.id.desc())
        place = sa.tuple_(t.c.created, t.c.id)
        within = _conditions(wanted) + _words(wanted, self.is_sqlite)
        after = list[sa.ColumnElement[bool]]()
        with self.read() as c:
            if wanted.before:
                begin = c.execute(sa.select(t.c.created).where(t.c.id == wanted.before)).scalar()
                if begin is None:
                    return JobPage([])
                after.append(place < sa.tuple_(sa.literal(begin), sa.literal(wanted.before)))
            end = None
            if wanted.q:
                end = c.execute(
                    sa.select(t.c.created, t.c.id)
                    .where(*after)
                    .order_by(*newest_first)
                    .offset(SEARCHED_AT_ONCE)
                    .limit(1)
                ).first()
                if end is not None:
                    within.append(place >= sa.tuple_(sa.literal(end.created), sa.literal(end.id)))
            # The ids alone first: they come out of the index, and the wide rows are read for one page.
            found = sa.select(t.c.id).where(*within, *after).order_by(*newest_first).limit(limit + 1)
            ids = list(c.execute(found).scalars())
            names = {name: t.c[name] for name in _COLUMNS if name != "repository"}
            rows = c.execute(
                sa.select(*names.values(), s.repositories.c.name.label("repository"))
                .join(s.repositories, s.repositories.c.id == t.c.repository_id)
                .where(t.c.id.in_(ids[:limit]))
                .order_by(*newest_first)
            ).mappings()
            jobs = [Listed(JobSummary(**summary(row)), row["manifest_blob"]) for row in rows]
        if len(ids) > limit:
            return JobPage(jobs, jobs[-1].job.id)
        return JobPage(jobs, end.id if end is not None else "", end is None)

    def list_queue(self, limit: int) -> list[tuple[JobSummary, int]]:
        """The jobs that have not begun, in the order in which they are placed, and each one's priority."""
        t = s.jobs
        names = [t.c[name] for name in _COLUMNS if name != "repository"]
        query = (
            sa.select(*names, s.repositories.c.name.label("repository"))
            .join(s.repositories, s.repositories.c.id == t.c.repository_id)
            .where(t.c.ended.is_(None), t.c.state.in_(("pending", "planning")))
            .order_by(t.c.priority.desc(), t.c.created, t.c.id)
            .limit(limit)
        )
        with self.read() as c:
            rows = c.execute(query).mappings()
            return [(JobSummary(**summary(row)), row["priority"]) for row in rows]

    def manifest_texts(self, jobs: Collection[str]) -> dict[str, str]:
        """The manifests of these jobs, by the id of their blob."""
        t = s.jobs
        query = sa.select(t.c.manifest_blob, t.c.manifest_text).where(t.c.id.in_(jobs))
        with self.read() as c:
            return {row.manifest_blob: row.manifest_text for row in c.execute(query)}


def _conditions(wanted: Wanted) -> list[sa.ColumnElement[bool]]:
    t = s.jobs
    found: list[sa.ColumnElement[bool]] = []
    if wanted.state == "active":
        found += [t.c.state.in_(UNFINISHED), t.c.ended.is_(None)]
    elif wanted.state:
        found.append(t.c.state == wanted.state)
    if wanted.branch:
        branch = wanted.branch
        found.append(t.c.ref == (branch if branch.startswith("refs/") else f"refs/heads/{branch}"))
    if wanted.repository:
        named = sa.select(s.repositories.c.id).where(s.repositories.c.name == wanted.repository)
        found.append(t.c.repository_id == named.scalar_subquery())
    for name in ("project", "author", "source"):
        if value := getattr(wanted, name):
            found.append(t.c[name] == value)
    return found


def _words(wanted: Wanted, sqlite: bool) -> list[sa.ColumnElement[bool]]:
    """Each word somewhere, whatever its case; SQLite's LIKE minds no case by itself, and is quicker so."""
    t = s.jobs
    found: list[sa.ColumnElement[bool]] = []
    for word in wanted.q.split()[:5]:
        like = "%" + re.sub(r"([%_/])", r"/\1", word) + "%"
        texts = [t.c.subject, t.c.project, t.c.author, t.c.ref, t.c.commit, t.c.id]
        found.append(sa.or_(*((c.like if sqlite else c.ilike)(like, escape="/") for c in texts)))
    return found
