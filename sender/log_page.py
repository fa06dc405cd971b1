"""A job's merged log: pages of it without any script, and all of it as a file."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from functools import partial
from typing import Any
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from trainforge.config.errors import MessageInvalid
from trainforge.config.views import LogLine
from trainforge.sender.actions import in_thread
from trainforge.sender.levels import LEVELS
from trainforge.sender.pages import guarded, render
from trainforge.sender.store_output import MAX_ROWS, LogFilter
from trainforge.sender.text import plain

ROWS = 200
MOST_RANKS = 64
LONGEST_SEARCH = 200


def read_filter(request: Request) -> LogFilter:
    """What of the log is wanted, as the address says.

    Raises:
        MessageInvalid: a rank that is no number, or a level that does not exist.
    """
    query = request.query_params
    levels = tuple(level for level in query.getlist("level") if level)
    if unknown := set(levels) - set(LEVELS):
        raise MessageInvalid(f"there is no level {min(unknown)[:40]!r}", hint=", ".join(LEVELS))
    ranks = tuple(_number(one, "rank") for one in query.getlist("rank")[:MOST_RANKS] if one)
    return LogFilter(ranks, levels, query.get("q", "").replace("\0", "")[:LONGEST_SEARCH])


def _number(text: str, name: str) -> int:
    digits = text.removeprefix("-")
    if not digits.isascii() or not digits.isdigit() or len(digits) > 18:
        raise MessageInvalid(f"{name} is {text[:40]!r}, not a whole number")
    return int(text)


def _cursor(request: Request, name: str) -> int | None:
    text = request.query_params.get(name, "")
    return _number(text, name) if text else None


def read_page(request: Request, job: str, rows: int = ROWS) -> tuple[list[LogLine], bool, bool]:
    """Lines in order, and whether there are older and newer ones. Without a cursor, the newest."""
    queries, wanted = request.app.state.sender.queries, read_filter(request)
    after = _cursor(request, "after")
    if after is None:
        before = _cursor(request, "before")
        lines = queries.last_lines(job, rows + 1, before=before, wanted=wanted)
        return lines[-rows:], len(lines) > rows, before is not None
    found = queries.logs(job, after=after, limit=rows + 1, wanted=wanted).lines
    return found[:rows], after > 0, len(found) > rows


async def log_page(request: Request) -> Response:
    sender = request.app.state.sender
    job = await in_thread(sender.queries.resolve, request.path_params["job"])
    lines, older, newer = await in_thread(read_page, request, job)
    wanted = read_filter(request)

    def to(**cursor: int) -> str:
        return f"/jobs/{job}/log?{address_of(wanted, **cursor)}"

    return render(
        request, "log.html", person=request.state.person, here="/jobs", job=job, lines=lines, wanted=wanted,
        ranks=await in_thread(sender.queries.log_ranks, job), levels=LEVELS,
        older=to(before=lines[0].cursor) if older and lines else "",
        newer=to(after=lines[-1].cursor) if newer and lines else "",
        first=to(after=0), last=to(),
    )  # fmt: skip


def address_of(wanted: LogFilter, **cursor: int) -> str:
    fields: list[tuple[str, Any]] = [("rank", rank) for rank in wanted.ranks]
    fields += [("level", level) for level in wanted.levels]
    fields += [("q", wanted.text)] if wanted.text else []
    return urlencode([*fields, *cursor.items()])


async def log_text(request: Request) -> Response:
    """The lines that the filter lets through, as a file."""
    job = await in_thread(request.app.state.sender.queries.resolve, request.path_params["job"])
    wanted = read_filter(request)
    headers = {"Content-Disposition": f"attachment; filename={job[:8]}.log"}
    return StreamingResponse(_text(request, job, wanted), media_type="text/plain", headers=headers)


async def _text(request: Request, job: str, wanted: LogFilter) -> AsyncIterator[str]:
    read, after = request.app.state.sender.queries.logs, 0
    while True:
        page = await in_thread(partial(read, job, after=after, limit=MAX_ROWS, wanted=wanted))
        yield "".join(map(_as_text, page.lines))
        if len(page.lines) < MAX_ROWS:
            return
        after = page.cursor


def _as_text(line: LogLine) -> str:
    time = datetime.fromtimestamp(line.time, UTC).isoformat(timespec="milliseconds")
    who = f"rank {line.rank}" if line.rank >= 0 else f"node {line.node}"
    return f"{time.removesuffix('+00:00')}Z {who} {plain(line.text)}\n"


routes = [
    Route("/jobs/{job}/log", guarded(log_page)),
    Route("/jobs/{job}/log.txt", guarded(log_text)),
]
