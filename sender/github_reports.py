"""A job's rows as the report that GitHub gets of it. For worker threads."""

from __future__ import annotations

import contextlib
from urllib.parse import quote

from pydantic import ValidationError
from sqlalchemy.engine import RowMapping

from trainforge.config.gates import Verdict, missed
from trainforge.config.matrix import as_overrides, cell_name
from trainforge.config.messages import OUTCOMES, PREPARE
from trainforge.config.reasons import REASONS
from trainforge.hooks.github_api import site_of
from trainforge.hooks.github_report import Report
from trainforge.sender import job_shapes, publisher, text
from trainforge.sender.context import Sender
from trainforge.sender.store_github import Connection


def is_told(row: RowMapping) -> bool:
    """Whether GitHub is told of a job: not of one that somebody tries with keys of their own."""
    wanted: bool = row["source"] != PREPARE and row["overrides"] == as_overrides(row["cell"] or {})
    return wanted


def is_green(row: RowMapping) -> bool:
    """Whether a job has completed and missed no gate."""
    return row["state"] == "completed" and not missed(_gates(row))


def report_of(sender: Sender, connection: Connection, row: RowMapping) -> Report:
    """How a job stands. What changes all the time is left out: it would be told all the time."""
    over = row["state"] in OUTCOMES
    job = sender.queries.job(row["id"])
    newest = job.attempts[-1] if job.attempts else None
    bars = job_shapes.phases(job, newest, sender.now()) if over and newest else []
    return Report(
        job=row["id"],
        project=row["project"],
        commit=row["commit"],
        manifest_path=row["manifest_path"],
        state=row["state"],
        created=row["created"],
        cell=cell_name(row["cell"] or {}),
        code=row["code"],
        reason=row["reason"],
        hint=REASONS[row["code"]].hint if row["code"] in REASONS else "",
        stopping=job.stopping,
        publishing=not over and row["ending"] is not None,
        waiting={} if over else job.waiting,
        attempt=row["attempt"],
        machines=list(dict.fromkeys(node.executor_name for node in newest.nodes)) if newest else [],
        phases=[(name, _took(seconds)) for name, seconds in job_shapes.totals(bars)],
        metrics=job.metrics if over else {},
        base=publisher.base_of(sender, row) if over else None,
        gates=_gates(row),
        problems=row["problems"] if over else [],
        started=row["started"],
        ended=row["ended"],
        took=text.duration(row["ended"] - row["started"]) if over and row["started"] else "",
        job_url=f"{sender.base_url.rstrip('/')}/jobs/{row['id']}",
        folder_url=_folder(connection, row) if row["result_commit"] else "",
    )


def _took(seconds: float) -> str:
    return text.duration(seconds) if seconds >= 1 else f"{seconds:.1f} s"


def _folder(connection: Connection, row: RowMapping) -> str:
    """The job's folder on the results branch, as people see it."""
    where = quote(f"{row['result_branch']}/{row['result_path']}")
    return f"{site_of(connection.api_url)}/{connection.full_name}/tree/{where}"


def _gates(row: RowMapping) -> list[Verdict]:
    found = []
    for one in row["gates"] or []:
        with contextlib.suppress(ValidationError):
            found.append(Verdict.model_validate(one))
    return found
