"""Which device files a job's GPUs are; a job without GPUs sees none."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

SHARED = ("nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia-modeset", "nvidia-caps", "dxg", "kfd", "dri")
_UUID = re.compile(r"GPU UUID:\s*(\S+)")
_MINOR = re.compile(r"Device Minor:\s*(\d+)")


def devices(
    gpus: Sequence[str], dev: Path = Path("/dev"), driver: Path = Path("/proc/driver/nvidia/gpus")
) -> tuple[str, ...]:
    """Those of the GPUs with these UUIDs; all where the driver does not tell which is which."""
    if not gpus:
        return ()
    numbers = {}
    for path in sorted(driver.glob("*/information")):
        text = path.read_text()
        uuid, minor = _UUID.search(text), _MINOR.search(text)
        if uuid and minor:
            numbers[uuid[1]] = f"nvidia{minor[1]}"
    own = [numbers[gpu] for gpu in gpus if gpu in numbers]
    if len(own) < len(gpus):
        own = sorted(path.name for path in dev.glob("nvidia[0-9]*"))
    return tuple(str(dev / name) for name in (*own, *SHARED) if (dev / name).exists())
