"""Answers that last: long polls and server-sent events over a job's log and the pages' versions."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel
from starlette.responses import StreamingResponse

from trainforge.config.messages import OUTCOMES
from trainforge.config.views import LogLine
from trainforge.sender.notify import job_key
from trainforge.sender.store_output import LogFilter, LogPage
from trainforge.sender.text import plain

if TYPE_CHECKING:
    from trainforge.sender.context import Sender
    from trainforge.sender.queries import Queries

KEEP_ALIVE_S = 15.0
VERSION_EVERY_S = 1.0  # a page in a browser is brought up to date at most so often
LOOK_AGAIN_S = 5.0  # for what changes by the passing of time alone, such as an executor going offline
CHUNK = 500


def event(data: Any, *, name: str = "", cursor: int | None = None) -> str:
    """One server-sent event. JSON has no raw line ends, so `data` is always one line."""
    fields = [f"id: {cursor}"] if cursor is not None else []
    fields += [f"event: {name}"] if name else []
    return "\n".join([*fields, f"data: {json.dumps(data)}"]) + "\n\n"


def stream_response(events: AsyncIterator[str]) -> StreamingResponse:
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(events, media_type="text/event-stream", headers=headers)


def version_of(*shown: BaseModel) -> str:
    """A short name for what is shown; another one means that it should be shown again."""
    digest = hashlib.sha256()
    for part in shown:
        digest.update(part.model_dump_json().encode("utf-8", "surrogatepass") + b"\n")
    return digest.hexdigest()[:16]


async def wait_for_log(
    sender: Sender, job: str, *, after: int, wanted: LogFilter, limit: int, wait: float
) -> LogPage:
    """Lines after a cursor; waits up to `wait` seconds for the first one or for the job's end."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + wait
    with sender.bell.listen(job_key(job)) as listener:
        while True:
            page = await asyncio.to_thread(sender.queries.logs, job, after=after, limit=limit, wanted=wanted)
            left = deadline - loop.time()
            if page.lines or page.ended or left <= 0 or not await listener.wait(left):
                return page


async def follow_log(sender: Sender, job: str, *, after: int, wanted: LogFilter) -> AsyncIterator[str]:
    """Every line as it comes, up to the job's end."""
    with sender.bell.listen(job_key(job)) as listener:
        yield "retry: 1000\n\n"
        while not sender.stopping:
            page = await asyncio.to_thread(sender.queries.logs, job, after=after, limit=CHUNK, wanted=wanted)
            after = page.cursor
            if page.lines:
                yield "".join(line_event(line, for_page=False) for line in page.lines)
            if page.ended:
                yield event({}, name="end")
                return
            if len(page.lines) < CHUNK and not await listener.wait(KEEP_ALIVE_S):
                yield ": still here\n\n"


async def follow_version(sender: Sender, keys: list[str], read: Callable[[], str]) -> AsyncIterator[str]:
    """The version of a page whenever it is another one."""
    seen = ""
    loop = asyncio.get_running_loop()
    with sender.bell.listen(*keys) as listener:
        yield "retry: 1000\n\n"
        spoken = loop.time()
        while not sender.stopping:
            version = await asyncio.to_thread(read)
            if version != seen:
                seen, spoken = version, loop.time()
                yield event(version, name="version")
                await asyncio.sleep(VERSION_EVERY_S if not sender.stopping else 0)
            elif loop.time() - spoken > KEEP_ALIVE_S:
                spoken = loop.time()
                yield ": still here\n\n"
            await listener.wait(LOOK_AGAIN_S)


def job_version(queries: Queries, job: str) -> str:
    """Of a job's page, which shows how busy its machines are as well."""
    detail = queries.job(job)
    return version_of(detail, *(queries.loads(job) if detail.state not in OUTCOMES else {}).values())


def shown(line: LogLine, *, for_page: bool) -> dict[str, Any]:
    """A line as data; for a page its text without what is meant for terminals."""
    data = line.model_dump(mode="json")
    if for_page:
        data["text"] = plain(line.text)
    return data


def line_event(line: LogLine, *, for_page: bool) -> str:
    return event(shown(line, for_page=for_page), cursor=line.cursor)
