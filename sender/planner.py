"""Which executors train a job, pure: all nodes or none, and why not for each executor that does not fit.

Parameters are adapted to the number of processes as the manifest says, and the plan lists each with its
value before and after.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from trainforge.config.manifest import GpuRequest, Manifest
from trainforge.config.messages import Capabilities, Gpu

BATCH_SIZES = ("batch_size", "per_device_train_batch_size")
LEARNING_RATES = ("learning_rate", "lr")
_MEMORY_TOLERANCE = 0.97  # a "16 GB" machine or GPU reports a little less


@dataclass(frozen=True)
class Machine:
    """An executor as the planner sees it; `jobs` and `gpus_taken` are what is in use."""

    id: str
    name: str
    capabilities: Capabilities
    online: bool = True
    draining: bool = False
    revoked: bool = False
    jobs: int = 0
    gpus_taken: frozenset[str] = frozenset()

    def free_gpus(self, ask: GpuRequest) -> list[Gpu]:
        free = (gpu for gpu in self.capabilities.gpus if gpu.uuid not in self.gpus_taken)
        return sorted(
            (gpu for gpu in free if _gpu_fits(gpu, ask)), key=lambda gpu: (gpu.memory_bytes, gpu.uuid)
        )


@dataclass(frozen=True)
class Placement:
    rank: int
    executor: str
    name: str
    hostname: str
    gpus: tuple[str, ...] = ()


@dataclass(frozen=True)
class Adjustment:
    key: str
    before: float
    after: float
    rule: str


@dataclass(frozen=True)
class Plan:
    nodes: tuple[Placement, ...]
    processes_per_node: int
    params: Mapping[str, Any] = field(default_factory=dict)
    adjusted: tuple[Adjustment, ...] = ()
    notices: tuple[str, ...] = ()

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


def plan(manifest: Manifest, machines: Sequence[Machine], *, chosen: Collection[str] = ()) -> Plan | Waiting:
    """Place a job. `chosen` are executor ids or names that somebody picked by hand; empty is any."""
    blocked = {machine.id: _blocker(manifest, machine, chosen) for machine in machines}
    usable = sorted((m for m in machines if not blocked[m.id]), key=lambda m: _fit(manifest, m))
    wanted = manifest.resources.nodes
    if len(usable) < wanted.min:
        return Waiting(_reasons(machines, blocked, wanted.min, len(usable)))
    taken = usable[: min(wanted.max, len(usable))]
    gpus, processes = _gpus_and_processes(manifest, taken)
    placed = tuple(
        Placement(rank, machine.id, machine.name, machine.capabilities.hostname, gpus[machine.id])
        for rank, machine in enumerate(taken)
    )
    params, adjusted, notices = adjust(manifest, len(placed) * processes)
    return Plan(placed, processes, params, adjusted, notices)


def _blocker(manifest: Manifest, machine: Machine, chosen: Collection[str]) -> str:
    """Why this machine cannot take a node of the job now; empty when it can."""
    need, has = manifest.resources, machine.capabilities
    labels = {key: value for key, value in need.labels.items() if has.labels.get(key) != value}
    gpus = len(machine.free_gpus(need.gpu))
    checks = [
        (machine.revoked, "removed from this sender"),
        (
            bool(chosen) and machine.id not in chosen and machine.name not in chosen,
            "not among the executors chosen",
        ),
        (not machine.online, "offline"),
        (machine.draining, "draining: it takes no new jobs"),
        (bool(labels), "lacks the label " + ", ".join(f"{key}={value}" for key, value in labels.items())),
        (gpus < need.gpu.min, _gpu_words(need.gpu, machine, gpus)),
        (
            need.cpu is not None and has.cpu_count < need.cpu,
            f"has {has.cpu_count} CPU cores, {need.cpu or 0:g} needed",
        ),
        (
            _lacks(has.memory_bytes, need.memory),
            f"has {_size(has.memory_bytes)} of memory, {_size(need.memory)} needed",
        ),
        (
            need.disk is not None and has.disk_free_bytes < need.disk,
            f"has {_size(has.disk_free_bytes)} of free disk, {_size(need.disk)} needed",
        ),
        (machine.jobs >= has.max_jobs, f"busy with {machine.jobs} of {has.max_jobs} jobs"),
    ]
    return next((words for applies, words in checks if applies), "")


def _fit(manifest: Manifest, machine: Machine) -> tuple[float, int, int, str]:
    """Least loaded first, then least waste of GPUs and memory; the id makes it certain."""
    has = machine.capabilities
    spare = len(machine.free_gpus(GpuRequest())) - manifest.resources.gpu.min
    return machine.jobs / has.max_jobs, spare, has.memory_bytes, machine.id


def _gpus_and_processes(
    manifest: Manifest, taken: Sequence[Machine]
) -> tuple[dict[str, tuple[str, ...]], int]:
    """GPUs for each machine, equally many on all, and the processes on each."""
    ask = manifest.resources.gpu
    free = {machine.id: machine.free_gpus(ask) for machine in taken}
    count = min([ask.max, *(len(gpus) for gpus in free.values())]) if ask.max else 0
    given = {key: tuple(gpu.uuid for gpu in gpus[:count]) for key, gpus in free.items()}
    return given, manifest.resources.processes_per_node or max(count, 1)


def _reasons(
    machines: Sequence[Machine], blocked: Mapping[str, str], needed: int, usable: int
) -> dict[str, str]:
    if not machines:
        return {"*": "no executor has joined yet"}
    fits = f"would fit, but the job needs {needed} executors and {usable} fit"
    return {machine.name: blocked[machine.id] or fits for machine in machines if not machine.revoked} or {
        "*": "no executor has joined yet"
    }


def _gpu_fits(gpu: Gpu, ask: GpuRequest) -> bool:
    if gpu.memory_bytes < ask.memory_min * _MEMORY_TOLERANCE:
        return False
    return ask.memory_max is None or gpu.memory_bytes <= ask.memory_max


def _gpu_words(ask: GpuRequest, machine: Machine, free: int) -> str:
    total = sum(_gpu_fits(gpu, ask) for gpu in machine.capabilities.gpus)
    memory = f" of {_size(ask.memory_min)} or more" if ask.memory_min else ""
    if total < ask.min:
        return f"has {total or 'no'} GPU{'' if total == 1 else 's'}{memory}, {ask.min} needed"
    return f"has {free or 'no'} free GPU{'' if free == 1 else 's'}{memory}, {ask.min} needed"


def _lacks(has: int, need: int | None) -> bool:
    return need is not None and has < need * _MEMORY_TOLERANCE


def _size(value: int | None) -> str:
    return f"{(value or 0) / 2**30:.1f}Gi"


# --- parameters -----------------------------------------------------------------------------------------


def adjust(
    manifest: Manifest, world_size: int
) -> tuple[dict[str, Any], tuple[Adjustment, ...], tuple[str, ...]]:
    """Parameters for so many processes, what was changed, and what somebody should know about it."""
    params = dict(manifest.training.params)
    scale = manifest.distributed.scale
    adjusted: list[Adjustment] = []
    notices: list[str] = []
    if world_size == 1:
        return params, (), ()
    if scale.batch_size == "divide":
        for key in BATCH_SIZES:
            value = params.get(key)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                params[key] = max(1, value // world_size)
                adjusted.append(Adjustment(key, value, params[key], f"divided by {world_size} processes"))
                if params[key] * world_size != value:
                    notices.append(
                        f"{key} {value} is not a multiple of {world_size} processes: "
                        f"together they train with {params[key] * world_size}"
                    )
    if scale.learning_rate != "keep":
        factor = world_size if scale.learning_rate == "linear" else math.sqrt(world_size)
        for key in LEARNING_RATES:
            value = params.get(key)
            if isinstance(value, int | float) and not isinstance(value, bool):
                params[key] = value * factor
                adjusted.append(
                    Adjustment(key, value, params[key], f"{scale.learning_rate} in {world_size} processes")
                )
    return params, tuple(adjusted), tuple(notices)
