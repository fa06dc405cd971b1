"""Which executors train a job, pure: all nodes or none, and why not for each executor that does not fit.

The parts: `fit` (one machine, one node), `gang` (all nodes or none), `parameters` (adapted to the number
of processes), `suggestions` (what would help), `queue` (all waiting jobs in one pass).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from trainforge.config.manifest import Manifest
from trainforge.config.result import moment
from trainforge.sender.fit import Machine, Need, need_of, suits, words
from trainforge.sender.gang import Board, Candidates, Seat, reserve
from trainforge.sender.parameters import Adjustment, adjust
from trainforge.sender.suggestions import Start, estimate, suggest

ALL = "*"  # the key of a reason that is about no single executor
ADVICE, START = "a change", "the start"
SHOWN = 20  # executors whose reasons are stored with a waiting job; the others are counted


@dataclass(frozen=True)
class Placement:
    rank: int
    executor: str
    name: str
    hostname: str
    gpus: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """`cpu` and `memory` are what each node was promised: the planner counts them as taken.

    `session_ends` is when the first of the machines is known to go away, 0 if none is.
    """

    nodes: tuple[Placement, ...]
    processes_per_node: int
    params: Mapping[str, Any] = field(default_factory=dict)
    adjusted: tuple[Adjustment, ...] = ()
    notices: tuple[str, ...] = ()
    cpu: float = 0.0
    memory: int = 0
    session_ends: float = 0.0

    @property
    def world_size(self) -> int:
        return len(self.nodes) * self.processes_per_node

    def as_dict(self) -> dict[str, Any]:
        """The plan as it is stored and shown."""
        data = asdict(self)
        return {**data, "params": dict(self.params), "world_size": self.world_size}


@dataclass(frozen=True)
class Waiting:
    """Why the job cannot be placed now: by executor name, or `*` where there is none at all."""

    reasons: dict[str, str]
    suggestions: tuple[str, ...] = ()
    start: Start | None = None

    def summary(self) -> dict[str, str]:
        """What is stored with the job: a long list of executors is cut, and the rest counted."""
        shown = dict(list(self.reasons.items())[:SHOWN])
        rest = Counter(list(self.reasons.values())[SHOWN:])
        if rest:
            shown[ALL] = "; ".join(f"{count} more: {why}" for why, count in rest.most_common(3))
        if self.suggestions:
            shown[ADVICE] = "; ".join(self.suggestions)
        if self.start is not None and self.start.time is not None:
            shown[START] = f"about {moment(self.start.time)[:16]} UTC, {self.start.words}"
        return shown


def plan(
    manifest: Manifest, machines: Iterable[Machine], *, chosen: Collection[str] = (), now: float = 0.0
) -> Plan | Waiting:
    """Place one job, as if no other waited. `chosen` is as in `need_of`."""
    board, need = Board(machines, now), need_of(manifest, chosen)
    seats = Candidates(board, need).seats()
    if seats is None and (kept := reserve(board, need)) is not None:
        seats = kept.seats
    return explain(board, need) if seats is None else complete(manifest, need, seats)


def complete(manifest: Manifest, need: Need, seats: Sequence[Seat]) -> Plan:
    """The plan for a job that gets these seats."""
    placed = tuple(
        Placement(rank, seat.machine.id, seat.machine.name, seat.machine.capabilities.hostname, seat.gpus)
        for rank, seat in enumerate(seats)
    )
    processes = _processes(manifest, need, len(seats[0].gpus))
    params, adjusted, notices = adjust(manifest, len(placed) * processes, len(placed))
    ends = [seat.machine.capabilities.session_ends for seat in seats]
    first = min(filter(None, ends), default=0.0)
    return Plan(placed, processes, params, adjusted, notices, need.cpu, need.memory, first)


def refused_by_all(need: Need, machines: Collection[Machine]) -> str:
    """Who refused the job, where too few others could ever take it; else empty: it waits for those."""
    if not need.refused:
        return ""
    if sum(not machine.revoked and suits(need, machine) for machine in machines) >= need.nodes.min:
        return ""
    names = {machine.id: machine.name for machine in machines}
    said = "; ".join(f"{names.get(one, one)} refused this job: {words}" for one, words in need.refused)
    return f"{said}; no other executor here could take it"


def _processes(manifest: Manifest, need: Need, gpus: int) -> int:
    """On each node. What no launcher starts is one process for all GPUs, unless the manifest says more."""
    if manifest.training.command is not None:
        return 1
    return need.processes or (1 if manifest.training.launcher == "python" else max(gpus, 1))


def explain(board: Board, need: Need, kept: Collection[str] = ()) -> Waiting:
    """Why no seats were found: a reason for each executor, what would help, and when it may start.

    `kept` are the ids of executors that are kept free for this very job.
    """
    rooms = [room for room in board.rooms if not room.machine.revoked]
    if not rooms:
        return Waiting({ALL: "no executor has joined yet"}, (), Start(None, "unknown: there is no executor"))
    rooms.sort(key=lambda room: (bool(room.closed), not suits(need, room.machine)))  # the most likely first
    blocked = {room.machine.name: words(need, room) for room in rooms}
    least, usable = need.nodes.min, sum(not why for why in blocked.values())
    found = f"{usable} fit{'s' if usable == 1 else ''}"
    fits = f"would fit, but the job needs {least} machines at once and {found}"
    own = {room.machine.name: f"{fits}; it is kept free for it" for room in rooms if room.machine.id in kept}
    reasons = {name: why or own.get(name, fits) for name, why in blocked.items()}
    return Waiting(reasons, suggest(board, need), estimate(board, need))
