"""The page with the list of jobs."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any
from urllib.parse import urlencode

from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from trainforge.config.counters import measured
from trainforge.config.errors import Conflict, ManifestError, NotFound
from trainforge.config.manifest import parse_manifest
from trainforge.config.views import JobSummary
from trainforge.sender import streams
from trainforge.sender.context import Sender
from trainforge.sender.pages import render, threaded
from trainforge.sender.store_events import PUSH_SOURCES, REPOSITORY_DISPATCH
from trainforge.sender.store_listing import Listed, Wanted

STATES = ("active", "pending", "planning", "dispatching", "running", "completed", "failed", "cancelled")
SOURCES = (
    *PUSH_SOURCES, "pull_request", "github", REPOSITORY_DISPATCH, "schedule", "submit", "upload", "retry",
    "plan", "dispatch",
)  # fmt: skip
ROWS = 50
LONGEST = 200
_JOB_ID = re.compile(r"[a-z2-7]{8,26}\Z")
_USUAL = ("accuracy", "eval_accuracy", "loss", "eval_loss")


def wanted_of(params: QueryParams) -> Wanted:
    """What an address asks for; a state that there is not counts for nothing."""
    said = {name: params.get(name, "")[:LONGEST] for name in vars(Wanted())}
    return Wanted(**said | {"state": said["state"] if said["state"] in STATES else ""})


def jobs_page(request: Request) -> Response:
    sender: Sender = request.app.state.sender
    wanted = wanted_of(request.query_params)
    if _JOB_ID.match(wanted.q) and (named := _named(sender, wanted.q)):
        return RedirectResponse(f"/jobs/{named}", 303)
    page = sender.store.list_jobs(wanted, ROWS)
    jobs = [one.job for one in page.jobs]
    return render(
        request,
        "jobs.html",
        person=request.state.person,
        here="/jobs",
        stream="" if wanted.before else "/api/changes?" + urlencode({"page": "jobs"} | wanted.filters),
        version=streams.version_of(*jobs),
        jobs=jobs,
        metrics=_key_metrics(sender, page.jobs),
        left={job.id: seconds_left(job, sender.now()) for job in jobs},
        chosen=wanted,
        states=STATES,
        sources=SOURCES,
        repositories=[view.name for view in sender.queries.repositories()],
        page=page,
        older="/jobs?" + urlencode(wanted.filters | {"before": page.older}) if page.older else "",
    )


def _named(sender: Sender, text: str) -> str:
    """The one job whose id begins so, if it is one."""
    try:
        return sender.queries.resolve(text)
    except (NotFound, Conflict):
        return ""


def version(sender: Sender, wanted: Wanted) -> str:
    return streams.version_of(*(one.job for one in sender.store.list_jobs(wanted, ROWS).jobs))


def seconds_left(job: JobSummary, now: float) -> float | None:
    """For how long it goes on, if it goes on as until now."""
    if job.state != "running" or job.started is None or not job.progress or not 0.01 < job.progress < 1:
        return None
    return (now - job.started) * (1 - job.progress) / job.progress


# --- the metric that a job is about -----------------------------------------------------------------------


def _key_metrics(sender: Sender, listed: list[Listed]) -> dict[str, tuple[str, Any]]:
    """Of each job the metric that its manifest calls the primary one, or else a usual one."""
    telling = [one for one in listed if one.job.metrics]
    texts = sender.store.manifest_texts([one.job.id for one in telling])
    shown = {one.job.id: key_metric(one.job, primary_of(texts[one.manifest_blob])) for one in telling}
    return {job: metric for job, metric in shown.items() if metric is not None}


@lru_cache(maxsize=1000)
def primary_of(manifest: str) -> str:
    """The name of a manifest's primary metric; empty where there is none."""
    try:
        return str(parse_manifest(manifest).metrics.primary or "")
    except ManifestError:
        return ""


def key_metric(job: JobSummary, primary: str) -> tuple[str, Any] | None:
    values = measured(job.metrics)
    for name in (primary, *_USUAL, *sorted(values)):
        if name in values:
            return name, values[name]
    return None


routes = [Route("/jobs", threaded(jobs_page))]
