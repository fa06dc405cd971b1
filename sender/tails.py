"""A job's page while it lives: its newest lines and its version, read and encoded once for all who look.

One task per job that is watched does the reading. A page shows a few hundred lines, so one that is further
behind is told that lines were skipped, and gets the newest; the others are there to be scrolled back to.
"""

from __future__ import annotations

import asyncio
import contextlib
from bisect import bisect_right
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import TYPE_CHECKING

from trainforge.config.views import LogLine
from trainforge.sender import streams
from trainforge.sender.notify import job_key

if TYPE_CHECKING:
    from trainforge.sender.context import Sender

KEPT = 300  # lines
REST_S = 0.5  # between two looks; the first line after a silence comes at once
PER_VIEWER_S = 0.02  # many pages are brought up to date less often, as each is fetched again


class Tails:
    """Those that somebody looks at."""

    def __init__(self) -> None:
        self._tails: dict[str, Tail] = {}

    @contextlib.contextmanager
    def of(self, sender: Sender, job: str) -> Iterator[Tail]:
        tail = self._tails.get(job)
        if tail is None or tail.over:
            tail = self._tails[job] = Tail(sender, job)
        tail.viewers += 1
        try:
            yield tail
        finally:
            tail.viewers -= 1
            if not tail.viewers:
                tail.close()
                if self._tails.get(job) is tail:
                    del self._tails[job]


class Tail:
    """`over`: nothing more comes, as the job has ended or the sender does."""

    def __init__(self, sender: Sender, job: str) -> None:
        self._sender, self._job = sender, job
        self.viewers = 0
        self.version = ""
        self.ended = self.over = False
        self.news = asyncio.Event()  # of what came since; another one each time
        self._first = -1  # all lines after this one are held; none was read yet
        self._cursors: list[int] = []
        self._lines: list[str] = []
        self._joined: dict[int, str] = {}
        self._stale, self._next_version = True, 0.0
        self._task = asyncio.create_task(self._run())

    def close(self) -> None:
        self._task.cancel()

    @property
    def last(self) -> int:
        return self._cursors[-1] if self._cursors else max(self._first, 0)

    def since(self, after: int) -> tuple[str, int] | None:
        """The lines after a cursor, as events, and the last one's cursor; None where some are not held."""
        if self._first < 0:
            return "", after
        if after < self._first:
            return None
        if after not in self._joined:
            self._joined[after] = "".join(self._lines[bisect_right(self._cursors, after) :])
        return self._joined[after], max(self.last, after)

    def newest(self) -> tuple[str, int]:
        return self.since(max(self._first, 0)) or ("", 0)

    # --- reading ------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        clock = asyncio.get_running_loop().time
        try:
            with self._sender.bell.listen(job_key(self._job)) as listener:
                while not self._sender.stopping and not self.ended:
                    began = clock()
                    await self._look(began)
                    self._tell()
                    wait = self._next_version - clock() if self._stale else streams.LOOK_AGAIN_S
                    rung = self.ended or await listener.wait(wait)
                    self._stale = self._stale or rung or wait == streams.LOOK_AGAIN_S
                    if not self.ended:
                        await asyncio.sleep(max(began + REST_S - clock(), 0.0))
        finally:
            self.over = True
            self._tell()

    async def _look(self, now: float) -> None:
        after = self.last if self._first >= 0 else None
        lines, gap, ended = await asyncio.to_thread(self._read, after)
        if gap or after is None:
            self._cursors, self._lines = [], []
            self._first = lines[0].cursor - 1 if lines else 0
        self._add(lines)
        if ended or (self._stale and now >= self._next_version):
            self._stale = False
            self._next_version = now + max(streams.VERSION_EVERY_S, self.viewers * PER_VIEWER_S)
            self.version = await asyncio.to_thread(streams.job_version, self._sender.queries, self._job)
        self.ended = ended

    def _read(self, after: int | None) -> tuple[Sequence[LogLine], bool, bool]:
        """Lines after a cursor, whether some before them were left out, and whether the job has ended."""
        queries = self._sender.queries
        newest = queries.last_lines(self._job, KEPT) if after is None else []
        page = queries.logs(self._job, after=newest[-1].cursor if newest else after or 0, limit=KEPT)
        if len(page.lines) < KEPT:
            return [*newest, *page.lines], False, page.ended
        return queries.last_lines(self._job, KEPT), True, False

    def _add(self, lines: Sequence[LogLine]) -> None:
        self._joined = {}
        self._cursors += [line.cursor for line in lines]
        self._lines += [streams.line_event(line, for_page=True) for line in lines]
        if (extra := len(self._lines) - KEPT) > 0:
            self._first = self._cursors[extra - 1]
            del self._cursors[:extra], self._lines[:extra]

    def _tell(self) -> None:
        old, self.news = self.news, asyncio.Event()
        old.set()


async def follow_page(sender: Sender, job: str, after: int) -> AsyncIterator[str]:
    """What a job's page is told: lines, that some were skipped, the page's versions, and the job's end."""
    yield "retry: 1000\n\n"
    version = ""
    with sender.tails.of(sender, job) as tail:
        if not tail.version:
            await _news(tail.news)
        said, after = await _missed(sender, job, after, tail)
        while True:
            news, found = tail.news, tail.since(after)
            if found is None:
                said, found = said + streams.event({}, name="skipped"), tail.newest()
            lines, after = found
            said += lines
            if tail.version != version:
                version = tail.version
                said += streams.event(version, name="version")
            if tail.ended:
                said += streams.event({}, name="end")
            if said:
                yield said
            if tail.over or tail.ended:
                return
            said = ""
            if not await _news(news):
                yield ": still here\n\n"


async def _news(news: asyncio.Event) -> bool:
    try:
        async with asyncio.timeout(streams.KEEP_ALIVE_S):
            await news.wait()
    except TimeoutError:
        return False
    return True


async def _missed(sender: Sender, job: str, after: int, tail: Tail) -> tuple[str, int]:
    """For a page that comes back, or comes late: the lines before those that are held, if they are few."""
    if tail.since(after) is not None:
        return "", after
    page = await asyncio.to_thread(sender.queries.logs, job, after=after, limit=KEPT)
    if tail.since(page.cursor) is None:
        return "", after
    return "".join(streams.line_event(line, for_page=True) for line in page.lines), page.cursor
