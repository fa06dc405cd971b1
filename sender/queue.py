"""All waiting jobs over all executors in one pass, pure: higher priority first, then older.

The first job that this fleet could run but that does not fit yet gets a reservation: machines are kept
free for it until there are enough. Jobs behind it start on other machines, or on what the reservation
leaves over, so they cannot delay it; and because what is kept for it only grows, it is not starved.
Only one job at a time has a reservation; when it starts, the next one gets it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from operator import attrgetter

from trainforge.sender.fit import Machine, Need
from trainforge.sender.gang import Board, Candidates, Reservation, Seat, reserve
from trainforge.sender.planner import Waiting, explain


@dataclass(frozen=True)
class QueuedJob:
    id: str
    need: Need
    priority: int = 0
    created: float = 0.0
    order: tuple[int, float, str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "order", (-self.priority, self.created, self.id))


@dataclass
class QueuePlan:
    """`next` is the job with the reservation, `kept` the executors that are kept free for it."""

    board: Board
    placed: dict[str, list[Seat]] = field(default_factory=dict)
    needs: dict[str, Need] = field(default_factory=dict)  # of the jobs that were placed
    waiting: list[QueuedJob] = field(default_factory=list)
    next: str = ""
    _known: dict[tuple[Need, bool], Waiting] = field(default_factory=dict)

    @property
    def kept(self) -> frozenset[str]:
        return frozenset(room.machine.id for room in self.board.rooms if room.kept_for)

    def why(self, job: QueuedJob) -> Waiting:
        """Why the job waits; found out when asked for, once for all jobs of the same need."""
        key = (job.need, job.id == self.next)
        if key not in self._known:
            mine = job.id == self.next
            board = self._unreserved() if mine else self.board
            self._known[key] = explain(board, job.need, self.kept if mine else ())
        return self._known[key]

    def _unreserved(self) -> Board:
        """The fleet as the job with the reservation sees it: without that."""
        board = Board((room.machine for room in self.board.rooms), self.board.now)
        for job, seats in self.placed.items():
            board.take(job, self.needs[job], seats)
        return board


def plan_queue(
    jobs: Iterable[QueuedJob], machines: Iterable[Machine], now: float, *, held: Collection[str] = ()
) -> QueuePlan:
    """Place what fits. `held` are the executors that the pass before kept free."""
    board = Board(machines, now)
    made = QueuePlan(board)
    candidates: dict[Need, Candidates | None] = {}  # None: no room for it; a pass only takes, so it stays so
    for job in sorted(jobs, key=attrgetter("order")):
        need = job.need
        if need not in candidates:
            candidates[need] = Candidates(board, need)
        rooms = candidates[need]
        seats = rooms.seats() if rooms is not None else None
        kept: Reservation | None = None
        if seats is None and rooms is not None:
            candidates[need] = None
            kept = None if made.next else reserve(board, need, held)
            seats = kept.seats if kept is not None else None
        if seats is not None:
            board.take(job.id, need, seats)
            made.placed[job.id], made.needs[job.id] = seats, need
            continue
        made.waiting.append(job)
        if kept is not None:
            kept.keep(board, job.id, need)
            made.next = job.id
    return made
