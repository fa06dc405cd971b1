"""How often TrainForge pushes to one repository: no more than GitHub recommends, whoever pushes.

GitHub's "Repository limits" recommend at most six pushes a minute to a repository. Executors push results
themselves and ask for their turn here; whose turn it is pushes all that it has by then. Turns are kept in
memory: after a restart there may be some pushes more in the first minute.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from trainforge.hooks.addresses import at_github

if TYPE_CHECKING:
    from trainforge.sender.context import Sender

WINDOW_S = 60.0
LATE_S = 10.0  # who does not come for a turn has gone


@dataclass
class Pace:
    """The turns of one repository: `most` in any minute, first come, first served."""

    most: int
    taken: list[float] = field(default_factory=list)
    waiting: dict[str, float] = field(default_factory=dict)  # in their order, with the moment that was said

    def wait(self, who: str, now: float) -> float:
        """Seconds until `who` may push; 0 takes the turn. Asking again keeps one's place."""
        self.taken = [at for at in self.taken if at > now - WINDOW_S]
        self.waiting = {other: at for other, at in self.waiting.items() if at > now - LATE_S}
        self.waiting.setdefault(who, now)
        turns, at = list(self.taken), now
        for other in self.waiting:
            at = now if len(turns) < self.most else max(now, turns[-self.most] + WINDOW_S)
            turns.append(at)
            if other == who:
                break
        self.waiting[who] = at
        if at == now:
            del self.waiting[who]
            self.taken.append(now)
        return at - now


@dataclass
class Paces:
    """Of all repositories; safe to use from all threads."""

    most: int  # in a minute; 0: no limit
    _guard: threading.Lock = field(default_factory=threading.Lock)
    _of: dict[str, Pace] = field(default_factory=dict)

    def wait(self, repository: str, who: str, now: float) -> float:
        with self._guard:
            return self._of.setdefault(repository, Pace(self.most)).wait(who, now)


def push_turn(sender: Sender, repository: str, who: str) -> float:
    """Seconds until `who` may push results to a repository, 0 for now: this takes the turn.

    Other servers than GitHub set no pace.
    """
    if sender.paces.most <= 0:
        return 0.0
    url = sender.store.repository(repository).url
    if not at_github(url) and sender.store.connection(repository) is None:
        return 0.0
    return sender.paces.wait(repository, who, time.monotonic())
