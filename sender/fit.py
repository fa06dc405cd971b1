"""Whether a machine can take a node of a job, how well it fits, and in words why not. Pure.

A `Machine` is an executor as it was found; a `Room` is the same during one planning pass, in which it
fills. Executors on one host share its GPUs, cores and memory: their rooms have one `Pool`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from trainforge.config.availability import closed_words
from trainforge.config.isolation import demanded, lacking, strictest
from trainforge.config.manifest import GpuRequest, Manifest, NodeRange
from trainforge.config.messages import Capabilities, Gpu
from trainforge.config.policy import Asked, asked_of, refusal

ONE, NO_GPU, NOTHING_ASKED = NodeRange(), GpuRequest(), Asked()
LEAST_SESSION_S = 60.0  # with less left a machine gets no more jobs
TOLERANCE = 0.97  # a "16 GB" machine or GPU reports a little less
LITTLE, LITTLE_PART = 2**30, 0.1  # of a GPU, that other programs may use where a job names no size


@dataclass(frozen=True)
class Running:
    """A node that holds a part of a machine. `ends`: when jobs like it usually end, where known."""

    job: str
    gpus: tuple[str, ...] = ()
    cpu: float = 0.0
    memory: int = 0
    ends: float | None = None


@dataclass(frozen=True)
class Machine:
    """An executor as the planner sees it."""

    id: str
    name: str
    capabilities: Capabilities
    online: bool = True
    draining: bool = False
    revoked: bool = False
    closed: str = ""  # why it is to have no jobs for now, in words
    running: tuple[Running, ...] = ()
    cpu_percent: float = 0.0
    others: Mapping[str, int] = field(default_factory=dict)  # bytes of its GPUs that other programs use


@dataclass(frozen=True)
class Need:
    """What a job asks of machines. Jobs with equal needs are planned together.

    `chosen` are executors by id or name, empty for any; `excluded` are those that must not be taken;
    `refused` those that would not have it, by id, with their words.
    """

    nodes: NodeRange = ONE
    gpu: GpuRequest = NO_GPU
    processes: int | None = None
    cpu: float = 0.0
    memory: int = 0
    disk: int = 0
    labels: tuple[tuple[str, str], ...] = ()
    chosen: frozenset[str] = frozenset()
    excluded: frozenset[str] = frozenset()
    refused: tuple[tuple[str, str], ...] = ()
    conda: bool = False  # whether it has to install what the job needs
    run: float = 0.0  # seconds that it may train, where it says so
    asked: Asked = NOTHING_ASKED  # what the machines' policies are held against

    @cached_property
    def _hash(self) -> int:
        gpu = (self.gpu.min, self.gpu.max, self.gpu.memory_min, self.gpu.memory_max)
        sizes = (self.nodes.min, self.nodes.max, self.processes, self.cpu, self.memory, self.disk)
        return hash((gpu, sizes, self.labels, self.chosen, self.excluded))

    def __hash__(self) -> int:
        return self._hash  # asked for once per job and pass


def need_of(
    manifest: Manifest,
    executors: Collection[str] = (),
    refused: Mapping[str, str] | None = None,
    *,
    repository: str | None = None,
    ref: str | None = None,
) -> Need:
    """`executors` are ids or names that somebody picked by hand; with `!` before it, one to leave out."""
    wants, around = manifest.resources, manifest.environment
    asked = asked_of(manifest, repository=repository, ref=ref, gpus=wants.gpu.max, nodes=wants.nodes.max)
    return Need(
        nodes=wants.nodes,
        gpu=wants.gpu,
        processes=wants.processes_per_node,
        cpu=wants.cpu or 0.0,
        memory=wants.memory or 0,
        disk=wants.disk or 0,
        labels=tuple(sorted(wants.labels.items())),
        chosen=frozenset(name for name in executors if not name.startswith("!")),
        excluded=frozenset(name[1:] for name in executors if name.startswith("!")),
        refused=tuple(sorted((refused or {}).items())),
        conda=manifest.training.conda and not around.contained and around.mode != "inherit",
        run=manifest.timeout.run or 0.0,
        asked=asked,
    )


@dataclass(eq=False)
class Pool:
    """What the executors of one host share, and what of it is taken."""

    rooms: list[Room] = field(default_factory=list)
    gpus: set[str] = field(default_factory=set)
    cpu: float = 0.0
    memory: int = 0


@dataclass(eq=False)
class Room:
    """A machine during a pass. `version` counts changes; `kept_for` is the job it is reserved for."""

    machine: Machine
    pool: Pool
    running: list[Running]
    closed: str = ""  # why it takes nothing at all, whatever the need
    version: int = 0
    kept_for: str = ""
    full: bool = False  # reserved, but not free yet: nothing more may begin here
    left: float = math.inf  # seconds until the machine is known to go away

    @property
    def open(self) -> bool:
        return not (self.closed or self.full) and len(self.running) < self.machine.capabilities.max_jobs

    def free_gpus(self, ask: GpuRequest, besides: Collection[str] = ()) -> list[Gpu]:
        """Smallest first, so that a large one is left for whoever needs it."""
        taken = self.pool.gpus
        free = [
            gpu
            for gpu in self.machine.capabilities.gpus
            if gpu.uuid not in taken and gpu.uuid not in besides and gpu_usable(gpu, ask, self.machine)
        ]
        return sorted(free, key=lambda gpu: (gpu.memory_bytes, gpu.uuid)) if len(free) > 1 else free

    def hold(self, node: Running) -> None:
        self.running.append(node)
        self.pool.gpus.update(node.gpus)
        self.pool.cpu += node.cpu
        self.pool.memory += node.memory
        for room in self.pool.rooms:
            room.version += 1


Kind = tuple[int, int, tuple[int, ...], tuple[tuple[str, str], ...], tuple[str, ...], int]


def kind_of(room: Room) -> Kind | None:
    """The same for idle rooms that `suits` and `fit` cannot tell apart, but by their ids and disks."""
    machine, has = room.machine, room.machine.capabilities
    if room.running or len(room.pool.rooms) > 1 or machine.others or has.policy:
        return None
    gpus = tuple(-gpu.memory_bytes if gpu.problem else gpu.memory_bytes for gpu in has.gpus)
    labels = tuple(sorted(has.labels.items()))
    apart = has.isolation
    levels = (*apart.levels, apart.image, str(apart.gpus)) if apart else ()
    levels += tuple(has.installers)
    return has.cpu_count, has.memory_bytes, gpus, labels, levels, int(machine.cpu_percent // 25)


def rooms_of(machines: Iterable[Machine], now: float) -> list[Room]:
    """The machines as they are now, in the order of their ids."""
    pools: dict[str, Pool] = {}
    rooms = []
    for machine in sorted(machines, key=lambda machine: machine.id):
        pool = pools.setdefault(machine.capabilities.host_id or machine.id, Pool())
        room = Room(machine, pool, list(machine.running), _closed(machine, now))
        if machine.capabilities.session_ends:
            room.left = machine.capabilities.session_ends - now
        pool.rooms.append(room)
        for node in machine.running:
            pool.gpus.update(node.gpus)
            pool.cpu += node.cpu
            pool.memory += node.memory
        rooms.append(room)
    return rooms


def _closed(machine: Machine, now: float) -> str:
    if machine.revoked:
        return "removed from this sender"
    if not machine.online:
        return "offline"
    if machine.draining:
        return "draining: it takes no new jobs"
    if machine.closed:
        return machine.closed
    has = machine.capabilities
    if has.closed:
        return has.closed
    return _over(has, now) or (closed_words(has.available, now, has.utc_offset) if has.available else "")


def _over(has: Capabilities, now: float) -> str:
    if not has.session_ends or has.session_ends - now >= LEAST_SESSION_S:
        return ""
    return "its session has ended" if has.session_ends <= now else "its session ends in a minute"


# --- fitting --------------------------------------------------------------------------------------------

Key = tuple[int, int, int, float, int, int, str]


def suits(need: Need, machine: Machine) -> bool:
    """Whether the machine, all of it free, could take a node: `unsuitable` without the words."""
    has = machine.capabilities
    if need.gpu.min and sum(gpu_fits(gpu, need.gpu) for gpu in has.gpus) < need.gpu.min:
        return False
    if need.cpu > has.cpu_count or need.memory > has.memory_bytes / TOLERANCE:
        return False
    if need.disk > has.disk_free_bytes / TOLERANCE:
        return False
    if need.labels and any(has.labels.get(key) != value for key, value in need.labels):
        return False
    if need.conda and "conda" not in has.installers:
        return False
    apart = need.asked.network == "none" or need.asked.isolation not in (None, "process")
    apart = apart or bool(need.asked.volumes)
    picky = need.chosen or need.excluded or need.refused or has.policy or apart
    return not picky or not _not_wanted(need, machine)


def fit(need: Need, room: Room) -> Key | None:
    """How well the room fits now, less is better; None if a node does not fit.

    First what is asked for at most, then the least waste of GPUs, then the least load.
    """
    has, pool = room.machine.capabilities, room.pool
    spare = has.memory_bytes / TOLERANCE - pool.memory
    if need.cpu > has.cpu_count - pool.cpu or need.memory > spare or need.run > room.left:
        return None
    short = wasted = size = 0
    if has.gpus or need.gpu.min:
        free = room.free_gpus(need.gpu) if need.gpu.max else []
        if len(free) < need.gpu.min:
            return None
        given = min(len(free), need.gpu.max)
        short = need.gpu.max - given
        wasted = sum(gpu.uuid not in pool.gpus for gpu in has.gpus) - given
        size = free[given - 1].memory_bytes if given else 0
    load = len(room.running) / has.max_jobs
    return short, wasted, size, load, int(room.machine.cpu_percent // 25), int(spare), room.machine.id


def gpu_fits(gpu: Gpu, ask: GpuRequest) -> bool:
    if gpu.memory_bytes < ask.memory_min * TOLERANCE:
        return False
    return ask.memory_max is None or gpu.memory_bytes <= ask.memory_max


def gpu_usable(gpu: Gpu, ask: GpuRequest, machine: Machine) -> bool:
    """Whether the GPU fits and is well, and programs that are no jobs leave enough of its memory."""
    return gpu_fits(gpu, ask) and not gpu.problem and not (machine.others and crowded(gpu, ask, machine))


def crowded(gpu: Gpu, ask: GpuRequest, machine: Machine) -> bool:
    used = machine.others.get(gpu.uuid, 0)
    if ask.memory_min:
        return gpu.memory_bytes - used < ask.memory_min * TOLERANCE
    return used > max(LITTLE, gpu.memory_bytes * LITTLE_PART)


# --- words ----------------------------------------------------------------------------------------------


def words(need: Need, room: Room) -> str:
    """Why this room takes no node of the job now; empty when it would."""
    return (
        _not_wanted(need, room.machine)
        or room.closed
        or _unsuitable(need, room.machine.capabilities)
        or _too_short(need, room)
        or (f"kept free for job {room.kept_for[:8]}, which is next" if room.full else "")
        or _busy(need, room)
    )


def _not_wanted(need: Need, machine: Machine) -> str:
    names = {machine.id, machine.name}
    if need.chosen and not need.chosen & names:
        return "not among the executors chosen"
    for executor, said in need.refused:
        if executor == machine.id:
            return f"refused this job: {said}"
    if need.excluded & names:
        return "excluded by the request"
    has, asked = machine.capabilities, need.asked
    least = has.policy.isolation if has.policy else "process"
    needs = strictest([demanded(asked.isolation, asked.network), least])
    image, gpus = asked.image is not None, need.gpu.min
    return refusal(has.policy, asked) or lacking(has.isolation, needs, image=image, gpus=gpus)


_CONDA = "has no conda, mamba or micromamba, which the job's packages need"


def _unsuitable(need: Need, has: Capabilities) -> str:
    lacking = [f"{key}={value}" for key, value in need.labels if has.labels.get(key) != value]
    if lacking:
        return f"lacks the label {', '.join(lacking)}"
    if need.gpu.min and sum(gpu_fits(gpu, need.gpu) for gpu in has.gpus) < need.gpu.min:
        return _gpu_words(need.gpu, has.gpus)
    if need.cpu > has.cpu_count:
        return f"needs {_count(need.cpu, 'CPU core')}, has {has.cpu_count}"
    if need.memory > has.memory_bytes / TOLERANCE:
        return f"needs {size(need.memory)} of memory, has {size(has.memory_bytes)}"
    if need.disk > has.disk_free_bytes / TOLERANCE:
        return f"needs {size(need.disk)} of free disk, has {size(has.disk_free_bytes)}"
    return _CONDA if need.conda and "conda" not in has.installers else ""


def _gpu_words(ask: GpuRequest, gpus: Sequence[Gpu]) -> str:
    """What it is that the GPUs lack: their number, or their memory."""
    if len(gpus) < ask.min:
        return f"needs {_count(ask.min, 'GPU')}, has {len(gpus) or 'none'}"
    sizes = ", ".join(sorted({size(gpu.memory_bytes) for gpu in gpus}))
    wanted = size(ask.memory_min) if ask.memory_min else ""
    if ask.memory_max is not None:
        wanted = f"{wanted} to {size(ask.memory_max)}" if wanted else f"at most {size(ask.memory_max)}"
    each = "" if ask.min == 1 else f" on each of {ask.min}"
    return f"needs {wanted} of GPU memory{each}, has {sizes}"


def _busy(need: Need, room: Room) -> str:
    has, pool = room.machine.capabilities, room.pool
    others = [node for node in room.running if node.job != room.kept_for]
    kept = f"kept free for job {room.kept_for[:8]}, which is next" if room.kept_for else ""
    if len(room.running) >= has.max_jobs:
        return kept or f"busy with {len(others)} of {has.max_jobs} jobs"
    free = len(room.free_gpus(need.gpu)) if need.gpu.min else 0
    if free < need.gpu.min:
        if crowd := _unwell_words(need, room) or _crowded_words(need, room):
            return crowd
        return kept or f"needs {_count(need.gpu.min, 'free GPU')}, has {free or 'none'} now"
    if need.cpu > has.cpu_count - pool.cpu:
        spare = max(has.cpu_count - pool.cpu, 0)
        return kept or f"needs {_count(need.cpu, 'CPU core')}, has {spare:g} not taken by jobs"
    spare = has.memory_bytes / TOLERANCE - pool.memory
    if need.memory > spare:
        return kept or f"needs {size(need.memory)} of memory, has {size(max(spare, 0))} not taken by jobs"
    return ""


def _unwell_words(need: Need, room: Room) -> str:
    """The GPUs that would do if nothing were wrong with them."""
    return "; ".join(
        f"GPU {number}: {gpu.problem}"
        for number, gpu in enumerate(room.machine.capabilities.gpus)
        if gpu.problem and gpu.uuid not in room.pool.gpus and gpu_fits(gpu, need.gpu)
    )


def _crowded_words(need: Need, room: Room) -> str:
    """The GPUs that would do if other programs did not use them."""
    machine = room.machine
    parts = [
        f"GPU {number} has {machine.others[gpu.uuid] / 2**30:.1f} of {size(gpu.memory_bytes)}"
        for number, gpu in enumerate(machine.capabilities.gpus)
        if gpu.uuid not in room.pool.gpus and gpu_fits(gpu, need.gpu) and crowded(gpu, need.gpu, machine)
    ]
    return f"{', '.join(parts)} used by other programs" if parts else ""


def size(value: float) -> str:
    return f"{value / 2**30:.1f}".removesuffix(".0") + " GiB"


def _too_short(need: Need, room: Room) -> str:
    if need.run <= room.left:
        return ""
    left, needed = f"{room.left / 60:.0f} min", f"{need.run / 60:.0f} min"
    return f"its session ends in {left}, the job may take {needed} (timeout.run)"


def _count(number: float, noun: str) -> str:
    return f"{number:g} {noun}{'' if number == 1 else 's'}"
