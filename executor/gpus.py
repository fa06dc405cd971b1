"""This machine's GPUs: what it offers of them, which of them no job is to have, and what its jobs use.

Executors of one machine share them by locks, a file for each GPU, held by whoever trains on it: they know of
each other's jobs nothing else.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from trainforge.config.messages import Gpu, GpuUse
from trainforge.executor import gpu_health, nvidia_smi, nvml
from trainforge.executor.gpu_health import Reading
from trainforge.executor.torch_fit import UNKNOWN, Driver

FOLDERS = (Path("/run/lock"), Path("/tmp"))  # noqa: S108 - where every user's programs meet
SETTLE_S = 3.0  # a driver frees the memory of a process a moment after its end
LOG_S = 30.0
LOG_RECORDS = 20_000
_free_since: dict[str, float] = {}  # when memory that nobody uses was first seen
_log: list[tuple[float, Mapping[str, list[int]]]] = []


def readings() -> list[Reading]:
    """All that this executor may offer."""
    library = nvml.library()
    found = nvml.Nvml(library).readings() if library is not None else nvidia_smi.readings()
    return visible(found, os.environ.get("CUDA_VISIBLE_DEVICES"))


def visible(found: Sequence[Reading], chosen: str | None) -> list[Reading]:
    """Those that CUDA_VISIBLE_DEVICES leaves to this program: numbers in the order of PCI, or UUIDs."""
    if chosen is None:
        return list(found)
    kept: list[Reading] = []
    for part in filter(None, (part.strip() for part in chosen.split(","))):
        if part.isdigit():
            kept += found[int(part) : int(part) + 1]
        else:
            kept += [one for one in found if one.gpu.uuid.startswith(part)][:1]
    return kept


def offered(found: Sequence[Reading], held: Collection[str]) -> list[Gpu]:
    """As they are announced, each with why no job is to have it; `held` are those of our own jobs."""
    said = problems(found, held)
    return [one.gpu.model_copy(update={"problem": said[one.gpu.uuid]}) for one in found]


def problems(found: Sequence[Reading], held: Collection[str]) -> dict[str, str]:
    """By UUID; empty where there is none."""
    known = errors_logged() if found else {}
    return {one.gpu.uuid: gpu_health.problem(one, known) or _shared(one, held) for one in found}


def _shared(reading: Reading, held: Collection[str]) -> str:
    """Whether somebody has it, or nobody but its memory is gone."""
    uuid = reading.gpu.uuid
    if uuid in held:
        return ""
    if taken(uuid):
        return "another job on this machine has it"
    words = gpu_health.leftover(reading)
    if not words:
        _free_since.pop(uuid, None)
        return ""
    since = _free_since.setdefault(uuid, time.monotonic())
    return words if time.monotonic() - since >= SETTLE_S else ""


def driver_of(uuids: Collection[str]) -> Driver:
    """That of these GPUs, which a machine has one of."""
    if not uuids:
        return UNKNOWN
    found = [one.gpu for one in readings() if one.gpu.uuid in uuids]
    return Driver(found[0].driver, found[0].cuda) if found else UNKNOWN


def errors_logged() -> Mapping[str, list[int]]:
    """Xid errors in the kernel's log, by place on PCI; nothing where we may not read it."""
    now = time.monotonic()
    if not _log or now - _log[0][0] > LOG_S:
        _log[:] = [(now, gpu_health.xids("\n".join(_kernel_log())))]
    return _log[0][1]


def _kernel_log() -> Iterator[str]:
    try:
        descriptor = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return
    try:
        for _ in range(LOG_RECORDS):
            try:
                yield os.read(descriptor, 8192).decode("utf-8", "replace")
            except BrokenPipeError:  # what was to be read next has been written over
                continue
            except OSError:
                return
    finally:
        os.close(descriptor)


# --- one holder each ------------------------------------------------------------------------------------


def _lock(uuid: str, *, make: bool) -> int | None:
    """The lock's file; None where there is none, or it cannot be opened as it is another user's."""
    above = next((path for path in FOLDERS if path.is_dir() and os.access(path, os.W_OK)), FOLDERS[-1])
    folder = above / "trainforge-gpus"
    if make:
        with contextlib.suppress(OSError):
            folder.mkdir(exist_ok=True)
            folder.chmod(0o1777)
    name = re.sub(r"[^A-Za-z0-9-]", "_", uuid)[:100]
    for flags in (os.O_RDWR | os.O_CREAT, os.O_RDONLY) if make else (os.O_RDONLY,):
        with contextlib.suppress(OSError):
            descriptor = os.open(folder / name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
            if make:
                with contextlib.suppress(OSError):
                    os.fchmod(descriptor, 0o666)
            return descriptor
    return None


def _locked(descriptor: int, how: int) -> bool:
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def taken(uuid: str) -> bool:
    """Whether somebody holds it, this program too."""
    descriptor = _lock(uuid, make=False)
    if descriptor is None:
        return False
    try:
        return not _locked(descriptor, fcntl.LOCK_SH)
    finally:
        os.close(descriptor)


def hold(uuid: str, patience_s: float = 1.0) -> int | None:
    """A descriptor that holds it until it, and each copy that a process was given, is closed; None: taken."""
    descriptor = _lock(uuid, make=True)
    if descriptor is None:  # no lock can be had here: the planner alone keeps executors apart
        return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    end = time.monotonic() + patience_s  # somebody may look whether it is taken
    while not _locked(descriptor, fcntl.LOCK_EX):
        if time.monotonic() > end:
            os.close(descriptor)
            return None
        time.sleep(0.02)
    return descriptor


# --- use ------------------------------------------------------------------------------------------------


@dataclass
class Meter:
    """What a job's GPUs were used for, from samples of equal distance. `total` survives a restart."""

    uuids: Sequence[str]
    total: dict[str, dict[str, float]] = field(default_factory=dict)

    def add(self, found: Sequence[Reading]) -> list[Reading]:
        """Count one sample; gives the job's own."""
        own = [one for one in found if one.gpu.uuid in self.uuids]
        for one in own:
            sums = self.total.setdefault(one.gpu.uuid, dict.fromkeys(_SUMS, 0.0))
            sums["samples"] += 1
            sums["percent"] += one.percent
            sums["bytes"] += one.used_bytes
            sums["most_percent"] = max(sums["most_percent"], one.percent)
            sums["most_bytes"] = max(sums["most_bytes"], one.used_bytes)
        return own

    def used(self) -> list[GpuUse]:
        return [
            GpuUse(
                uuid=uuid,
                mean_percent=round(sums["percent"] / sums["samples"], 1),
                peak_percent=sums["most_percent"],
                mean_memory_bytes=int(sums["bytes"] / sums["samples"]),
                peak_memory_bytes=int(sums["most_bytes"]),
            )
            for uuid, sums in self.total.items()
            if sums["samples"]
        ]


_SUMS = ("samples", "percent", "bytes", "most_percent", "most_bytes")
