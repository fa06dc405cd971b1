"""GPUs as `nvidia-smi` lists them, for machines where the library that it uses cannot be loaded from here."""

from __future__ import annotations

import csv
import re
import shutil
import subprocess
from collections import Counter

from trainforge.config.messages import Gpu
from trainforge.executor.gpu_health import Reading

PLAIN = ("uuid", "name", "memory.total", "driver_version", "utilization.gpu", "memory.used")
HEALTH = (
    "pci.bus_id", "temperature.gpu", "ecc.errors.uncorrected.volatile.total", "retired_pages.pending",
    "clocks_throttle_reasons.hw_thermal_slowdown", "clocks_throttle_reasons.hw_power_brake_slowdown",
)  # fmt: skip
PATIENCE_S = 10.0
MIB, GB = 2**20, 10**9
_GPU = re.compile(r"^GPU (\d+): .*\(UUID: (GPU-[\w-]+)\)")
_SLICE = re.compile(r"^\s+MIG (\S*?(\d+)gb\S*)\s+Device\s+\d+: \(UUID: (MIG-[^)\s]+)\)")
_LOST = re.compile(r"GPU ?([0-9A-Fa-f:.]*): (GPU is lost|.*Unknown Error)", re.IGNORECASE)


def readings() -> list[Reading]:
    """All GPUs; none where the program is not there, fails or hangs."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    fields = (*PLAIN, *HEALTH)
    rows, said = _query(program, "gpu", fields)
    if not rows:  # an older or newer one, which has not all of these
        rows, said = _query(program, "gpu", PLAIN)
    programs = Counter(row[0] for row in _query(program, "compute-apps", ("gpu_uuid", "pid"))[0])
    whole = [_reading(dict(zip(fields, row, strict=False)), programs) for row in rows]
    lost = [
        Reading(Gpu(uuid=f"GPU-{match[1]}", model="GPU", memory_bytes=0), bus=match[1].lower(), lost=match[2])
        for match in _LOST.finditer(said)
    ]
    return _sliced(whole, _run([program, "-L"])) + lost


def _query(program: str, what: str, fields: tuple[str, ...]) -> tuple[list[list[str]], str]:
    said = _run([program, f"--query-{what}={','.join(fields)}", "--format=csv,noheader,nounits"])
    rows = csv.reader(said.splitlines(), skipinitialspace=True)
    return [row for row in rows if len(row) == len(fields)], said


def _run(argv: list[str]) -> str:
    try:
        return subprocess.run(argv, capture_output=True, text=True, timeout=PATIENCE_S, check=False).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def _reading(row: dict[str, str], programs: Counter[str]) -> Reading:
    gpu = Gpu(
        uuid=row["uuid"],
        model=row["name"],
        memory_bytes=int(_number(row["memory.total"])) * MIB,
        driver=row["driver_version"],
    )
    degrees = row.get("temperature.gpu", "")
    return Reading(
        gpu,
        bus=row.get("pci.bus_id", "").lower(),
        percent=_number(row["utilization.gpu"]),
        used_bytes=int(_number(row["memory.used"])) * MIB,
        programs=programs[gpu.uuid] if "pci.bus_id" in row else None,
        degrees=_number(degrees) if degrees[:1].isdigit() else None,
        hot=row.get(HEALTH[4]) == "Active",
        braked=row.get(HEALTH[5]) == "Active",
        uncorrected=int(_number(row.get(HEALTH[2], ""))),
        pending=row.get(HEALTH[3]) == "Yes",
    )


def _sliced(whole: list[Reading], listed: str) -> list[Reading]:
    """A GPU that is cut into slices as these, whose memory only their names tell: 1g.5gb."""
    slices: dict[str, list[Gpu]] = {}
    uuid = ""
    for line in listed.splitlines():
        if match := _GPU.match(line):
            uuid = match[2]
        elif match := _SLICE.match(line):
            gpu = Gpu(uuid=match[3], model=f"MIG {match[1]}", memory_bytes=int(match[2]) * GB)
            slices.setdefault(uuid, []).append(gpu)
    found: list[Reading] = []
    for one in whole:
        cut = slices.get(one.gpu.uuid)
        parts = [Reading(gpu.model_copy(update={"driver": one.gpu.driver})) for gpu in cut or ()]
        found += [part.as_healthy_as(one) for part in parts] if cut else [one]
    return found


def _number(text: str) -> float:
    """Zero where it says [N/A], as for a slice of a GPU."""
    try:
        return float(text)
    except ValueError:
        return 0.0
