"""Whether a GPU may be given to a job, and in words why not. Pure.

The kernel's log tells of errors as `NVRM: Xid (PCI:0000:3b:00): 79, …` (NVIDIA's "Xid Errors" lists the
numbers); those of a program's own, such as 13, 31, 43 and 45, say nothing of the GPU.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from trainforge.config.messages import Gpu

MUCH = 2**30  # bytes in use by nobody that are more than what a driver keeps for itself
RESET = "reset it (nvidia-smi --gpu-reset -i {bus}) or restart the machine"
BROKEN = {
    48: "an uncorrectable memory error",
    62: "its controller halted",
    64: "a memory row could not be remapped",
    74: "an NVLink error",
    79: "it fell off the bus",
    92: "many memory errors",
    95: "an uncontained memory error",
    119: "its GSP firmware does not answer",
    120: "its GSP firmware failed",
    140: "an unrecovered memory error",
    143: "it failed to start",
}
_XID = re.compile(r"NVRM: Xid \((?:PCI:)?([0-9a-fA-F:.]{7,16})\): (\d{1,3})\b")
_LOADED = re.compile(r"NVRM: loading NVIDIA")


@dataclass(frozen=True)
class Reading:
    """One GPU, or slice of one, at one moment; None and empty are what it does not tell."""

    gpu: Gpu
    bus: str = ""  # on PCI, such as 00000000:3b:00.0
    percent: float = 0.0
    used_bytes: int = 0
    programs: int | None = None  # that use it, as far as they can be seen from here
    degrees: float | None = None
    too_hot: float | None = None  # from where it slows itself down
    hot: bool = False
    braked: bool = False  # by its power supply
    uncorrected: int = 0  # memory errors since the driver was loaded
    pending: bool = False  # memory that is replaced at the next reset
    worn_out: bool = False  # memory that could not be replaced
    lost: str = ""

    def as_healthy_as(self, whole: Reading) -> Reading:
        """A slice: it has its own memory and programs, and everything else of the whole."""
        return replace(whole, gpu=self.gpu, used_bytes=self.used_bytes, programs=self.programs, percent=0.0)


def problem(reading: Reading, xids: Mapping[str, Collection[int]]) -> str:
    """Why no job is to have it; empty for a healthy one."""
    reset = RESET.format(bus=reading.bus or "…")
    error = next((n for n in reversed(tuple(xids.get(short(reading.bus), ()))) if n in BROKEN), 0)
    errors = f"{reading.uncorrected} uncorrected memory error{'' if reading.uncorrected == 1 else 's'} (ECC)"
    hot = reading.hot or (reading.degrees or 0.0) >= (reading.too_hot or math.inf)
    degrees = f"at {reading.degrees:.0f} °C " if reading.degrees else ""
    found = {
        f"it does not answer ({reading.lost}): restart the machine": reading.lost,
        f"{BROKEN.get(error, '')} (Xid {error} in the kernel's log): {reset}": error,
        "its memory is worn out (a row could not be remapped): have it replaced": reading.worn_out,
        f"{errors} since its driver was loaded: {reset}": reading.uncorrected,
        f"faulty memory of it is replaced once it is reset: {reset}": reading.pending,
        f"{degrees}it slows itself down for heat: look at its cooling": hot,
        "its power supply slows it down: look at its cables": reading.braked,
    }
    return next((words for words, true in found.items() if true), "")


def leftover(reading: Reading) -> str:
    """Memory that nobody uses: of a process that died, or one of another container."""
    if reading.programs != 0 or reading.used_bytes < MUCH:
        return ""
    used = f"{reading.used_bytes / 2**30:.1f} GiB of its memory are in use by no process that is seen here"
    return f"{used}: left over by one that died (reset the GPU), or another container's"


def xids(log: str) -> dict[str, list[int]]:
    """The errors in a kernel's log since its driver was loaded, by place on PCI, the oldest first."""
    found: dict[str, list[int]] = {}
    for line in log.splitlines():
        if _LOADED.search(line):
            found.clear()
        elif match := _XID.search(line):
            found.setdefault(short(match[1]), []).append(int(match[2]))
    return found


def short(bus: str) -> str:
    """The kernel says 0000:3b:00, NVML 00000000:3B:00.0: both as 3b:00 with its domain."""
    domain, _, rest = bus.lower().partition(":")
    if ":" not in rest:  # without a domain
        domain, rest = "0", bus.lower()
    return f"{domain.lstrip('0') or '0'}:{rest.partition('.')[0]}"
