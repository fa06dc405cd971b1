"""All nodes of a job or none: takes the best rooms for a need, and keeps rooms free for one. Pure.

`Candidates` keeps the rooms that fit one need in a heap, best first. A placement touches few rooms, and
each heap learns of those alone, so that a pass over a long queue does not look at every machine for every
job. Idle machines of a kind stand in line behind the first of them, so that a need looks at each kind once.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

from trainforge.sender.fit import (
    TOLERANCE,
    Key,
    Kind,
    Machine,
    Need,
    Pool,
    Room,
    Running,
    fit,
    kind_of,
    rooms_of,
    suits,
)


@dataclass(frozen=True)
class Seat:
    """A node's place: the executor and the GPUs it gets there."""

    machine: Machine
    gpus: tuple[str, ...] = ()


@dataclass
class Share:
    """What a gang in the making takes of one host."""

    gpus: set[str] = field(default_factory=set)
    nodes: int = 0


class Board:
    """The fleet during one pass."""

    def __init__(self, machines: Iterable[Machine], now: float) -> None:
        self.now = now
        self.rooms = rooms_of(machines, now)
        self.by_id = {room.machine.id: room for room in self.rooms}
        self.open = [room for room in self.rooms if room.open]
        self.touched: list[Room] = []
        self.kinds: dict[Kind, list[Room]] = defaultdict(list)
        self.others: list[Room] = []  # open rooms that are of no kind
        for room in self.open:
            kind = kind_of(room)
            (self.others if kind is None else self.kinds[kind]).append(room)

    def take(self, job: str, need: Need, seats: Sequence[Seat], *, keep: bool = False) -> None:
        """Fill the seats; with `keep` they are only kept free for the job."""
        for seat in seats:
            room = self.by_id[seat.machine.id]
            room.hold(Running(job, seat.gpus, need.cpu, need.memory))
            if keep:
                room.kept_for = job
            self.touched += room.pool.rooms

    def fill(self, job: str, room: Room) -> None:
        """Let nothing new begin on the room's host, so that it becomes free for the job."""
        for shared in room.pool.rooms:
            shared.full, shared.kept_for = True, job
            shared.version += 1
        self.touched += room.pool.rooms


# How well it fits, the room's version then, and the rooms in line behind it.
Entry = tuple[Key, int, Room, Iterator[Room] | None]


class Candidates:
    """The rooms in which a node of this need fits now, best first."""

    def __init__(self, board: Board, need: Need) -> None:
        self._board, self._need = board, need
        self._heap: list[Entry] = []
        self._seen = 0
        if need.chosen or need.excluded or need.refused or need.disk:
            self._add(board.open)
            self._seen = len(board.touched)
            return
        self._add(room for room in board.others if not room.version)  # the others are added as touched
        for rooms in board.kinds.values():
            line = (room for room in rooms if not room.version)
            self._add(islice(line, 1), line)

    def _add(self, rooms: Iterable[Room], line: Iterator[Room] | None = None) -> None:
        """Those that fit; `line` are the rooms of the same kind behind the only one."""
        for room in rooms:
            if room.open and suits(self._need, room.machine) and (key := fit(self._need, room)) is not None:
                heapq.heappush(self._heap, (key, room.version, room, line))

    def _pop(self) -> Entry:
        """The best entry; who stands behind it moves up."""
        entry = heapq.heappop(self._heap)
        key, _, _, line = entry
        if line is not None and (room := next(line, None)) is not None:
            heapq.heappush(self._heap, ((*key[:-1], room.machine.id), room.version, room, line))
        return entry

    def seats(self) -> list[Seat] | None:
        """The best places for a job of this need; None if there is no room for the least it needs."""
        self._catch_up()
        need, heap = self._need, self._heap
        seen: list[Entry] = []
        taken: list[Room] = []
        shares: dict[Pool, Share] = defaultdict(Share)
        while heap and len(taken) < need.nodes.max:
            key, version, room, _ = self._pop()
            if version != room.version:
                continue  # it has changed, and a newer entry tells how
            seen.append((key, version, room, None))
            if len(room.pool.rooms) == 1 or join(need, room, shares[room.pool]):
                taken.append(room)
        for entry in seen:
            heapq.heappush(heap, entry)
        return _shape(need, taken) if len(taken) >= need.nodes.min else None

    def _catch_up(self) -> None:
        touched = self._board.touched
        if self._seen == len(touched):
            return
        self._add({room.machine.id: room for room in touched[self._seen :]}.values())
        self._seen = len(touched)


def join(need: Need, room: Room, share: Share, *, empty: bool = False) -> bool:
    """Add a node to the gang's share of a host, if that much is free; `empty`: once all else has ended."""
    has, pool = room.machine.capabilities, room.pool
    nodes = share.nodes + 1
    cpu, memory = (0.0, 0) if empty else (pool.cpu, pool.memory)
    if need.cpu * nodes > has.cpu_count - cpu or need.memory * nodes > has.memory_bytes / TOLERANCE - memory:
        return False
    if need.gpu.min:
        free = _all_gpus(room, need) if empty else [gpu.uuid for gpu in room.free_gpus(need.gpu)]
        free = [gpu for gpu in free if gpu not in share.gpus]
        if len(free) < need.gpu.min:
            return False
        share.gpus.update(free[: need.gpu.min])
    share.nodes = nodes
    return True


def _all_gpus(room: Room, need: Need) -> list[str]:
    bare = Room(room.machine, Pool(), [])
    return [gpu.uuid for gpu in bare.free_gpus(need.gpu)]


def _shape(need: Need, rooms: Sequence[Room]) -> list[Seat]:
    """As many processes as the rooms allow, on as few machines; every node has equally many GPUs."""
    if not need.gpu.max:
        return [Seat(room.machine) for room in rooms]
    most = need.gpu.max
    if need.processes is not None:
        most = max(need.gpu.min, min(most, need.processes))
    counts = [min(len(room.free_gpus(need.gpu)), most) for room in rooms]
    lengths = range(need.nodes.min, len(rooms) + 1)
    nodes = max(lengths, key=lambda n: (n * (need.processes or max(min(counts[:n]), 1)), -n))
    given = None
    count = min(counts[:nodes])
    while given is None:
        given = _give_gpus(need, rooms[:nodes], count)
        count -= 1
    return [Seat(room.machine, gpus) for room, gpus in zip(rooms, given, strict=False)]


def _give_gpus(need: Need, rooms: Sequence[Room], count: int) -> list[tuple[str, ...]] | None:
    """So many GPUs for each room, none twice; None where rooms of one host have too few together."""
    taken: set[str] = set()
    given = []
    for room in rooms:
        free = room.free_gpus(need.gpu, taken)
        if len(free) < count:
            return None
        gpus = tuple(gpu.uuid for gpu in free[:count])
        taken.update(gpus)
        given.append(gpus)
    return given


# --- keeping rooms free ---------------------------------------------------------------------------------


def possible(board: Board, need: Need) -> list[Room]:
    """The rooms that could take a node once what runs there has ended."""
    rooms = (room for room in board.rooms if not room.closed and need.run <= room.left)
    return [room for room in rooms if suits(need, room.machine)]


@dataclass(frozen=True)
class Reservation:
    """What to keep for a job: seats that are free now, and rooms that are not yet."""

    ready: list[Seat]
    later: list[Room]

    @property
    def seats(self) -> list[Seat] | None:
        """Where the job can begin at once; None while it lacks rooms."""
        return None if self.later else self.ready

    def keep(self, board: Board, job: str, need: Need) -> None:
        board.take(job, need, self.ready, keep=True)
        for room in self.later:
            board.fill(job, room)


def reserve(board: Board, need: Need, held: Collection[str] = ()) -> Reservation | None:
    """The least that a job needs of this fleet, though not all of it yet; None where there is not enough.

    First those where it fits now: they only lack the others. Then those kept for it before, so that the
    choice does not wander, then those that become free soonest. Nothing else begins there; on the former
    more may, as far as the job leaves something over.

    Executors that share the GPUs of one host fit together in some orders only, and this one may find what
    `Candidates` does not: then nothing is later, and the job can have these seats.
    """
    shares: dict[Pool, Share] = defaultdict(Share)
    ready: list[Seat] = []
    later: list[Room] = []
    rooms = [(room.open and fit(need, room) is not None, room) for room in possible(board, need)]

    def order(entry: tuple[bool, Room]) -> tuple[bool, bool, float, str]:
        fits, room = entry
        soonest = min((node.ends or float("inf") for node in room.running), default=0.0)
        return not fits, room.machine.id not in held, soonest, room.machine.id

    for fits, room in sorted(rooms, key=order):
        if len(ready) + len(later) == need.nodes.min:
            break
        before = set(shares[room.pool].gpus)
        if fits and join(need, room, shares[room.pool]):
            ready.append(Seat(room.machine, tuple(sorted(shares[room.pool].gpus - before))))
        elif join(need, room, shares[room.pool], empty=True):
            later.append(room)
    enough = len(ready) + len(later) == need.nodes.min
    return Reservation(ready, later) if enough else None
