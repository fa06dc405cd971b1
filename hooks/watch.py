"""Two ways to notice that a repository moved without being told: looking now and then, and watching a disk.

Both only call `hint(repository_id, source)`: what changed, and what it means, is found out by whoever
compares heads. So calling once too often costs a look, and a missed call waits for the next poll.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from types import TracebackType

from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer

from trainforge.config.errors import NotFound

Hint = Callable[[str, str], Awaitable[object]]

logger = logging.getLogger("trainforge.watch")

SETTLE_S = 0.05
BACKOFF_LIMIT = 10
_REF_FILES = ("HEAD", "packed-refs")


async def poll(
    repositories: Callable[[], Iterable[str]],
    hint: Hint,
    *,
    interval: float,
    jitter: Callable[[], float] = random.random,
) -> None:
    """Hint at every repository each `interval` seconds (and up to a tenth more), until cancelled.

    One whose look fails is left out for twice as many rounds each time, so that a dead remote among many
    does not cost a timeout every minute.
    """
    failures: dict[str, int] = {}
    waits: dict[str, int] = {}
    while True:
        for repository in list(repositories()):
            if waits.get(repository, 0) > 0:
                waits[repository] -= 1
                continue
            try:
                await hint(repository, "poll")
            except Exception:  # boundary: one repository's trouble never ends the watch over the others
                failures[repository] = failures.get(repository, 0) + 1
                waits[repository] = min(2 ** failures[repository] - 1, BACKOFF_LIMIT)
                logger.warning("looking at %s failed", repository, exc_info=True)
            else:
                failures.pop(repository, None)
        await asyncio.sleep(interval * (1 + jitter() / 10))


class LocalWatcher:
    """Watches the refs of repositories on this disk; use as an async context manager.

    A push or commit makes several changes on disk: they are gathered for a moment into one hint.
    """

    def __init__(self, hint: Hint, *, settle: float = SETTLE_S) -> None:
        self._hint, self._settle = hint, settle
        self._observer = Observer()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: dict[str, asyncio.TimerHandle] = {}
        self._running: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> LocalWatcher:
        self._loop = asyncio.get_running_loop()
        await asyncio.to_thread(self._observer.start)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._observer.stop()
        await asyncio.to_thread(self._observer.join)
        for timer in self._waiting.values():
            timer.cancel()
        for task in list(self._running):
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    def watch(self, repository_id: str, path: Path) -> None:
        """Begin to watch a bare repository, or the one of a work tree.

        Raises:
            NotFound: no repository there.
        """
        folder = git_folder(path)
        handler = _RefsChanged(folder, lambda: self._noticed(repository_id))
        self._observer.schedule(handler, str(folder), recursive=False)
        self._observer.schedule(handler, str(folder / "refs"), recursive=True)

    def _noticed(self, repository_id: str) -> None:
        """Called on watchdog's thread."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._settle_down, repository_id)

    def _settle_down(self, repository_id: str) -> None:
        if self._loop is not None and repository_id not in self._waiting:
            self._waiting[repository_id] = self._loop.call_later(self._settle, self._start, repository_id)

    def _start(self, repository_id: str) -> None:
        self._waiting.pop(repository_id, None)
        task = asyncio.ensure_future(self._look(repository_id))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _look(self, repository_id: str) -> None:
        try:
            await self._hint(repository_id, "watch")
        except Exception:  # boundary: the next change is another chance
            logger.warning("looking at %s failed", repository_id, exc_info=True)


class _RefsChanged(FileSystemEventHandler):
    def __init__(self, folder: Path, noticed: Callable[[], None]) -> None:
        self._refs, self._files = str(folder / "refs"), {str(folder / name) for name in _REF_FILES}
        self._noticed = noticed

    def on_any_event(self, event: FileSystemEvent) -> None:
        # A new folder counts: what was put into it before it could be watched is seen by looking alone.
        if event.event_type in ("opened", "closed_no_write") or (
            event.is_directory and event.event_type == "modified"
        ):
            return
        for raw in (event.dest_path, event.src_path):
            path = raw if isinstance(raw, str) else bytes(raw).decode(errors="surrogateescape")
            if path.endswith(".lock"):
                continue
            if path in self._files or path.startswith(self._refs):
                self._noticed()
                return


def git_folder(path: Path) -> Path:
    """The git directory of a bare repository or a work tree.

    Raises:
        NotFound: neither.
    """
    for folder in (path / ".git", path):
        if (folder / "HEAD").is_file() and (folder / "refs").is_dir():
            return folder.resolve()
    raise NotFound(f"there is no git repository in {path}", hint="give a bare repository or a work tree")
