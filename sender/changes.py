"""`/api/changes`: the versions of a page that lists things, told whenever it shows something else."""

from __future__ import annotations

from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from trainforge.sender import event_pages, executor_pages, job_list, streams
from trainforge.sender.context import Sender
from trainforge.sender.notify import EVENTS, EXECUTORS, JOBS
from trainforge.sender.problems import read_query
from trainforge.sender.query_forms import ChangesQuery

Version = Callable[[Sender, ChangesQuery], str]
PAGES: dict[str, tuple[list[str], Version]] = {
    "jobs": ([JOBS], lambda sender, asked: job_list.version(sender, asked.wanted)),
    "executors": ([EXECUTORS, JOBS], lambda sender, _: executor_pages.version(sender)),
    "events": (
        [EVENTS],
        lambda sender, asked: event_pages.events_version(sender, asked.repository, asked.decision),
    ),
    "queue": ([JOBS], lambda sender, _: event_pages.queue_version(sender)),
}


async def changes(request: Request) -> Response:
    """Server-sent versions of a list page: another version means that it shows something else now."""
    sender: Sender = request.app.state.sender
    asked = read_query(request, ChangesQuery)
    keys, read = PAGES[asked.page]
    return streams.stream_response(streams.follow_version(sender, keys, lambda: read(sender, asked)))


routes = [Route("/changes", changes)]
