"""Two ways to notice that a repository moved without being told: looking now and then, and watching a disk.

Both only call `hint(repository_id, source)`: what changed, and what it means, is found out by whoever
compares heads. So calling once too often costs a look, and a missed call waits for the next poll.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer

from trainforge.config.errors import NotFound, TrainForgeError

Hint = Callable[[str, str], Awaitable[object]]

logger = logging.getLogger("trainforge.watch")

SETTLE_S = 0.05
BACKOFF_LIMIT = 10
AT_ONCE = 8
_REF_FILES = ("HEAD", "packed-refs")


@dataclass
class _Trouble:
    """A repository whose looks fail: how often in a row, what was said, rounds to leave it out for."""

    failures: int = 0
    said: str = ""
    rest: int = 0


async def poll(
    repositories: Callable[[], Iterable[str]],
    hint: Hint,
    *,
    interval: float,
    jitter: Callable[[], float] = random.random,
) -> None:
    """Hint at every repository each `interval` seconds (and up to a tenth more), until cancelled.

    They are looked at beside each other, so a remote that does not answer delays no other one. One whose
    look fails is left out for twice as many rounds each time.
    """
    troubles: dict[str, _Trouble] = {}
    looks: dict[str, asyncio.Task[None]] = {}
    free = asyncio.Semaphore(AT_ONCE)
    try:
        while True:
            for repository in list(repositories()):
                trouble = troubles.setdefault(repository, _Trouble())
                if repository in looks:
                    continue
                if trouble.rest > 0:
                    trouble.rest -= 1
                    continue
                look = asyncio.create_task(_look(repository, hint, trouble, free), name=repository)
                looks[repository] = look
                look.add_done_callback(lambda ended: looks.pop(ended.get_name()))
            await asyncio.sleep(interval * (1 + jitter() / 10))
    finally:
        under_way = list(looks.values())
        for look in under_way:
            look.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)


async def _look(repository: str, hint: Hint, trouble: _Trouble, free: asyncio.Semaphore) -> None:
    try:
        async with free:
            await hint(repository, "poll")
    except Exception as error:  # boundary: one repository's trouble never ends the watch over the others
        trouble.failures += 1
        trouble.rest = min(2**trouble.failures - 1, BACKOFF_LIMIT)
        said = str(error) or type(error).__name__
        if said != trouble.said:
            ours = isinstance(error, TrainForgeError)
            logger.warning("looking at %s failed: %s", repository, said, exc_info=not ours)
        trouble.said = said
    else:
        if trouble.failures:
            logger.info("looking at %s works again", repository)
        trouble.failures, trouble.said = 0, ""


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
