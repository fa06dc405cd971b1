"""The pages of what arrived and what came of it, and of the jobs that wait."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from trainforge.sender import actions, streams
from trainforge.sender.actions import in_thread
from trainforge.sender.context import Sender
from trainforge.sender.pages import guarded, render, threaded

ROWS = 50
QUEUE_ROWS = 200
DECISIONS = ("job", "ignored", "refused")


# --- events -------------------------------------------------------------------------------------------


async def events_page(request: Request) -> Response:
    return await _events(request)


async def _events(request: Request, lines: list[str] | None = None) -> Response:
    sender: Sender = request.app.state.sender
    params = request.query_params
    decision = params.get("decision", "")
    chosen = {
        "repository": params.get("repository", "")[:200],
        "decision": decision if decision in DECISIONS else "",
    }
    text = params.get("before", "")
    before = int(text) if text.isascii() and text.isdigit() and len(text) < 16 else 0
    read = sender.queries.events
    events = await in_thread(lambda: read(before=before, limit=ROWS, **chosen))
    kept = {name: value for name, value in chosen.items() if value}
    repositories = await in_thread(sender.queries.repositories)
    return render(
        request, "events.html", person=request.state.person, here="/events", events=events, chosen=chosen,
        stream="" if before else "/api/changes?" + urlencode({"page": "events"} | kept),
        version=streams.version_of(*events), decisions=DECISIONS, lines=lines,
        repositories=repositories, ids={one.name: one.id for one in repositories},
        older="/events?" + urlencode(kept | {"before": events[-1].id}) if len(events) == ROWS else "",
    )  # fmt: skip


def events_version(sender: Sender, repository: str, decision: str) -> str:
    return streams.version_of(*sender.queries.events(repository=repository, decision=decision, limit=ROWS))


async def look_again(request: Request) -> Response:
    """As if a delivery had come once more: the repository's heads are read now."""
    sender: Sender = request.app.state.sender
    named = getattr(request.state, "form", {}).get("repository", "")
    repository = await in_thread(sender.store.repository, named)
    lines = await actions.look(sender, repository.id, "look")
    return await _events(request, lines or ["Nothing new: every head was handled before."])


# --- the queue ----------------------------------------------------------------------------------------


def queue_page(request: Request) -> Response:
    sender: Sender = request.app.state.sender
    waiting = sender.store.list_queue(QUEUE_ROWS)
    line = sender.line()
    names = {view.id: view.name for view in sender.queries.executors(sender.now())} if line.held else {}
    shown: dict[str, Any] = {
        "waiting": waiting,
        "in_line": {job.id for job in line.jobs},
        "held": [names.get(executor, executor) for executor in sorted(line.held)],
        "more": len(waiting) == QUEUE_ROWS,
    }
    return render(
        request, "queue.html", person=request.state.person, here="/queue",
        stream="/api/changes?page=queue", version=queue_version(sender), **shown,
    )  # fmt: skip


def queue_version(sender: Sender) -> str:
    return streams.version_of(*(job for job, _ in sender.store.list_queue(QUEUE_ROWS)))


routes = [
    Route("/events", guarded(events_page)),
    Route("/events/look", guarded(look_again), methods=["POST"]),
    Route("/queue", threaded(queue_page)),
]
