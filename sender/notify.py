"""Waking those who wait inside this process: long polls, event streams and the loops.

A ring carries no data and may be spurious: whoever is woken looks at the store again. Listen first, look
second, wait third, and no ring is missed:

    with bell.listen(job_key(job)) as listener:
        while not (lines := store.logs(...)) and await listener.wait(20):
            pass
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

RECONCILE = "reconcile"  # the reconciler should look at the unfinished jobs
JOBS = "jobs"  # some job's state changed, or a job is new
EXECUTORS = "executors"  # an executor came, went or changed
REPOSITORIES = "repositories"  # another repository is watched
RESULTS = "results"  # somebody else moved a results branch
EVENTS = "events"  # an event was recorded
GITHUB = "github"  # something was asked or said at GitHub


def job_key(job: str) -> str:
    """Rung for everything that changes about one job: states, log lines, metrics."""
    return f"job:{job}"


def orders_key(executor: str) -> str:
    """Rung when there are orders to deliver to this executor."""
    return f"orders:{executor}"


def seen_key(executor: str) -> str:
    """Rung whenever this executor has proved that it speaks."""
    return f"seen:{executor}"


class Listener:
    """One waiter; remembers rings between its creation and its `wait`."""

    def __init__(self, bell: Bell) -> None:
        self._bell = bell
        self._loop = asyncio.get_running_loop()
        self._rung = asyncio.Event()

    def _wake(self) -> None:
        try:
            self._loop.call_soon_threadsafe(self._rung.set)
        except RuntimeError:  # its loop has ended, and so has the waiting
            return

    async def wait(self, timeout: float) -> bool:  # noqa: ASYNC109 - a time limit is an ordinary answer here
        """Whether it rang within `timeout` seconds; False at once when the bell is closed."""
        if self._bell.closed:
            return False
        try:
            async with asyncio.timeout(max(timeout, 0)):
                await self._rung.wait()
        except TimeoutError:
            return False
        self._rung.clear()
        return not self._bell.closed


class Bell:
    """Rings by key, from any thread. After `close` nobody waits any more."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._listeners: dict[str, set[Listener]] = {}
        self.closed = False

    def ring(self, *keys: str) -> None:
        with self._lock:
            woken = {listener for key in keys for listener in self._listeners.get(key, ())}
        for listener in woken:
            listener._wake()

    @contextmanager
    def listen(self, *keys: str) -> Iterator[Listener]:
        listener = Listener(self)
        with self._lock:
            for key in keys:
                self._listeners.setdefault(key, set()).add(listener)
        try:
            yield listener
        finally:
            with self._lock:
                for key in keys:
                    others = self._listeners[key]
                    others.discard(listener)
                    if not others:
                        del self._listeners[key]

    async def wait(self, key: str, timeout: float) -> bool:  # noqa: ASYNC109
        """Wait for the next ring of `key`; for loops that look again at intervals anyway."""
        with self.listen(key) as listener:
            return await listener.wait(timeout)

    def close(self) -> None:
        """The process is ending: let every long poll and stream answer now."""
        with self._lock:
            self.closed = True
            woken = {listener for listeners in self._listeners.values() for listener in listeners}
        for listener in woken:
            listener._wake()
