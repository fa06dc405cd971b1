"""The page of one job, and what its buttons ask for."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from trainforge.config.document import plain as plain_value
from trainforge.config.document import read_document
from trainforge.config.errors import Conflict, ManifestError, TrainForgeError
from trainforge.config.messages import OUTCOMES, OWNER_ASKED
from trainforge.config.reasons import REASONS
from trainforge.config.result import MetricRow, history_csv
from trainforge.config.views import (
    AttemptView,
    ExecutorView,
    JobDetail,
    LogLine,
    MetricPoint,
    RepositoryView,
)
from trainforge.sender import actions, job_shapes, streams, text
from trainforge.sender.actions import in_thread
from trainforge.sender.breakup import LOOKED_AT, Breakup, breakup, traceback_of
from trainforge.sender.context import Sender
from trainforge.sender.levels import LEVELS
from trainforge.sender.pages import guarded, render, threaded
from trainforge.sender.problems import problem

LOG_LINES = 300
RECENT_POINTS = 2000
MOST_CHANGES = 100
# Where a commit is shown, by what a repository's address says of its host; elsewhere it is text.
_FORGE = re.compile(r"https://([a-z0-9.-]+)/([A-Za-z0-9._/-]+?)(?:\.git)?/?")
_COMMIT_PATHS = {"gitlab.com": "/-/commit/"}


def job_page(request: Request) -> Response:
    sender: Sender = request.app.state.sender
    named = request.path_params["job"]
    found = sender.queries.resolve(named)
    if found != named:
        return RedirectResponse(f"/jobs/{found}", 307)
    # The log first: what is said after it was read comes over the stream.
    refreshed = "x-live" in request.headers  # by a page that has the log already
    lines = [] if refreshed else sender.queries.last_lines(found, LOG_LINES)
    version = streams.job_version(sender.queries, found)
    points = sender.queries.last_metrics(found, RECENT_POINTS)
    job = sender.queries.job(found)
    cursor, ended = (lines[-1].cursor if lines else 0), job.state in OUTCOMES
    return render(
        request,
        "job.html",
        person=request.state.person,
        here="/jobs",
        stream="" if ended else f"/api/jobs/{found}/logs?page=1&after={cursor}",
        version=version,
        job=job,
        ended=ended,
        meaning=REASONS.get(job.code),
        curves=curves(points),
        lines=lines,
        cursor=cursor,
        cut=len(lines) == LOG_LINES,
        ranks=[] if refreshed else sender.queries.log_ranks(found),
        levels=LEVELS,
        manifest=sender.queries.manifest(found),
        charted=json.dumps([{"id": found, "name": found[:8]}]),
        **_shapes(sender, job, points),
    )


def _shapes(sender: Sender, job: JobDetail, points: Sequence[MetricPoint]) -> dict[str, Any]:
    """What is drawn and worked out for the page."""
    now, newest = sender.now(), job.attempts[-1] if job.attempts else None
    ended = job.state in OUTCOMES
    rows = job_shapes.phases(job, newest, now) if newest else []
    trained = next((bar.start for row in rows for bar in row.bars if bar.phase == "training"), None)
    first = sender.queries.first_metric(job.id, job.attempt)
    left = None if ended else job_shapes.seconds_left(job.progress, now, first, trained or job.started)
    loads = {} if ended or newest is None else _loads(sender, {node.executor for node in newest.nodes})
    watched = sender.queries.repositories()
    mine = [point for point in points if point.attempt == job.attempt]
    broken = breakup(newest)
    return {
        "took": text.duration((job.ended or now) - job.started) if job.started else "",
        "left": text.about(left) if left is not None else "",
        "end": now + left if left is not None else None,
        "newest": newest,
        "broken": broken,
        "traceback": _traceback(sender, job.id, newest, broken),
        "asking": [] if ended or newest is None else _asking(newest),
        "rows": rows,
        "totals": job_shapes.totals(rows),
        "row_height": job_shapes.ROW,
        "topology": job_shapes.topology(newest, job.plan) if newest else None,
        "loads": loads,
        "progress": job_shapes.node_progress(mine),
        "parameters": parameters(job.plan),
        "commit_link": _commit_link(watched, job.repository, job.commit),
        "result_link": _commit_link(watched, job.repository, job.result_commit),
    }


def _traceback(
    sender: Sender, job: str, attempt: AttemptView | None, broken: Breakup | None
) -> list[LogLine]:
    if attempt is None or broken is None:
        return []
    return traceback_of(sender.queries.node_lines(job, attempt.number, broken.first.rank, LOOKED_AT))


def _loads(sender: Sender, executors: set[str]) -> dict[str, ExecutorView]:
    return {one.id: one for one in sender.queries.executors(sender.now()) if one.id in executors}


def _asking(attempt: AttemptView) -> list[str]:
    """The machines whose owner is asked, and may be answered for here."""
    return [node.executor_name for node in attempt.nodes if node.detail == OWNER_ASKED]


def parameters(plan: dict[str, Any]) -> list[dict[str, Any]]:
    """Every planned parameter with what it was before, and the rule where one changed it."""
    changed = {
        one["key"]: one
        for one in plan.get("adjusted") or ()
        if isinstance(one, dict) and {"key", "before", "after", "rule"} <= one.keys()
    }
    planned = plan.get("params") if isinstance(plan.get("params"), dict) else {}
    names = [*changed, *(name for name in planned or {} if name not in changed)]
    return [
        {"name": name, "value": changed[name]["after"] if name in changed else (planned or {})[name],
         "before": changed.get(name, {}).get("before"), "rule": changed.get(name, {}).get("rule", "")}
        for name in names
    ]  # fmt: skip


def _commit_link(repositories: Sequence[RepositoryView], name: str, commit: str) -> str:
    url = next((one.url for one in repositories if one.name == name), "")
    found = _FORGE.fullmatch(url)
    if found is None or not re.fullmatch(r"[0-9a-f]{40,64}", commit):
        return ""
    host, path = found.groups()
    return f"https://{host}/{path}{_COMMIT_PATHS.get(host, '/commit/')}{commit}"


def curves(points: Sequence[MetricPoint]) -> dict[str, str]:
    """The course of every numeric metric, as an SVG polyline's points."""
    courses: dict[str, list[float]] = {}
    for point in points:
        for name, value in point.values.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                courses.setdefault(name, []).append(float(value))
    drawn = {name: text.polyline(values) for name, values in courses.items()}
    return {name: line for name, line in drawn.items() if line}


async def metrics_csv(request: Request) -> Response:
    """All that was reported, a row each."""
    job = await in_thread(request.app.state.sender.queries.resolve, request.path_params["job"])
    headers = {"Content-Disposition": f"attachment; filename={job[:8]}-metrics.csv"}
    content = await in_thread(_metrics_csv, request.app.state.sender, job)
    return Response(content, media_type="text/csv", headers=headers)


def _metrics_csv(sender: Sender, job: str) -> str:
    rows: list[MetricRow] = []
    after = 0
    while points := sender.queries.metrics(job, after=after):
        rows += [
            MetricRow(time=one.time, rank=one.rank, step=one.step, epoch=one.epoch, values=one.values)
            for one in points
        ]
        after = points[-1].cursor
    return history_csv(rows)


# --- buttons ------------------------------------------------------------------------------------------


async def stop_job(request: Request) -> Response:
    sender, person = request.app.state.sender, request.state.person
    job = await in_thread(sender.queries.resolve, request.path_params["job"])
    with contextlib.suppress(Conflict):  # it has ended meanwhile, which the page shows
        await actions.stop(sender, job, f"stopped by {person.name}", person.actor)
    return RedirectResponse(f"/jobs/{job}", 303)


async def answer_job(request: Request) -> Response:
    sender, person = request.app.state.sender, request.state.person
    job = await in_thread(sender.queries.resolve, request.path_params["job"])
    accept = request.state.form.get("answer") == "accept"
    with contextlib.suppress(Conflict):  # somebody else has answered, which the page shows
        await actions.answer(sender, job, accept=accept, actor=person.actor)
    return RedirectResponse(f"/jobs/{job}", 303)


async def retry_job(request: Request) -> Response:
    sender = request.app.state.sender
    job = await in_thread(sender.queries.resolve, request.path_params["job"])
    return RedirectResponse(f"/jobs/{(await actions.retry(sender, job, request.state.person.actor)).id}", 303)


async def resume_job(request: Request) -> Response:
    sender = request.app.state.sender
    job = await in_thread(sender.queries.resolve, request.path_params["job"])
    return RedirectResponse(
        f"/jobs/{(await actions.resume(sender, job, request.state.person.actor)).id}", 303
    )


async def again_page(request: Request) -> Response:
    """The form of a retry with changes."""
    sender = request.app.state.sender
    job = await in_thread(sender.queries.resolve, request.path_params["job"])
    row = await in_thread(sender.store.job, job)
    said = "\n".join(
        f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in row["overrides"].items()
    )
    return await _again_form(request, job, said)


async def _again_form(
    request: Request, job: str, said: str, wrong: TrainForgeError | None = None
) -> Response:
    sender = request.app.state.sender
    detail = await in_thread(sender.queries.job, job)
    return render(
        request, "again.html", person=request.state.person, here="/jobs", job=detail, said=said,
        problem=problem(wrong) if wrong else None,
        manifest=await in_thread(sender.queries.manifest, job), status=wrong.status if wrong else 200,
    )  # fmt: skip


async def retry_with_changes(request: Request) -> Response:
    sender = request.app.state.sender
    job = await in_thread(sender.queries.resolve, request.path_params["job"])
    said = request.state.form.get("changes", "") if hasattr(request.state, "form") else ""
    try:
        changes = read_changes(said)
        again = await actions.retry(sender, job, request.state.person.actor, changes)
    except TrainForgeError as error:
        return await _again_form(request, job, said, error)
    return RedirectResponse(f"/jobs/{again.id}", 303)


def read_changes(said: str) -> dict[str, Any]:
    """Lines of KEY=VALUE, each value as YAML has it.

    Raises:
        ManifestError: a line is none, or its value is not YAML.
    """
    changes: dict[str, Any] = {}
    for line in [one.strip() for one in said.splitlines() if one.strip()][:MOST_CHANGES]:
        key, sign, value = line.partition("=")
        document = read_document(f"value: {value}", key) if sign and key.strip() else None
        if document is None or not document.usable or document.problems:
            wrong = TrainForgeError(f"{line[:80]!r} is not KEY=VALUE", hint="training.params.epochs=3")
            raise ManifestError([wrong])
        changes[key.strip()] = plain_value(document.value["value"])
    return changes


routes = [
    Route("/jobs/{job}", threaded(job_page)),
    Route("/jobs/{job}/metrics.csv", guarded(metrics_csv)),
    Route("/jobs/{job}/stop", guarded(stop_job), methods=["POST"]),
    Route("/jobs/{job}/answer", guarded(answer_job), methods=["POST"]),
    Route("/jobs/{job}/retry", guarded(retry_job), methods=["POST"]),
    Route("/jobs/{job}/resume", guarded(resume_job), methods=["POST"]),
    Route("/jobs/{job}/again", guarded(again_page)),
    Route("/jobs/{job}/again", guarded(retry_with_changes), methods=["POST"]),
]
