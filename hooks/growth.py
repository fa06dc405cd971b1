"""How much a fetch may bring: git itself has no such limit, so the repository is watched while it grows.

A server says nothing of a pack's size beforehand, and a small pack can hold large files. What counts is what
git writes below `objects`. A fetch that is ended for it leaves nothing of it behind.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

MOST = 20 * 2**30
LOOK_S = 0.2
PATIENCE = 10  # looking may take a tenth of the time
COARSE_S = 0.05  # by how much a file's time may be behind the clock


@dataclass
class Growth:
    """Of one bare repository during one command, which nobody else writes to meanwhile."""

    repository: Path
    most: int
    exceeded: bool = False

    @contextlib.contextmanager
    def watched(self, end: Callable[[], None]) -> Iterator[None]:
        """Call `end` once it has grown by more."""
        begun, over = time.time() - COARSE_S, threading.Event()
        watcher = threading.Thread(target=self._watch, args=(begun, over, end), daemon=True)
        watcher.start()
        try:
            yield
        finally:
            over.set()
            watcher.join()
            if self.exceeded:
                remove_halves(self.repository)

    def _watch(self, begun: float, over: threading.Event, end: Callable[[], None]) -> None:
        pause = LOOK_S
        while not over.wait(pause):  # most commands have ended by then
            looked = time.monotonic()
            if _written(self.repository, begun) > self.most:
                self.exceeded = True
                end()
                return
            pause = max(LOOK_S, PATIENCE * (time.monotonic() - looked))


def remove_halves(repository: Path) -> None:
    """What commands left that were killed. For who holds the repository's lock."""
    for pattern in ("pack/tmp_*", "tmp_*", "??/tmp_*"):
        for path in (repository / "objects").glob(pattern):
            with contextlib.suppress(OSError):
                path.unlink()


def _written(repository: Path, since: float) -> int:
    """Bytes of the files below `objects` that have changed since then."""
    total = 0
    for path in (repository / "objects").glob("*/*"):
        with contextlib.suppress(OSError):  # it was renamed or removed a moment ago
            status = path.stat()
            total += status.st_size if status.st_ctime >= since else 0
    return total
