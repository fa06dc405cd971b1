"""Whether the torch of an environment can use the machine's GPUs, read from its files: it is never imported.

A driver runs what was built for its own CUDA version or an older one, and by CUDA's minor version
compatibility also newer builds of the same major version (CUDA Compatibility guide, 12 and later: driver 525,
13: driver 580). Of a newer major version it runs nothing: torch then finds no GPU, or fails once it is used.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trainforge.executor.installing import TORCH_INDEX

# The newest wheels that torch's index has for each major version of CUDA.
BUILDS = {"cu130": 13, "cu128": 12, "cu118": 11}
# The CUDA version of each branch of NVIDIA's driver, for where only the driver's own version is known.
DRIVERS = {
    580: (13, 0), 575: (12, 9), 570: (12, 8), 560: (12, 6), 555: (12, 5), 550: (12, 4), 545: (12, 3),
    535: (12, 2), 530: (12, 1), 525: (12, 0), 520: (11, 8), 515: (11, 7), 510: (11, 6), 495: (11, 5),
    470: (11, 4), 465: (11, 3), 460: (11, 2), 455: (11, 1), 450: (11, 0),
}  # fmt: skip
OLDEST = 450  # with an older driver no build runs
_VERSION = re.compile(r"^__version__ *= *['\"]([^'\"]{1,60})['\"]", re.MULTILINE)
_CUDA = re.compile(r"^cuda\b[^=\n]*= *(?:['\"]([\d.]{1,20})['\"]|None)", re.MULTILINE)
_HIP = re.compile(r"^hip\b[^=\n]*= *['\"]", re.MULTILINE)
LIMIT = 64 * 1024


@dataclass(frozen=True)
class Driver:
    """Both as NVIDIA says them, such as 550.54.15 and 12.4; empty where they are not known."""

    version: str = ""
    cuda: str = ""

    def supports(self) -> tuple[int, int] | None:
        """The newest CUDA version that it runs."""
        if said := _numbers(self.cuda):
            return said[0], said[1] if len(said) > 1 else 0
        branch = next(iter(_numbers(self.version)), 0)
        return next((cuda for first, cuda in DRIVERS.items() if branch >= first), None)


UNKNOWN = Driver()


@dataclass(frozen=True)
class Torch:
    """`cuda` is empty in a build for CPUs alone."""

    version: str
    cuda: str = ""
    hip: bool = False


def torch_of(python: str) -> Torch | None:
    """What the environment of this Python has; None where it has no torch."""
    if python == sys.executable:
        spec = importlib.util.find_spec("torch")
        folders = [Path(one) for one in (spec.submodule_search_locations or []) if spec] if spec else []
    else:
        folders = list(Path(python).parent.parent.glob("lib/python3*/site-packages/torch"))
    for folder in folders:
        try:
            with (folder / "version.py").open(errors="replace") as file:
                return parse(file.read(LIMIT))
        except OSError:
            continue
    return None


def parse(text: str) -> Torch | None:
    """torch/version.py, as torch 1.13 to 2.13 write it."""
    version, cuda = _VERSION.search(text), _CUDA.search(text)
    if version is None:
        return None
    return Torch(version[1], (cuda[1] or "") if cuda else "", bool(_HIP.search(text)))


def misfit(torch: Torch | None, driver: Driver, gpus: Sequence[str]) -> str:
    """Why this torch cannot use these GPUs, and which could; empty where it can, or nothing is known."""
    supports = driver.supports()
    if torch is None or torch.hip or not gpus or supports is None:
        return ""
    here = f"the driver {driver.version} supports CUDA {_text(supports)}".replace("  ", " ")
    if not torch.cuda:
        count = f"{len(gpus)} GPU{'' if len(gpus) == 1 else 's'}"
        return f"torch {torch.version} is built for CPUs alone, and the job has {count}; {_offer(supports)}"
    if _numbers(torch.cuda)[0] <= supports[0]:
        return ""
    return f"torch {torch.version} is built for CUDA {torch.cuda}, and {here}; {_offer(supports)}"


def backend(driver: Driver, gpus: Sequence[str]) -> str:
    """The build of torch that fits: cpu without GPUs, empty where it is not known."""
    if not gpus:
        return "cpu"
    supports = driver.supports()
    if supports is None:
        return ""
    return next((name for name, major in BUILDS.items() if major <= supports[0]), "")


def _offer(supports: tuple[int, int]) -> str:
    fitting = backend(Driver(cuda=_text(supports)), ["any"])
    if not fitting:
        return f"no build of torch fits: it needs a driver of {OLDEST} or newer"
    return (
        f"{fitting} fits: environment.torch_backend: {fitting}, `uv pip --torch-backend {fitting}`, "
        f"or the index {TORCH_INDEX}/{fitting}"
    )


def _text(cuda: tuple[int, int]) -> str:
    return f"{cuda[0]}.{cuda[1]}"


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:3])
