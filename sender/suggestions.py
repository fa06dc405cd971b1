"""For a job that waits: the nearest change with which it would fit now, and when it may start. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from trainforge.config.manifest import GpuRequest, NodeRange
from trainforge.sender.fit import TOLERANCE, Need, Room, Running, gpu_usable, suits
from trainforge.sender.gang import Board, Candidates, Seat, possible

MOST = 3
_SIZES_TRIED = 8
_UNITS = ((2**30, "Gi"), (2**20, "Mi"))


@dataclass(frozen=True)
class Start:
    """When a job probably starts. `time` is None where nothing tells; `words` say what it rests on."""

    time: float | None
    words: str


def suggest(board: Board, need: Need) -> tuple[str, ...]:
    """Changes of one key each, that would let the job start now; each was tried."""
    found = []
    for changed, words in _changes(board, need):
        seats = Candidates(board, changed).seats()
        if seats is not None:
            found.append(words or _took(need, changed, seats))
        if len(found) == MOST:
            break
    return tuple(dict.fromkeys(found))


def _changes(board: Board, need: Need) -> Iterator[tuple[Need, str]]:
    """What to try, nearest first. Without words: the seats found say which value it takes."""
    if need.chosen or need.excluded:
        yield replace(need, chosen=frozenset(), excluded=frozenset()), ""
    if need.nodes.min > 1:
        yield replace(need, nodes=NodeRange(1, need.nodes.min - 1)), ""
    if need.gpu.min > 1:
        yield replace(need, gpu=replace(need.gpu, min=1, max=need.gpu.min - 1)), ""
    if need.gpu.min and need.gpu.memory_min:
        yield from _smaller_gpus(board, need)
    for key in ("memory", "cpu", "disk"):
        if getattr(need, key):
            yield from _less(board, need, key)
    if need.labels:
        lines = ", ".join(f"{key}={value}" for key, value in need.labels)
        yield replace(need, labels=()), f"without resources.labels {lines} it would fit now"
    if need.gpu.min:
        yield replace(need, gpu=GpuRequest()), "resources.gpu: 0 would fit now, on CPU"


def _took(need: Need, changed: Need, seats: list[Seat]) -> str:
    if need.chosen or need.excluded:
        names = ", ".join(seat.machine.name for seat in seats[:4])
        return f"{names} would take it now, without the choice of executors"
    if changed.nodes != need.nodes:
        return f"resources.nodes: {len(seats)} would fit now"
    return f"resources.gpu: {_gpu_text(need.gpu.memory_min, len(seats[0].gpus))} would fit now"


def _smaller_gpus(board: Board, need: Need) -> Iterator[tuple[Need, str]]:
    sizes = {gpu.memory_bytes for room in board.open for gpu in room.machine.capabilities.gpus}
    smaller = sorted((size for size in sizes if size < need.gpu.memory_min), reverse=True)
    for size in smaller[:_SIZES_TRIED]:
        ask = replace(need.gpu, memory_min=size)
        yield replace(need, gpu=ask), f"resources.gpu: {_gpu_text(size, ask.min)} would fit now"


def _less(board: Board, need: Need, key: str) -> Iterator[tuple[Need, str]]:
    """As much as the last of the machines that the job needs has to give."""
    without = _with(need, key, 0)
    rooms = [room for room in board.open if suits(without, room.machine)]
    free = sorted((_free(room, key) for room in rooms), reverse=True)
    if len(free) < need.nodes.min or free[need.nodes.min - 1] <= 0:
        return
    value = free[need.nodes.min - 1]
    text = f"{value:g}" if key == "cpu" else size_text(value)
    yield _with(need, key, value), f"resources.{key}: {text} would fit now"


def _with(need: Need, key: str, value: Any) -> Need:
    changed: dict[str, Any] = {key: value}
    return replace(need, **changed)


def _free(room: Room, key: str) -> float:
    has, pool = room.machine.capabilities, room.pool
    if key == "cpu":
        return has.cpu_count - pool.cpu
    unit = 2**30 if key == "disk" else 2**28
    value = has.disk_free_bytes if key == "disk" else has.memory_bytes - pool.memory
    return value // unit * unit


def _gpu_text(memory: int, count: int) -> str:
    return f"{size_text(memory)}..:{count}" if memory else str(count)


def size_text(value: float) -> str:
    """A size as a manifest has it."""
    for unit, name in _UNITS:
        if value >= unit and value * 100 % unit == 0:
            return f"{value / unit:g}{name}"
    return f"{value // 2**20:g}Mi" if value >= 2**20 else f"{value:g}"


# --- when -----------------------------------------------------------------------------------------------


def estimate(board: Board, need: Need) -> Start:
    """From how long jobs of the same projects took before; what nobody knows is said to be unknown."""
    rooms = possible(board, need)
    if len(rooms) < need.nodes.min:
        return Start(None, "unknown: no machines that are there now could take it")
    known = sorted(moment for room in rooms if (moment := _free_at(board.now, need, room)) is not None)
    if len(known) < need.nodes.min:
        return Start(None, "unknown: nothing tells how long what runs there takes")
    return Start(known[need.nodes.min - 1], "if running jobs take as long as those of their projects did")


def _free_at(now: float, need: Need, room: Room) -> float | None:
    """When enough of what runs on the room's host has ended; None if that is not known."""
    mine = room.running
    left = [node for shared in room.pool.rooms for node in shared.running]
    slots = len(mine)
    ending: list[tuple[float, Running]] = sorted(
        ((node.ends, node) for node in left if node.ends is not None and node.ends >= now),
        key=lambda entry: (entry[0], entry[1].job),
    )
    moment = now
    for ends, node in [*ending, (0.0, None)]:
        if slots < room.machine.capabilities.max_jobs and _fits_beside(need, room, left):
            return moment
        if node is None:
            return None
        left.remove(node)
        slots -= node in mine
        moment = ends
    return None


def _fits_beside(need: Need, room: Room, running: list[Running]) -> bool:
    has = room.machine.capabilities
    taken = {gpu for node in running for gpu in node.gpus}
    free = [gpu for gpu in has.gpus if gpu.uuid not in taken and gpu_usable(gpu, need.gpu, room.machine)]
    return (
        len(free) >= need.gpu.min
        and need.cpu <= has.cpu_count - sum(node.cpu for node in running)
        and need.memory <= has.memory_bytes / TOLERANCE - sum(node.memory for node in running)
    )
