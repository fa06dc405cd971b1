"""The first API's `/api/jobs` and `/api/workers`, translated to jobs and executors."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial
from typing import Any, Literal
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from trainforge.config.errors import Conflict, Forbidden, NotFound
from trainforge.config.messages import OUTCOMES, CommitId
from trainforge.config.views import ExecutorView, JobDetail, JobSummary
from trainforge.hooks.addresses import AddressRefused, validate_folder
from trainforge.hooks.gitread import ObjectReader
from trainforge.hooks.gitrun import GitNotFound
from trainforge.hooks.result_mirror import ResultMirror
from trainforge.sender import actions, events, machines, planned, publisher
from trainforge.sender.actions import in_thread
from trainforge.sender.context import Sender
from trainforge.sender.planned import PlanAsk, Requirements
from trainforge.sender.problems import dump, read_model, read_query
from trainforge.sender.query_forms import OutputQuery

MAX_FILE = 128 * 2**20
LINES = 1000
_WAITING = ("pending", "planning")
# The documents know no cancelled distributed job; `state` beside it says what it was.
_DISTRIBUTED = {"pending": "planning", "cancelled": "failed"}
_WORKER_JOB = {"planning": "pending", "dispatching": "pending"}


def sender_of(request: Request) -> Sender:
    sender: Sender = request.app.state.sender
    return sender


async def job_of(request: Request) -> str:
    """The id of the job or planned job in the path. Raises NotFound."""
    sender, job = sender_of(request), request.path_params["job"]
    if await in_thread(planned.find, sender, job) is not None:
        return str(job)
    return await in_thread(sender.queries.resolve, job)


async def _queued(request: Request) -> str:
    """The id of the job in the path, which is not one that is only planned. Raises NotFound."""
    return await in_thread(sender_of(request).queries.resolve, request.path_params["job"])


# --- as the documents show a job ------------------------------------------------------------------------


def distributed_status(sender: Sender, job: str) -> dict[str, Any]:
    """The first API's `DistributedJobStatus`."""
    kept = planned.find(sender, job)
    if kept is not None:
        return _planned_status(planned.show(sender, job, kept))
    detail = sender.queries.job(job)
    attempt = detail.attempts[-1] if detail.attempts else None
    address, port = sender.queries.meeting(job, detail.attempt)
    return {
        "job_id": job,
        "status": _DISTRIBUTED.get(detail.state, detail.state),
        "state": detail.state,
        "world_size": detail.plan.get("world_size", detail.nodes),
        "nodes": [_node(detail, node.model_dump()) for node in (attempt.nodes if attempt else ())],
        "master_addr": address,
        "master_port": port,
        "progress": detail.progress,
        "metrics": detail.metrics,
        "waiting": detail.waiting,
        "code": detail.code,
        "reason": detail.reason,
        "attempt": detail.attempt,
    }


def _planned_status(shown: dict[str, Any]) -> dict[str, Any]:
    made = shown["execution_plan"] or {}
    nodes = [
        {"machine_id": one["machine_id"], "rank": one["rank"], "status": "pending"}
        for one in made.get("machines", ())
    ]
    return {
        **shown,
        "world_size": made.get("world_size", 0),
        "nodes": nodes,
        "master_addr": "",
        "master_port": 0,
    }


def _node(detail: JobDetail, node: dict[str, Any]) -> dict[str, Any]:
    done = node["state"] == "completed"
    return {
        "machine_id": node["executor"],
        "name": node["executor_name"],
        "rank": node["rank"],
        "status": node["state"],
        "phase": node["phase"],
        "start_time": iso(node["started"]),
        "end_time": iso(node["ended"]),
        "progress": 1.0 if done else detail.progress,
        "reason": node["reason"],
    }


def iso(moment: float | None) -> str | None:
    return None if moment is None else datetime.fromtimestamp(moment, UTC).isoformat()


def worker_job(job: JobSummary) -> dict[str, Any]:
    """A job in the words of the first API's workers: what waits for a machine is pending."""
    return {
        "job_id": job.id,
        "status": _WORKER_JOB.get(job.state, job.state),
        "project": job.project,
        "workers": job.nodes,
        "progress": job.progress,
        "metrics": job.metrics,
        "code": job.code,
        "reason": job.reason,
        "waiting": job.waiting,
        "created": iso(job.created),
        "started": iso(job.started),
        "ended": iso(job.ended),
    }


def chosen_machines(sender: Sender, job: str) -> set[str]:
    """Whom somebody picked for a queued job; it may wait for them yet."""
    try:
        return set(sender.store.job(job)["executors"])
    except NotFound:
        return set()


# --- jobs -----------------------------------------------------------------------------------------------


class DistributedAsk(BaseModel):
    """A job for `workers` machines; `repository` is what the other documents call `plugin_name`."""

    model_config = ConfigDict(extra="forbid")

    repository: str = Field(min_length=1, max_length=2048)
    workers: int = Field(default=1, ge=1, le=1024)
    config: dict[str, Any] = {}
    commit: CommitId | None = None
    ref: str = Field(default="", max_length=1024)
    manifest_path: str = Field(default="", max_length=1024)


class ClaimAsk(BaseModel):
    model_config = ConfigDict(extra="ignore")

    worker_id: str = Field(default="", max_length=253)


class StatusAsk(BaseModel):
    model_config = ConfigDict(extra="ignore")

    status: Literal["pending", "running", "completed", "failed", "cancelled"]
    reason: str = Field(default="", max_length=1000)


async def submit_distributed(request: Request) -> Response:
    ask = await read_model(request, DistributedAsk)
    sender = sender_of(request)
    fields = ask.model_dump(exclude={"repository", "workers"}) | {"plugin_name": ask.repository}
    wanted = PlanAsk.model_validate(
        fields | {"resource_requirements": Requirements(num_machines=ask.workers)}
    )

    def make() -> JobDetail:
        asked = planned.request_of(sender, wanted)
        return sender.queries.job(events.request_job(sender, **asked))

    return dump(worker_job(await in_thread(make)))


async def pending_jobs(request: Request) -> Response:
    jobs = await in_thread(partial(sender_of(request).queries.jobs, state="active", limit=LINES))
    return dump({"jobs": [worker_job(job) for job in reversed(jobs) if job.state in _WAITING]})


async def claim_job(request: Request) -> Response:
    """Which rank an executor has in a job. Taking one is done with the executor's key, not by asking here."""
    ask = await read_model(request, ClaimAsk)
    sender, job = sender_of(request), await _queued(request)
    try:
        worker = await in_thread(machines.joined, sender, ask.worker_id)
    except (NotFound, Conflict):
        raise Forbidden(
            f"no executor {ask.worker_id[:80]!r} has joined: a job goes to machines that prove their key"
            if ask.worker_id
            else "a worker says who it is (worker_id), and must have joined: jobs are signed for its key",
            hint="`trainforge sender token` prints the line that joins a machine; then it takes jobs itself",
        ) from None
    status = await in_thread(distributed_status, sender, job)
    mine = [node for node in status["nodes"] if node["machine_id"] == worker.id]
    if not mine or status["status"] in {"completed", "failed"}:
        why = status.get("waiting", {}).get(worker.name) or f"it is {status['status']}"
        raise Conflict(f"job {job} is not {worker.name}'s: {why}", hint="the sender places jobs by itself")
    return dump(
        {
            "job_id": job,
            "worker_id": worker.id,
            "rank": mine[0]["rank"],
            "world_size": status["world_size"],
            "master_addr": status["master_addr"],
            "master_port": status["master_port"],
            "status": mine[0]["status"],
        }
    )


async def job_status(request: Request) -> Response:
    return dump(worker_job(await in_thread(sender_of(request).queries.job, await _queued(request))))


async def put_status(request: Request) -> Response:
    """Cancelling is a request like any; anything else is the executors' to say, in their signed journal."""
    ask = await read_model(request, StatusAsk)
    sender, job = sender_of(request), await _queued(request)
    detail = await in_thread(sender.queries.job, job)
    now = worker_job(detail)
    if ask.status == "cancelled" and detail.state not in OUTCOMES:
        reason = ask.reason or f"stopped by {request.state.person.name}"
        now = worker_job(await actions.stop(sender, job, reason, request.state.person.actor))
    elif ask.status != now["status"]:
        raise Forbidden(
            f"the job is {now['status']}; only its executors' signed journal can make it {ask.status}",
            hint="`trainforge executor join` makes a worker one; PUT cancelled stops a job",
        )
    return dump(now)


# --- output and files -----------------------------------------------------------------------------------


async def job_output(request: Request) -> Response:
    """All ranks' lines, oldest first; `?after=` is the cursor of the page before."""
    sender, job = sender_of(request), await job_of(request)
    after = read_query(request, OutputQuery).after
    page = await in_thread(partial(sender.queries.logs, job, after=after, limit=LINES))
    output = "".join(f"{line.text}\n" for line in page.lines)
    return dump({"job_id": job, "output": output, "cursor": page.cursor, "ended": page.ended})


async def job_file(request: Request) -> Response:
    """A file of the job's result: an artifact by its path, or one such as `result.json`."""
    sender, job, key = sender_of(request), await job_of(request), request.path_params["key"]
    content = await in_thread(result_file, sender, job, key)
    name = quote(key.rsplit("/", 1)[-1], safe="")
    headers = {"Content-Disposition": f"attachment; filename*=UTF-8''{name}"}
    return Response(content, media_type="application/octet-stream", headers=headers)


def result_file(sender: Sender, job: str, key: str) -> bytes:
    """Read from the commit that the result is.

    Raises:
        NotFound: no such file. Conflict: there is no result yet. TrainForgeError: the remote's words.
    """
    row = sender.store.job(job)
    if not row["result_commit"]:
        raise Conflict(f"job {job} has no result yet", hint="its output can be read meanwhile")
    try:
        paths = [validate_folder(f"{row['result_path']}/{path}") for path in (f"artifacts/{key}", key)]
    except AddressRefused:
        raise NotFound(f"{key[:200]!r} is not a file of a result") from None
    place = events.place_of(sender, sender.store.repository(row["repository_id"]))
    if place.builtin:
        with ObjectReader(place.mirror) as reader:
            return _first(paths, lambda path: reader.file(row["result_commit"], path, MAX_FILE)[1], key)
    mirror, branch = publisher.results_mirror(sender, place), row["result_branch"]
    target = ResultMirror.of(mirror, place.url, branch, place.credential, allow_file=place.local)
    tip = target.fetch_tip()
    return _first(paths, lambda path: target.read(tip, path, MAX_FILE) if tip else None, key)


def _first(paths: list[str], read: Any, key: str) -> bytes:
    for path in paths:
        try:
            content = read(path)
        except GitNotFound:
            continue
        if content is not None:
            return bytes(content)
    raise NotFound(f"the result has no file {key[:200]}", hint="GET /api/jobs/JOB/artifacts lists them")


# --- workers --------------------------------------------------------------------------------------------


def worker(view: ExecutorView) -> dict[str, Any]:
    shown = machines.machine(view)
    return {
        "worker_id": view.id,
        "name": view.name,
        "status": view.status,
        "max_jobs": view.capabilities.max_jobs,
        "active_jobs": view.jobs,
        "last_heartbeat": iso(view.last_seen),
        "capabilities": shown["capabilities"],
        "current_load": shown["current_load"],
        "gpus": shown["gpus"],
    }


async def list_workers(request: Request) -> Response:
    views = await in_thread(machines.members, sender_of(request))
    return dump({"workers": [worker(view) for view in views]})


async def show_worker(request: Request) -> Response:
    view = await in_thread(machines.joined, sender_of(request), request.path_params["worker"])
    return dump(worker(view))


routes = [
    Route("/jobs/distributed", submit_distributed, methods=["POST"]),
    Route("/jobs/pending", pending_jobs),
    Route("/jobs/{job}/claim", claim_job, methods=["POST"]),
    Route("/jobs/{job}/status", job_status),
    Route("/jobs/{job}/status", put_status, methods=["PUT"]),
    Route("/workers", list_workers),
    Route("/workers/{worker}", show_worker),
]
