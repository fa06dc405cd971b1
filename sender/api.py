"""People's JSON API below `/api`; `config/views.py` has its resources."""

from __future__ import annotations

from functools import partial
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from trainforge.config.messages import CommitId, Name
from trainforge.sender import (
    actions,
    bundles,
    changes,
    github_routes,
    notices_api,
    secrets_api,
    streams,
    tails,
    trust_api,
    uploads,
    workflows,
)
from trainforge.sender.actions import in_thread
from trainforge.sender.context import Sender
from trainforge.sender.people import Person
from trainforge.sender.problems import dump, read_model, read_query
from trainforge.sender.query_forms import EventsQuery, JobsQuery, LogsQuery, MetricsQuery
from trainforge.sender.store_output import LogPage
from trainforge.sender.workflow_tokens import check_submit

MAX_WAIT_S = 30.0


class Ask(BaseModel):
    model_config = ConfigDict(extra="forbid")


class SubmitAsk(Ask):
    """Train a commit that the repository has already; `rerun` asks for it once more."""

    repository: str = Field(min_length=1, max_length=2048)
    commit: CommitId
    manifest_path: str = Field(default="trainforge.yaml", min_length=1, max_length=1024)
    ref: str = Field(default="", max_length=1024)
    overrides: dict[str, Any] = {}
    executors: list[str] = Field(default=[], max_length=1000)
    rerun: bool = False


class StopAsk(Ask):
    reason: str = Field(default="", max_length=1000)


class AnswerAsk(Ask):
    """Whether the machines that ask for their owner may train the job."""

    accept: bool


class PreviewAsk(Ask):
    manifest: str = Field(max_length=128 * 1024)
    overrides: dict[str, Any] = {}
    executors: list[str] = []


class RepositoryAsk(Ask):
    url: str = Field(min_length=1, max_length=2048)
    name: Name | None = None
    take_over: bool = False  # from another sender that works for it


def _sender(request: Request) -> Sender:
    sender: Sender = request.app.state.sender
    return sender


def _list(name: str, views: list[Any]) -> Response:
    return dump({name: [view.model_dump(mode="json") for view in views]})


async def _job(request: Request) -> str:
    return await in_thread(_sender(request).queries.resolve, request.path_params["job"])


# --- jobs ---------------------------------------------------------------------------------------------


async def list_jobs(request: Request) -> Response:
    chosen = read_query(request, JobsQuery).model_dump()
    return _list("jobs", await in_thread(partial(_sender(request).queries.jobs, **chosen)))


async def submit_job(request: Request) -> Response:
    """Train a commit; or, of a form, the ZIP that comes with it."""
    if uploads.is_upload(request):
        sender, person = _sender(request), request.state.person
        upload = await uploads.receive(request, sender.settings.max_bundle)
        with upload.file:
            form = bundles.read_ask(upload.fields)
            return dump(await bundles.train(sender, form, upload, person))
    ask = await read_model(request, SubmitAsk)
    check_submit(request.state.person, ask.repository, ask.commit, ask.ref)
    return dump(await actions.submit(_sender(request), **ask.model_dump()))


async def show_job(request: Request) -> Response:
    return dump(await in_thread(_sender(request).queries.job, await _job(request)))


async def stop_job(request: Request) -> Response:
    ask = await read_model(request, StopAsk)
    person: Person = request.state.person
    reason = ask.reason or f"stopped by {person.name}"
    return dump(await actions.stop(_sender(request), await _job(request), reason, person.actor))


async def answer_job(request: Request) -> Response:
    ask = await read_model(request, AnswerAsk)
    actor = request.state.person.actor
    return dump(await actions.answer(_sender(request), await _job(request), accept=ask.accept, actor=actor))


async def retry_job(request: Request) -> Response:
    actor = request.state.person.actor
    return dump(await actions.retry(_sender(request), await _job(request), actor))


async def resume_job(request: Request) -> Response:
    actor = request.state.person.actor
    return dump(await actions.resume(_sender(request), await _job(request), actor))


async def job_logs(request: Request) -> Response:
    """A page of lines, waiting for the first one if asked to; or all of them as server-sent events."""
    sender, job = _sender(request), await _job(request)
    asked = read_query(request, LogsQuery)
    after, wanted = asked.after, asked.wanted
    if "text/event-stream" in request.headers.get("accept", ""):
        seen = request.headers.get("last-event-id", "")
        after = int(seen) if seen.isascii() and seen.isdigit() and len(seen) < 19 else after
        if asked.page:
            return streams.stream_response(tails.follow_page(sender, job, after))
        return streams.stream_response(streams.follow_log(sender, job, after=after, wanted=wanted))
    if asked.before is not None:
        found = await in_thread(
            partial(sender.queries.last_lines, job, asked.limit, before=asked.before, wanted=wanted)
        )
        page = LogPage(found, found[-1].cursor if found else 0, ended=False)
    else:
        wait = min(asked.wait, MAX_WAIT_S)
        page = await streams.wait_for_log(
            sender, job, after=after, wanted=wanted, limit=asked.limit, wait=wait
        )
    lines = [streams.shown(line, for_page=bool(asked.page)) for line in page.lines]
    return dump({"lines": lines, "cursor": page.cursor, "ended": page.ended})


async def job_metrics(request: Request) -> Response:
    job, after = await _job(request), read_query(request, MetricsQuery).after
    return _list("points", await in_thread(partial(_sender(request).queries.metrics, job, after=after)))


async def job_artifacts(request: Request) -> Response:
    job = await in_thread(_sender(request).queries.job, await _job(request))
    return dump(
        {
            "artifacts": job.artifacts,
            "branch": job.result_branch,
            "folder": job.result_path,
            "commit": job.result_commit,
        }
    )


# --- executors, repositories, events ------------------------------------------------------------------


async def list_executors(request: Request) -> Response:
    sender = _sender(request)
    return _list("executors", await in_thread(sender.queries.executors, sender.now()))


async def show_executor(request: Request) -> Response:
    sender = _sender(request)
    return dump(await in_thread(sender.queries.executor, request.path_params["executor"], sender.now()))


async def remove_executor(request: Request) -> Response:
    named = request.path_params["executor"]
    actor = request.state.person.actor
    return dump(await in_thread(actions.remove_executor, _sender(request), named, actor))


async def drain_executor(request: Request) -> Response:
    """Also `undrain`, by the last part of the path."""
    await read_model(request, Ask)
    named, drained = request.path_params["executor"], request.url.path.endswith("/drain")
    actor = request.state.person.actor
    return dump(await in_thread(actions.drain_executor, _sender(request), named, drained, actor))


async def list_repositories(request: Request) -> Response:
    return _list("repositories", await in_thread(_sender(request).queries.repositories))


async def watch_repository(request: Request) -> Response:
    ask = await read_model(request, RepositoryAsk)
    actor = request.state.person.actor
    return dump(await actions.watch(_sender(request), ask.url, ask.name, actor, take_over=ask.take_over))


async def unwatch_repository(request: Request) -> Response:
    named, actor = request.path_params["repository"], request.state.person.actor
    return dump(await in_thread(actions.unwatch, _sender(request), named, actor))


async def list_events(request: Request) -> Response:
    chosen = read_query(request, EventsQuery).model_dump()
    return _list("events", await in_thread(partial(_sender(request).queries.events, **chosen)))


async def plan(request: Request) -> Response:
    ask = await read_model(request, PreviewAsk)
    wanted = (ask.manifest, ask.overrides, ask.executors)
    return dump(await in_thread(actions.make_plan, _sender(request), *wanted))


routes = [
    Route("/jobs", list_jobs),
    Route("/jobs", submit_job, methods=["POST"]),
    Route("/jobs/{job}", show_job),
    Route("/jobs/{job}/logs", job_logs),
    Route("/jobs/{job}/metrics", job_metrics),
    Route("/jobs/{job}/artifacts", job_artifacts),
    Route("/jobs/{job}/stop", stop_job, methods=["POST"]),
    Route("/jobs/{job}/answer", answer_job, methods=["POST"]),
    Route("/jobs/{job}/retry", retry_job, methods=["POST"]),
    Route("/jobs/{job}/resume", resume_job, methods=["POST"]),
    Route("/executors", list_executors),
    Route("/executors/{executor}", show_executor),
    Route("/executors/{executor}", remove_executor, methods=["DELETE"]),
    Route("/executors/{executor}/drain", drain_executor, methods=["POST"]),
    Route("/executors/{executor}/undrain", drain_executor, methods=["POST"]),
    Route("/repositories", list_repositories),
    Route("/repositories", watch_repository, methods=["POST"]),
    Route("/repositories/{repository}", unwatch_repository, methods=["DELETE"]),
    Route("/events", list_events),
    Route("/plan", plan, methods=["POST"]),
    *changes.routes,
    *github_routes.api_routes,
    *notices_api.routes,
    *secrets_api.routes,
    *trust_api.routes,
    *workflows.routes,
]
