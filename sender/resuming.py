"""Going on from where an ended job was, as a new job."""

from __future__ import annotations

from trainforge.config.errors import Conflict
from trainforge.config.manifest import apply_overrides, parse_manifest
from trainforge.config.messages import OUTCOMES, RESUME
from trainforge.sender import events
from trainforge.sender.context import Sender


def resume_job(sender: Sender, job: str) -> str:
    """A new job that goes on from the newest checkpoint of one that failed or was stopped.

    Without `checkpoint.store` that lies on the machines of its last attempt, so they are asked for.

    Raises:
        Conflict: it has not ended, or completed.
    """
    row = sender.store.job(job)
    if row["state"] not in OUTCOMES:
        raise Conflict("the job has not ended, there is nothing to resume", hint="`trainforge stop` ends it")
    if row["state"] == "completed":
        raise Conflict("a job that completed keeps no checkpoints", hint="`trainforge retry` runs it again")
    manifest = apply_overrides(parse_manifest(row["manifest_text"], row["manifest_path"]), row["overrides"])
    executors: list[str] = []
    attempts = sender.queries.job(job).attempts
    if not manifest.checkpoint.store and attempts:
        known = set(sender.store.executor_ids().values())
        executors = [node.executor for node in attempts[-1].nodes if node.executor in known]
    return events.retry_job(sender, job, RESUME, executors=executors)
