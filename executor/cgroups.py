"""Control groups, version 1 and 2: bounds on a job's memory, processors and number of processes.

A group is made beside the executor's own (below it in version 1, or where the own one is the root), and a
job's first program writes itself into it before it becomes the job. Where the system does not let us, a
controller is simply not there, and `Isolation.bounded` says so.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
PERIOD = 100_000
WANTED = ("memory", "cpu", "pids")
GONE_S = 2.0


@dataclass(frozen=True)
class Bounds:
    """0 is no bound."""

    memory: int = 0  # bytes
    cpus: float = 0.0
    pids: int = 0


@dataclass(frozen=True)
class Parents:
    """For each controller the folder that groups are made in."""

    version: int
    folders: Mapping[str, Path]


def find(own: str | None = None, root: Path = ROOT) -> Parents:
    """Where groups could be made; `try_out` tells where they can."""
    lines = (own if own is not None else Path("/proc/self/cgroup").read_text()).splitlines()
    rows = [line.split(":", 2) for line in lines if line.count(":") >= 2]
    first = {
        name: root / name / path.lstrip("/")
        for _, names, path in rows
        for name in names.split(",")
        if name in WANTED
    }
    if first:
        return Parents(1, {name: folder for name, folder in first.items() if folder.is_dir()})
    path = next((path for number, _, path in rows if number == "0"), "/")
    mine = root / path.lstrip("/")
    parent = mine if mine == root else mine.parent
    try:
        given = (parent / "cgroup.subtree_control").read_text().split()
    except OSError:
        given = []
    return Parents(2, {name: parent for name in WANTED if name in given})


def try_out(parents: Parents) -> Parents:
    """Those in which a group can really be made and bounded."""
    works = {}
    for name, folder in parents.folders.items():
        group = Group(f"trainforge-try-{os.getpid()}", Parents(parents.version, {name: folder}))
        with contextlib.suppress(OSError):
            group.make(Bounds(memory=2**30, cpus=1.0, pids=100))
            works[name] = folder
        group.remove()
    return Parents(parents.version, works)


class Group:
    """One job's, by its name."""

    def __init__(self, name: str, parents: Parents) -> None:
        self.parents = parents
        self.folders = {control: folder / name for control, folder in parents.folders.items()}

    def make(self, bounds: Bounds) -> list[Path]:
        """The files that a process writes its number to, to be in it. Entering costs it milliseconds each."""
        wanted = {control: settings(self.parents.version, control, bounds) for control in self.folders}
        joined = {self.folders[control] for control, values in wanted.items() if values}
        for folder in joined:
            folder.mkdir(exist_ok=True)
        for control, values in wanted.items():
            for name, value in values.items():
                (self.folders[control] / name).write_text(value)
        return sorted(folder / "cgroup.procs" for folder in joined)

    def remove(self) -> None:
        """Once nothing runs in it; what cannot be removed now is found empty and used again."""
        until = time.monotonic() + GONE_S
        for folder in set(self.folders.values()):
            while folder.exists() and time.monotonic() < until:
                try:
                    folder.rmdir()
                except OSError:
                    time.sleep(0.02)

    def out_of_memory(self) -> bool:
        """Whether the kernel has killed something of it for its memory."""
        folder = self.folders.get("memory")
        if folder is None:
            return False
        name = "memory.oom_control" if self.parents.version == 1 else "memory.events"
        with contextlib.suppress(OSError, ValueError):
            rows = (line.split() for line in (folder / name).read_text().splitlines())
            return int(dict(row for row in rows if len(row) == 2).get("oom_kill", 0)) > 0
        return False


def settings(version: int, control: str, bounds: Bounds) -> dict[str, str]:
    """File and content for each bound of a controller."""
    if control == "memory" and bounds.memory:
        return {"memory.limit_in_bytes" if version == 1 else "memory.max": str(bounds.memory)}
    if control == "pids" and bounds.pids:
        return {"pids.max": str(bounds.pids)}
    if control == "cpu" and bounds.cpus:
        quota = int(bounds.cpus * PERIOD)
        return {"cpu.cfs_quota_us": str(quota)} if version == 1 else {"cpu.max": f"{quota} {PERIOD}"}
    return {}
