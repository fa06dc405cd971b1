"""What a job said, read back: log lines by cursor in both directions, and metric points."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import RowMapping

from trainforge.config.messages import OUTCOMES
from trainforge.config.views import LogLine, MetricPoint
from trainforge.sender import schema
from trainforge.sender.database import Database

MAX_ROWS = 5000
NEWEST_ROWS = 100_000  # so far back one node's lines are looked for among those of all


@dataclass(frozen=True)
class LogPage:
    """`ended`: the job has ended and nothing comes after these lines. `cursor` is the last line's."""

    lines: list[LogLine]
    cursor: int
    ended: bool


@dataclass(frozen=True)
class LogFilter:
    """Which lines are wanted; without anything said, all. `rank` -1 is what the nodes say themselves."""

    ranks: tuple[int, ...] = ()
    levels: tuple[str, ...] = ()
    text: str = ""  # somewhere in the line, whatever the case


ALL_LINES = LogFilter()


class OutputQueries:
    """Every method is one consistent read."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def logs(self, job: str, *, after: int = 0, limit: int = 1000, wanted: LogFilter = ALL_LINES) -> LogPage:
        """Lines after a cursor, in order."""
        lines = schema.log_lines
        limit = bounded(limit)
        query = _wanted(job, wanted).where(lines.c.cursor > after).order_by(lines.c.cursor)
        with self._database.read() as connection:
            # One read of both: a job seen as ended has no line that this page does not.
            state = connection.execute(sa.select(schema.jobs.c.state).where(schema.jobs.c.id == job)).scalar()
            found = [_line(row) for row in connection.execute(query.limit(limit + 1)).mappings()]
        more = len(found) > limit
        found = found[:limit]
        cursor = found[-1].cursor if found else after
        return LogPage(found, cursor, state in OUTCOMES and not more)

    def last_lines(
        self, job: str, limit: int = 500, *, before: int | None = None, wanted: LogFilter = ALL_LINES
    ) -> list[LogLine]:
        """The newest lines, or those just before a cursor; in order."""
        lines = schema.log_lines
        query = _wanted(job, wanted).order_by(lines.c.cursor.desc()).limit(bounded(limit))
        if before is not None:
            query = query.where(lines.c.cursor < before)
        with self._database.read() as connection:
            return [_line(row) for row in connection.execute(query).mappings()][::-1]

    def node_lines(self, job: str, attempt: int, node: int, limit: int) -> list[LogLine]:
        """What one node's processes said last in an attempt, as far as the job's newest output has it."""
        lines, jobs = schema.log_lines.c, schema.jobs.c
        newest = sa.select(jobs.cursor - NEWEST_ROWS).where(jobs.id == job).scalar_subquery()
        query = (
            sa.select(schema.log_lines)
            .where(lines.job_id == job, lines.cursor > newest)
            .where(lines.attempt == attempt, lines.node == node, lines.rank >= 0)
            .order_by(lines.cursor.desc())
            .limit(bounded(limit))
        )
        with self._database.read() as connection:
            return [_line(row) for row in connection.execute(query).mappings()][::-1]

    def log_ranks(self, job: str) -> list[int]:
        """The ranks of the newest lines and the first: enough to offer a choice without reading them all."""
        lines = schema.log_lines
        mine = sa.select(lines.c.rank).where(lines.c.job_id == job)
        newest = mine.order_by(lines.c.cursor.desc()).limit(MAX_ROWS).subquery()
        first = mine.order_by(lines.c.cursor).limit(MAX_ROWS).subquery()
        query = sa.union(sa.select(newest.c.rank), sa.select(first.c.rank))
        with self._database.read() as connection:
            return sorted(connection.execute(query).scalars())

    def metrics(self, job: str, *, after: int = 0, limit: int = MAX_ROWS) -> list[MetricPoint]:
        points = schema.metric_points
        query = (
            sa.select(points)
            .where(points.c.job_id == job, points.c.cursor > after)
            .order_by(points.c.cursor)
            .limit(bounded(limit))
        )
        return self._points(query)

    def last_metrics(self, job: str, limit: int = 20) -> list[MetricPoint]:
        points = schema.metric_points
        query = sa.select(points).where(points.c.job_id == job).order_by(points.c.cursor.desc())
        return self._points(query.limit(bounded(limit)))[::-1]

    def first_metric(self, job: str, attempt: int) -> MetricPoint | None:
        """The first point that rank 0 reported in an attempt."""
        points = schema.metric_points
        mine = (points.c.job_id == job, points.c.attempt == attempt, points.c.rank == 0)
        found = self._points(sa.select(points).where(*mine).order_by(points.c.cursor).limit(1))
        return found[0] if found else None

    def _points(self, query: sa.Select[Any]) -> list[MetricPoint]:
        names = ("cursor", "time", "attempt", "rank", "step", "epoch", "values")
        with self._database.read() as connection:
            rows = connection.execute(query).mappings()
            return [MetricPoint(**{name: row[name] for name in names}) for row in rows]


def _wanted(job: str, wanted: LogFilter) -> sa.Select[Any]:
    lines = schema.log_lines
    query = sa.select(lines).where(lines.c.job_id == job)
    if wanted.ranks:
        query = query.where(lines.c.rank.in_(wanted.ranks))
    if wanted.levels:
        query = query.where(lines.c.level.in_(wanted.levels))
    if wanted.text:
        query = query.where(lines.c.text.icontains(wanted.text, autoescape=True))
    return query


def _line(row: RowMapping) -> LogLine:
    names = ("cursor", "time", "attempt", "node", "rank", "stream", "text", "level")
    return LogLine(**{name: row[name] for name in names})


def bounded(limit: int) -> int:
    return max(1, min(limit, MAX_ROWS))
