"""Results that wait to be pushed to one branch go together: whoever's turn comes takes the others along.

GitHub recommends at most six pushes a minute to a repository ("Repository limits"); a sweep of short jobs
has more results than that. Where no turns are given, a result is pushed at once, and those that come in the
meantime go together afterwards.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainforge.config.errors import TrainForgeError
from trainforge.hooks.results import Entry, Outcome, Written

MOST = 50
MOST_BYTES = 512 * 2**20  # of files; GitHub takes 2 GiB in a push
ASK_AGAIN_S = 5.0  # it may come sooner than was said
LOOK_S = 1.0  # a turn that is far may be needed no more: another's push took this result along

Push = Callable[[Sequence[Entry]], tuple[Written, list[Outcome]]]


@dataclass(eq=False)
class _Waiting:
    entry: Entry
    size: int
    alone: bool = False  # it, or one that it went along with, was refused: by itself it tells which
    outcome: Outcome = None


class ResultQueue:
    """The results of one program for one branch. To be used from many threads, one for each result."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._guard = threading.Lock()
        self._pushing = threading.Lock()
        self._waiting: list[_Waiting] = []
        self._turn_at = self._ask_at = 0.0

    def write(
        self, entry: Entry, push: Push, *, turn: Callable[[], float], wait: Callable[[float], None]
    ) -> Written:
        """Have this result pushed, by this thread or along with another's.

        `turn` gives the seconds until this program may push, 0 for now. `wait` is called between looks, with
        seconds; it may raise to give up.

        Raises:
            TrainForgeError: as `hooks.results.write_results`, and as `turn` and `wait` say.
        """
        mine = _Waiting(entry, _size(entry))
        with self._guard:
            self._waiting.append(mine)
        try:
            pause = self._look(mine, push, turn)
            while mine.outcome is None:
                wait(pause)
                pause = self._look(mine, push, turn)
        finally:
            with self._guard:
                self._waiting.remove(mine)
        if isinstance(mine.outcome, TrainForgeError):
            raise mine.outcome
        return mine.outcome

    def _look(self, mine: _Waiting, push: Push, turn: Callable[[], float]) -> float:
        """Push if it is time; the seconds until it may be worth to look again."""
        if not self._pushing.acquire(timeout=LOOK_S):
            return 0.0
        try:
            if mine.outcome is not None:
                return 0.0
            now = self._clock()
            if now >= self._ask_at:
                self._turn_at = now + turn()
                self._ask_at = min(self._turn_at, now + ASK_AGAIN_S)
            if self._turn_at > now:
                return self._turn_at - now
            self._push(mine, push)
            return 0.0
        finally:
            self._pushing.release()

    def _push(self, mine: _Waiting, push: Push) -> None:
        batch = self._batch(mine)
        try:
            mine.outcome, outcomes = push([one.entry for one in batch])
        except (TrainForgeError, OSError):
            if len(batch) == 1:
                raise
            for one in batch:
                one.alone = True
            return
        for one, outcome in zip(batch[1:], outcomes, strict=True):
            one.outcome = outcome

    def _batch(self, mine: _Waiting) -> list[_Waiting]:
        batch, size = [mine], mine.size
        with self._guard:
            others = [one for one in self._waiting if one is not mine and one.outcome is None]
        for one in others:
            if mine.alone or one.alone or len(batch) == MOST or size + one.size > MOST_BYTES:
                continue
            batch.append(one)
            size += one.size
        return batch


def _size(entry: Entry) -> int:
    """Bytes of its files; one that cannot be read says so when it is pushed."""
    total = 0
    for content in entry.files.values():
        if isinstance(content, Path):
            try:
                total += content.lstat().st_size
            except OSError:
                continue
        else:
            total += len(content)
    return total


class ResultQueues:
    """One for each branch of each remote."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._of: dict[tuple[str, str], ResultQueue] = {}

    def of(self, url: str, branch: str) -> ResultQueue:
        with self._guard:
            return self._of.setdefault((url, branch), ResultQueue())
