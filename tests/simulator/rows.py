"""The rows of the model store, as `schema.py` has them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import copy
from typing import Any

from trainforge.config.errors import Conflict
from trainforge.config.result import result_path
from trainforge.sender import facts as f
from trainforge.sender import lifecycle as life
from trainforge.sender.store_events import NewJob, Noted, Repo

Row = dict[str, Any]


class Tables:
    """`committed` is called after each write transaction, when it is on disk."""

    def __init__(self, repo: Repo, committed: Callable[[], None]) -> None:
        self._repo, self._committed = repo, committed
        self.meta: dict[str, str] = {}
        self.heads_: dict[str, str] = {}
        self.jobs: dict[str, Row] = {}
        self.attempts: dict[tuple[str, int], Row] = {}
        self.nodes: dict[tuple[str, int, int], Row] = {}
        self.orders: dict[str, Row] = {}
        self.executors: dict[str, Row] = {}
        self.deliveries: set[str] = set()
        self.lines: dict[tuple[str, int, int], list[str]] = {}
        self.pushes: dict[tuple[str, str], tuple[float, Noted]] = {}
        self.events: set[tuple[str, str]] = set()
        self._facts: dict[str, tuple[f.JobFacts, Any]] = {}

    # --- backups ----------------------------------------------------------------------------------------

    def backup(self) -> dict[str, Any]:
        rows = ("jobs", "attempts", "nodes", "orders", "executors")
        kept: dict[str, Any] = {name: {k: dict(v) for k, v in getattr(self, name).items()} for name in rows}
        kept["lines"] = {key: list(lines) for key, lines in self.lines.items()}
        plain = ("meta", "heads_", "deliveries", "pushes", "events")
        return kept | {name: copy(getattr(self, name)) for name in plain}

    def restore(self, backup: Mapping[str, Any]) -> None:
        rows = ("jobs", "attempts", "nodes", "orders", "executors")
        for name in rows:
            setattr(self, name, {k: dict(v) for k, v in backup[name].items()})
        self.lines = {key: list(lines) for key, lines in backup["lines"].items()}
        for name in ("meta", "heads_", "deliveries", "pushes", "events"):
            setattr(self, name, copy(backup[name]))
        self._facts.clear()

    def _done(self, *jobs: str) -> None:
        for job in jobs:
            self._facts.pop(job, None)
        self._committed()


def state_row(job: f.JobFacts, state: Any) -> Row:
    if not life.is_legal(job.state, state):
        raise Conflict(f"a job does not go from {job.state} to {state}")
    return {"state": state}


def job_row(job: NewJob, now: float) -> Row:
    return {
        "id": job.id, "repository_id": job.repository_id, "commit": job.commit, "ref": job.ref,
        "manifest_path": job.manifest_path, "manifest_blob": job.manifest_blob,
        "manifest_text": job.manifest_text, "problems": [dict(one) for one in job.problems],
        "project": job.project, "source": job.source, "overrides": dict(job.overrides),
        "executors": list(job.executors), "priority": job.priority, "cell": {},
        "matrix": "", "concurrency": "",
        "created": now, "queued": None, "ended": None, "state": "pending", "version": 0, "ending": None,
        "code": "", "reason": "", "stop_requested": None, "stop_code": "", "stop_reason": "", "waiting": {},
        "nodes": job.nodes, "attempt": 0, "publish_blocked": None, "result_branch": job.result_branch,
        "result_path": result_path(job.id, job.dated or now), "result_commit": "",
        "result_outcome": "", "result_code": "",
        "result_reason": "",
    }  # fmt: skip
