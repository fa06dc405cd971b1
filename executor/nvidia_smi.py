"""GPUs as `nvidia-smi` lists them, for machines where the library that it uses cannot be loaded from here."""

from __future__ import annotations

import csv
import shutil
import subprocess
from dataclasses import dataclass

from trainforge.config.messages import Gpu

FIELDS = "uuid,name,memory.total,driver_version,utilization.gpu,memory.used"
PATIENCE_S = 10.0
MIB = 2**20


@dataclass(frozen=True)
class Listed:
    gpu: Gpu
    percent: float
    used_bytes: int


def listed() -> list[Listed]:
    """All GPUs; none where the program is not there, fails or hangs."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    asked = [program, f"--query-gpu={FIELDS}", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(asked, capture_output=True, text=True, timeout=PATIENCE_S, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [row for row in csv.reader(said.splitlines(), skipinitialspace=True) if len(row) == 6]
    return [
        Listed(
            Gpu(uuid=uuid, model=model, memory_bytes=int(_number(total)) * MIB, driver=driver),
            _number(percent),
            int(_number(used)) * MIB,
        )
        for uuid, model, total, driver, percent, used in rows
    ]


def _number(text: str) -> float:
    """Zero where it says [N/A], as for a slice of a GPU."""
    try:
        return float(text)
    except ValueError:
        return 0.0
