"""What this machine has and what of it is in use. Versions come from metadata: torch is never imported."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import os
import platform
import socket
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import psutil

from trainforge.config import disk
from trainforge.config.messages import Capabilities, Load
from trainforge.config.policy import Policy, load_policy
from trainforge.config.session import session_end
from trainforge.config.settings import ExecutorSettings
from trainforge.config.settings_load import config_home
from trainforge.executor import gpus, installing
from trainforge.executor.abilities import abilities
from trainforge.executor.housekeeping import refusal_of
from trainforge.executor.limits import Limits


def version_of(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def host_id() -> str:
    """The same for all executors of one machine, and of no use to anybody else."""
    for path in ("/etc/machine-id", "/proc/sys/kernel/random/boot_id"):
        try:
            return hashlib.sha256(Path(path).read_bytes().strip()).hexdigest()[:16]
        except OSError:
            continue
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:16]


def cpu_count() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) or 1


def memory_bytes() -> int:
    """The machine's memory, or the control group's share of it."""
    total = int(psutil.virtual_memory().total)
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            return min(total, int(Path(path).read_text()))
        except (OSError, ValueError):
            continue
    return total


def own_capabilities(settings: ExecutorSettings, held: Collection[str] = ()) -> Capabilities:
    """What this machine has, as its settings offer it; `held` are the GPUs of this executor's own jobs."""
    has = capabilities(settings.data_dir, labels=settings.labels, max_jobs=settings.max_jobs, held=held)
    offset = time.localtime().tm_gmtoff
    closed = disk.low(settings.data_dir, settings.disk_low) or refusal_of(settings.data_dir)
    limits = Limits.of(settings)
    changes = {
        "memory_bytes": min(has.memory_bytes, limits.memory or has.memory_bytes),
        "cpu_count": len(limits.cpus) or has.cpu_count,
        "policy": own_policy(settings),
        "available": settings.available,
        "utc_offset": float(offset),
        "session_ends": session_ends(settings),
        "closed": closed,
        "isolation": abilities(settings).shown(settings),
    }
    return has.model_copy(update=changes)


def own_policy(settings: ExecutorSettings) -> Policy | None:
    """The rules of this machine's owner, as they were when the program started; None without a file."""
    usual = config_home() / "policy.yaml"
    path = settings.policy_file or (usual if usual.is_file() else None)
    return None if path is None else _policy(path)


_policy = functools.cache(load_policy)
_installers = functools.cache(installing.installers)


def session_ends(settings: ExecutorSettings) -> float:
    """When this machine will be gone, counted from this program's start; 0 if that is not known."""
    return session_end(settings.session_ends, psutil.Process().create_time())


def capabilities(
    data_dir: Path,
    *,
    labels: Mapping[str, str] | None = None,
    max_jobs: int = 1,
    held: Collection[str] = (),
) -> Capabilities:
    return Capabilities(
        hostname=socket.gethostname(),
        host_id=host_id(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        cpu_count=cpu_count(),
        memory_bytes=memory_bytes(),
        disk_free_bytes=int(psutil.disk_usage(str(data_dir)).free),
        gpus=gpus.offered(gpus.readings(), held),
        python=platform.python_version(),
        torch=version_of("torch"),
        accelerate=version_of("accelerate"),
        trainforge=version_of("trainforge"),
        labels=dict(labels or {}),
        max_jobs=max_jobs,
        installers=list(_installers()),
    )


def hardware(uuids: Collection[str]) -> dict[str, Any]:
    """What a job runs on, with those of the GPUs that it has, for its result."""
    given = [one.gpu.model_dump(exclude={"problem"}) for one in gpus.readings() if one.gpu.uuid in uuids]
    return {
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "libc": " ".join(platform.libc_ver()),
        "cpu": cpu_model(),
        "cpu_count": cpu_count(),
        "memory_bytes": memory_bytes(),
        "driver": next((gpu["driver"] for gpu in given), ""),
        "gpus": given,
    }


def cpu_model() -> str:
    """As the kernel names it; empty where it does not."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def load(settings: ExecutorSettings, held: Collection[str] = ()) -> Load:
    """What is in use now; `held` are the GPUs that jobs of this executor have.

    Where a part of the memory is offered, that is what of this part is not to be had.
    """
    offered = Limits.of(settings).memory
    ram = psutil.virtual_memory()
    found = gpus.readings()
    return Load(
        cpu_percent=psutil.cpu_percent(),
        memory_bytes=max(0, offered - ram.available) if offered else int(ram.used),
        disk_free_bytes=int(psutil.disk_usage(str(settings.data_dir)).free),
        gpu_percent=[one.percent for one in found],
        gpu_memory_bytes=[one.used_bytes for one in found],
        gpu_others_bytes=[0 if one.gpu.uuid in held else one.used_bytes for one in found],
    )
