"""Results seen from the sender: the record of a job, publishing where no executor can, and looking.

Everything here runs in a worker thread.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from sqlalchemy.engine import RowMapping

from trainforge.config.errors import Conflict, ManifestError, TrainForgeError
from trainforge.config.failpoints import failpoint
from trainforge.config.gates import BaseResult, Verdict, judge
from trainforge.config.manifest import Manifest, apply_overrides, parse_manifest
from trainforge.config.messages import OUTCOMES, Capabilities, Outcome
from trainforge.config.reasons import REASONS
from trainforge.config.result import (
    JobRecord,
    MetricRow,
    NodeRecord,
    commit_message,
    final_metrics,
    result_files,
)
from trainforge.config.result_index import shared_files
from trainforge.hooks import triggers
from trainforge.hooks.results import Entry, Written, find_local_result, find_result, write_results
from trainforge.sender.context import Sender
from trainforge.sender.events import Place, place_of
from trainforge.sender.facts import Result

MAX_GATES = 100
Found = tuple[Result, list[dict[str, Any]]]
"""What a remote says of a job: its result, and its artifacts."""


def manifest_of(row: RowMapping) -> Manifest | None:
    """The manifest that a job's row asks for, overrides included; None if it cannot be used."""
    if row["problems"]:
        return None
    return _manifest(row["manifest_text"], row["manifest_path"], json.dumps(row["overrides"]))


@lru_cache(maxsize=256)
def _manifest(text: str, path: str, overrides: str) -> Manifest | None:
    try:
        return apply_overrides(parse_manifest(text, path), json.loads(overrides))
    except ManifestError:
        return None


def outcome_of(row: RowMapping) -> Outcome:
    """How a job ends, as far as that is decided.

    Raises:
        Conflict: it is not; a sender that was restored may have forgotten that it ordered to publish.
    """
    ending = row["ending"] or row["state"]
    if ending not in OUTCOMES:
        raise Conflict(f"how job {row['id']} ends is not decided", hint="ask again after it has ended")
    decided: Outcome = ending
    return decided


def record_of(sender: Sender, job: str, outcome: Outcome | None = None) -> JobRecord:
    """Everything known of a job, as the result tells it."""
    row = sender.store.job(job)
    repo = sender.store.repository(row["repository_id"])
    history = sender.store.history(job)
    manifest = manifest_of(row)
    plan = row["plan"] or {}
    code = row["code"]
    record = JobRecord(
        job=row["id"],
        project=row["project"],
        repository=repo.name,
        repository_url=clone_url(sender, repo.name) if repo.kind == "builtin" else repo.url,
        ref=row["ref"],
        commit=row["commit"],
        subject=row["subject"],
        author=row["author"],
        manifest_path=row["manifest_path"],
        manifest=row["manifest_text"],
        resolved=manifest.model_dump(mode="json") if manifest else {},
        plan=plan,
        params=plan.get("params", {}),
        results_branch=row["result_branch"],
        source=row["source"],
        outcome=outcome or outcome_of(row),
        code=code,
        reason=row["reason"],
        hint=REASONS[code].hint if code in REASONS else "",
        created=row["created"],
        started=row["started"],
        ended=sender.now(),
        attempt=row["attempt"],
        nodes=[_node_record(node) for node in history["nodes"]],
        timeline=[dict(line) for line in history["timeline"]],
        metrics=[
            MetricRow.model_validate({k: p[k] for k in MetricRow.model_fields}) for p in history["metrics"]
        ],
        primary=(manifest.metrics.primary or "") if manifest else "",
        mode=manifest.metrics.mode if manifest else "max",
        logs=_logs(sender, row, plan, began=any(node["begun"] for node in history["nodes"])),
        notices=_notices(row, manifest, plan),
        rerun_of=row["rerun_of"],
        cell=row["cell"],
        folder=row["result_path"],
    )
    record.base = base_of(sender, row)
    if manifest is not None and record.outcome == "completed":
        record.gates = judge(manifest.gates, final_metrics(record.metrics), record.base)
    return record


def base_of(sender: Sender, row: RowMapping) -> BaseResult | None:
    """What a job is compared with: its pull request's base, else the usual branch's newest result."""
    heads = sender.store.heads(row["repository_id"])
    usual = next((ref for ref in triggers.USUAL if ref in heads), row["ref"])
    wanted = sender.store.base_ref(row["repository_id"], row["commit"]) or usual
    return sender.store.base_result(row, wanted)


def _logs(sender: Sender, row: RowMapping, plan: dict[str, Any], *, began: bool) -> dict[str, str]:
    """A log of every rank that trained; an empty one tells that the rank said nothing."""
    silent = {f"rank{rank}.log": "" for rank in range(plan.get("world_size", 0))} if began else {}
    return silent | sender.store.logs_of(row["id"], row["attempt"])


def _node_record(node: RowMapping) -> NodeRecord:
    outcome = node["outcome"] or {}
    return NodeRecord(
        rank=node["rank"],
        executor=node["executor_id"],
        name=node["name"],
        state=node["state"],
        code=node["code"],
        reason=node["reason"],
        exit_code=node["exit_code"],
        tail=outcome.get("tail", ""),
        peak_memory_bytes=outcome.get("peak_memory_bytes"),
        cpu_s=outcome.get("cpu_s"),
        peak_disk_bytes=outcome.get("peak_disk_bytes"),
        log_bytes=outcome.get("log_bytes"),
        gpus=outcome.get("gpus", []),
        capabilities=Capabilities.model_validate(node["capabilities"]),
    )


def _notices(row: RowMapping, manifest: Manifest | None, plan: dict[str, Any]) -> list[str]:
    notices = [problem["detail"] for problem in row["problems"]]
    notices += plan.get("notices", [])
    if manifest is not None:
        notices += [f"{key} is accepted, but not yet in effect" for key in manifest.inactive()]
    return notices


def clone_url(sender: Sender, name: str) -> str:
    """Where executors and people clone a repository of the built-in server."""
    return f"{sender.base_url.rstrip('/')}/git/{name}.git"


def results_mirror(sender: Sender, place: Place) -> Path:
    name = hashlib.sha256(place.repo.id.encode()).hexdigest()[:20]
    return sender.data_dir / "results" / f"{name}.git"


def publish(sender: Sender, job: str, outcome: Outcome | None = None) -> Found:
    """Commit the job's result to the remote, unless it has one; gives what the remote then says.

    Raises:
        TrainForgeError: git's words (GitBlocked: never; GitUnreachable and others: not now).
    """
    [found] = publish_together(sender, [job], outcome)
    if isinstance(found, Exception):
        raise found
    return found


def publish_together(
    sender: Sender, jobs: Sequence[str], outcome: Outcome | None = None
) -> list[Found | Exception]:
    """Commit the results of jobs that go to the same branch, in one push; for each what `publish` gives.

    Raises:
        TrainForgeError: one of them, or all, cannot be published now.
    """
    rows = [sender.store.job(job) for job in jobs]
    place = place_of(sender, sender.store.repository(rows[0]["repository_id"]))
    records = [record_of(sender, job, outcome) for job in jobs]
    failpoint("31.sender.push")
    first, *along = [_entry(row["result_path"], record) for row, record in zip(rows, records, strict=True)]
    written, outcomes = write_results(
        results_mirror(sender, place),
        place.url,
        rows[0]["result_branch"],
        first,
        *along,
        credential=place.credential,
        allow_file=place.local,
    )
    if not written.already:
        failpoint("32.sender.pushed")
    return [_found(sender, *one) for one in zip(records, [written, *outcomes], strict=True)]


def _entry(folder: str, record: JobRecord) -> Entry:
    files = dict(result_files(record, []))
    return Entry(folder, files, commit_message(record), lambda read: shared_files(record, read))


def _found(sender: Sender, record: JobRecord, came: Written | TrainForgeError | None) -> Found | Exception:
    if isinstance(came, TrainForgeError):
        return came
    try:
        if came is None:
            return publish(sender, record.job, record.outcome)
        if came.already and (found := look(sender, record.job)) is not None:
            return found
    except TrainForgeError as error:
        return error
    return Result(record.outcome, came.commit, record.code, record.reason), []


def look(sender: Sender, job: str) -> Found | None:
    """The job's result as the remote has it, with its artifacts; None if it has none.

    Raises:
        TrainForgeError: the remote cannot be read, or the result there is not one.
    """
    failpoint("38.sender.look_at_result")
    row = sender.store.job(job)
    place = place_of(sender, sender.store.repository(row["repository_id"]))
    if place.builtin:
        found = find_local_result(place.mirror, row["result_branch"], row["result_path"])
    else:
        found = find_result(
            results_mirror(sender, place),
            place.url,
            row["result_branch"],
            row["result_path"],
            credential=place.credential,
            allow_file=place.local,
        )
    if found is None:
        return None
    return read_result(row, *found)


def read_result(row: RowMapping, commit: str, data: bytes) -> Found:
    """What a job's `result.json` says.

    Raises:
        TrainForgeError: it is not one, or another job's.
    """
    try:
        said = json.loads(data)
        outcome, artifacts = said["outcome"], said.get("artifacts", [])
        usable = said["job"] == row["id"] and outcome in OUTCOMES and isinstance(artifacts, list)
    except (ValueError, KeyError, TypeError, RecursionError):
        usable = False
    if not usable:
        raise TrainForgeError(f"{row['result_path']}/result.json on the remote is not this job's result")
    gates = tuple(_verdicts(said.get("gates")))
    result = Result(outcome, commit, str(said.get("code", "")), str(said.get("reason", ""))[:8000], gates)
    return result, [artifact for artifact in artifacts if isinstance(artifact, dict)]


def _verdicts(said: object) -> Iterator[Verdict]:
    """Those that can be read; somebody may have written the file by hand."""
    for one in said[:MAX_GATES] if isinstance(said, list) else ():
        with contextlib.suppress(ValidationError):
            yield Verdict.model_validate(one)
