"""What of a machine its owner lets jobs have: offered to the sender, and kept for each training."""

from __future__ import annotations

import os
from dataclasses import dataclass

from trainforge.config.settings import ExecutorSettings

GB = 10**9


@dataclass(frozen=True)
class Limits:
    """`memory`, `disk` and `log` are bytes, 0 for no limit; `cpus` the cores left to jobs, empty for all."""

    memory: int = 0
    cpus: tuple[int, ...] = ()
    disk: int = 0  # of one job's folders together
    log: int = 0  # of what one node prints and reports

    @classmethod
    def of(cls, settings: ExecutorSettings) -> Limits:
        """The last of the cores, since the first is the one that everything else begins on."""
        memory = int((settings.max_memory_gb or 0) * GB)
        disk, log = int((settings.max_disk_gb or 0) * GB), settings.max_log
        if settings.max_cpu_percent is None:
            return cls(memory, (), disk, log)
        cores = sorted(os.sched_getaffinity(0))
        left = max(1, int(len(cores) * settings.max_cpu_percent / 100))
        return cls(memory, tuple(cores[-left:]) if left < len(cores) else (), disk, log)
