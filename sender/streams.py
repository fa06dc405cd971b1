"""Answers that last: long polls and server-sent events over a job's log and the pages' versions."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from pydantic import BaseModel
from starlette.responses import StreamingResponse

from trainforge.config.views import LogLine
from trainforge.sender.context import Sender
from trainforge.sender.notify import Listener, job_key
from trainforge.sender.store_output import LogFilter, LogPage
from trainforge.sender.text import plain

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


async def follow_log(
    sender: Sender, job: str, *, after: int, wanted: LogFilter, for_page: bool
) -> AsyncIterator[str]:
    """Every line as it comes, up to the job's end; for a page also its versions, and text without codes."""
    versions = _Versions(lambda: job_version(sender, job)) if for_page else None
    with sender.bell.listen(job_key(job)) as listener:
        yield "retry: 1000\n\n"
        while not sender.stopping:
            page = await asyncio.to_thread(sender.queries.logs, job, after=after, limit=CHUNK, wanted=wanted)
            after = page.cursor
            if page.lines:
                yield "".join(_line_event(line, for_page) for line in page.lines)
            if versions and (page.ended or versions.due()):
                yield await versions.read()
            if page.ended:
                yield event({}, name="end")
                return
            if len(page.lines) < CHUNK and (said := await _rest(listener, versions)):
                yield said


async def _rest(listener: Listener, versions: _Versions | None) -> str:
    """Wait until there may be something to say; gives a sign of life when there was nothing for long."""
    patience = versions.patience() if versions else KEEP_ALIVE_S
    rung = await listener.wait(patience)
    if rung and versions:
        versions.stale = True
    return "" if rung or patience < KEEP_ALIVE_S else ": still here\n\n"


class _Versions:
    """Limits how often a page's version is worked out."""

    def __init__(self, read: Callable[[], str]) -> None:
        self._read = read
        self._clock = asyncio.get_running_loop().time
        self._next = 0.0
        self.stale = True

    def due(self) -> bool:
        return self.stale and self._clock() >= self._next

    def patience(self) -> float:
        return max(self._next - self._clock(), 0.0) if self.stale else KEEP_ALIVE_S

    async def read(self) -> str:
        self.stale = False
        self._next = self._clock() + VERSION_EVERY_S
        return event(await asyncio.to_thread(self._read), name="version")


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


def job_version(sender: Sender, job: str) -> str:
    return version_of(sender.queries.job(job))


def shown(line: LogLine, *, for_page: bool) -> dict[str, Any]:
    """A line as data; for a page its text without what is meant for terminals."""
    data = line.model_dump(mode="json")
    if for_page:
        data["text"] = plain(line.text)
    return data


def _line_event(line: LogLine, for_page: bool) -> str:
    return event(shown(line, for_page=for_page), cursor=line.cursor)
