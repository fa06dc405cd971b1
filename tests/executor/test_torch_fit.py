"""Which torch fits which driver."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from trainforge.executor import torch_fit
from trainforge.executor.torch_fit import Driver, Torch

CUDA = """from typing import Optional

__all__ = ['__version__', 'debug', 'cuda', 'git_version', 'hip']
__version__ = '2.13.0+cu130'
debug = False
cuda: Optional[str] = '13.0'
git_version = 'cf30153c4c131c8164ee7798e5022d810682e2cb'
hip: Optional[str] = None
"""


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (CUDA, Torch("2.13.0+cu130", "13.0")),
        (CUDA.replace("'13.0'", "None").replace("cu130", "cpu"), Torch("2.13.0+cpu")),
        ("__version__ = '1.13.1+cu117'\ncuda = '11.7'\nhip = None\n", Torch("1.13.1+cu117", "11.7")),
        (f"{CUDA}hip = '6.4'\n", Torch("2.13.0+cu130", "13.0", hip=True)),
        ("nothing of the kind", None),
    ],
)  # fmt: skip
def test_the_build_is_read_from_its_files(text: str, found: Torch | None) -> None:
    assert torch_fit.parse(text) == found


@pytest.mark.parametrize(
    ("driver", "supports"),
    [
        (Driver("580.65.06", "13.0"), (13, 0)),
        (Driver("550.54.15"), (12, 4)),
        (Driver("535.104.05"), (12, 2)),
        (Driver("470.57.02"), (11, 4)),
        (Driver("390.157"), None),
        (Driver(), None),
    ],
)
def test_a_driver_supports(driver: Driver, supports: tuple[int, int] | None) -> None:
    assert driver.supports() == supports


ONE = ["GPU-a"]


@pytest.mark.parametrize(
    ("torch", "driver", "gpus", "said"),
    [
        (Torch("2.13.0+cu130", "13.0"), Driver("550.54.15", "12.4"), ONE, "cu128 fits"),
        (Torch("2.13.0+cu130", "13.0"), Driver("550.54.15", "12.4"), ONE, "550.54.15 supports CUDA 12.4"),
        (Torch("2.7.0+cu128", "12.8"), Driver("470.57.02"), ONE, "cu118 fits"),
        (Torch("2.13.0+cpu"), Driver("580.1", "13.0"), ONE, "for CPUs alone, and the job has 1 GPU; cu130"),
        (Torch("2.13.0+cu130", "13.0"), Driver("580.1", "13.0"), ONE, ""),
        (Torch("2.7.0+cu128", "12.8"), Driver("525.60.13", "12.0"), ONE, ""),
        (Torch("2.7.0+cu118", "11.8"), Driver("580.1", "13.0"), ONE, ""),
        (Torch("2.13.0+cpu"), Driver("580.1", "13.0"), [], ""),
        (Torch("2.9.0+rocm6.4", "", hip=True), Driver("580.1", "13.0"), ONE, ""),
        (Torch("2.13.0+cu130", "13.0"), Driver(), ONE, ""),
        (None, Driver("580.1", "13.0"), ONE, ""),
    ],
)  # fmt: skip
def test_a_misfit_is_named_with_what_fits(
    torch: Torch | None, driver: Driver, gpus: list[str], said: str
) -> None:
    found = torch_fit.misfit(torch, driver, gpus)
    assert said in found
    assert bool(found) is bool(said)


@pytest.mark.parametrize(
    ("driver", "gpus", "chosen"),
    [
        (Driver("580.1", "13.0"), ONE, "cu130"), (Driver("550.54.15"), ONE, "cu128"),
        (Driver("470.57.02"), ONE, "cu118"), (Driver(), ONE, ""), (Driver("580.1", "13.0"), [], "cpu"),
    ],
)  # fmt: skip
def test_the_build_that_fits(driver: Driver, gpus: list[str], chosen: str) -> None:
    assert torch_fit.backend(driver, gpus) == chosen


def test_this_pythons_torch_and_that_of_another(tmp_path: Path) -> None:
    assert torch_fit.torch_of(sys.executable) is not None
    folder = tmp_path / "lib" / "python3.11" / "site-packages" / "torch"
    folder.mkdir(parents=True)
    assert torch_fit.torch_of(str(tmp_path / "bin" / "python")) is None
    (folder / "version.py").write_text(CUDA)
    assert torch_fit.torch_of(str(tmp_path / "bin" / "python")) == Torch("2.13.0+cu130", "13.0")
