"""When which job is to be looked at again without anybody saying so: an end of a rest, a time limit."""

from __future__ import annotations

import heapq
import threading


class Due:
    """The next such moment of each job, in seconds of the sender's clock. Safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._moments: dict[str, float] = {}
        self._heap: list[tuple[float, str]] = []  # also moments that are not a job's next any more

    def put(self, job: str, moment: float | None) -> None:
        """From now on the job has this moment, or none."""
        with self._lock:
            if moment is None:
                self._moments.pop(job, None)
            elif self._moments.get(job) != moment:
                self._moments[job] = moment
                heapq.heappush(self._heap, (moment, job))

    def take(self, now: float) -> set[str]:
        """The jobs whose moment has come; they have none any more."""
        with self._lock:
            taken = set()
            while (moment := self._first()) is not None and moment <= now:
                job = heapq.heappop(self._heap)[1]
                del self._moments[job]
                taken.add(job)
            return taken

    def first(self) -> float | None:
        """The next moment of all."""
        with self._lock:
            return self._first()

    def _first(self) -> float | None:
        while self._heap:
            moment, job = self._heap[0]
            if self._moments.get(job) == moment:
                return moment
            heapq.heappop(self._heap)
        return None
