"""Helpers for training scripts; using them is a choice, a script needs nothing of TrainForge.

They read the environment that TrainForge and torchrun set, need only the standard library (`accelerate` for
`get_accelerator`), and do something sensible in a script that is run by hand. This file may be copied into a
project as it is: it imports nothing of TrainForge.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from accelerate import Accelerator


def rank() -> int:
    """This process's number among all that train together."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """How many processes train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_distributed_training() -> bool:
    return world_size() > 1


def should_save_outputs() -> bool:
    """True in the one process that writes models, metrics and messages."""
    return rank() == 0


def get_accelerator(**options: Any) -> Accelerator:
    """An `accelerate.Accelerator` with the manifest's backend, on the CPU where there is no GPU."""
    import torch
    from accelerate import Accelerator
    from accelerate.utils import InitProcessGroupKwargs

    options.setdefault("cpu", not torch.cuda.is_available())
    backend = os.environ.get("TRAINFORGE_BACKEND")  # distributed.backend; None leaves it to Accelerate
    options.setdefault("kwargs_handlers", [InitProcessGroupKwargs(backend=backend)])
    return Accelerator(**options)


def trainforge_tracker() -> Any:
    """A tracker that reports to the job: `Accelerator(log_with=trainforge_tracker())`, like any other.

    `accelerator.init_trackers("any name")` begins it and `accelerator.log({"loss": 0.3}, step=100)` reports.
    """
    from accelerate.tracking import GeneralTracker

    class Tracker(GeneralTracker):  # type: ignore[misc] # accelerate has no types
        name = "trainforge"
        requires_logging_directory = False
        tracker = None

        def store_init_configuration(self, values: dict[str, Any]) -> None:
            """The parameters are the job's own."""

        def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
            log_metrics(values, step=step)

    return Tracker()


def print_distributed_info() -> None:
    """One line a process: which one it is, and where they meet."""
    meeting = ""
    if "MASTER_ADDR" in os.environ:
        meeting = f", meeting at {os.environ['MASTER_ADDR']}:{os.environ.get('MASTER_PORT', '?')}"
    node, nodes = os.environ.get("TRAINFORGE_NODE_RANK", "0"), os.environ.get("TRAINFORGE_NODES", "1")
    print(f"process {rank()} of {world_size()} on node {node} of {nodes}{meeting}", flush=True)


def load_params(defaults: dict[str, Any] | None = None) -> dict[str, Any]:
    """The manifest's `training.params` as adjusted to the number of processes, over `defaults`."""
    params = dict(defaults or {})
    path = os.environ.get("TRAINFORGE_PARAMS_FILE")
    if path:
        params.update(json.loads(Path(path).read_text(encoding="utf-8")))
    return params


def output_dir() -> Path:
    """Where files go that should come home with the result."""
    folder = Path(os.environ.get("TRAINFORGE_OUTPUT_DIR", "outputs"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def checkpoint_dir() -> Path:
    """Where checkpoints go; they are not part of the result."""
    folder = Path(os.environ.get("TRAINFORGE_CHECKPOINT_DIR", "checkpoints"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def resume_from() -> Path | None:
    """The checkpoint of an earlier attempt to go on from, if there is one."""
    path = os.environ.get("TRAINFORGE_RESUME_FROM")
    return Path(path) if path else None


def should_stop_soon() -> bool:
    """Whether the end is near: the manifest's `timeout.run`, or of the machine's session. Time to save.

    Processes that train together may learn it some moments apart: ask in rank 0 and tell the others.
    """
    path = os.environ.get("TRAINFORGE_WARNING_FILE")
    return bool(path) and Path(str(path)).exists()


def should_checkpoint() -> bool:
    """True once every `checkpoint.every`, and once more when the end is near.

    As with `should_stop_soon`, let rank 0 decide for all.
    """
    now, near = time.monotonic(), should_stop_soon()
    every = float(os.environ.get("TRAINFORGE_CHECKPOINT_EVERY") or "inf")
    if now - _saved["at"] < every and (not near or _saved["near"]):
        return False
    _saved.update(at=now, near=near)
    return True


_saved: dict[str, Any] = {"at": time.monotonic(), "near": False}


def log_metrics(metrics: dict[str, Any] | None = None, *, step: int | None = None, **more: Any) -> None:
    """Report numbers of this moment: `log_metrics({"loss": 0.3}, step=100)` or `log_metrics(loss=0.3)`.

    Rank 0 alone reports. Without TrainForge the line is printed, in the form TrainForge would read as well.
    """
    if not should_save_outputs():
        return
    values = {name: _plain(value) for name, value in {**(metrics or {}), **more}.items()}
    if step is not None:
        values["step"] = step
    line = json.dumps(values, allow_nan=False)
    path = os.environ.get("TRAINFORGE_METRICS_FILE")
    if path:
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(line + "\n")
    else:
        sys.stdout.write(f"PROGRESS: {line}\n")
        sys.stdout.flush()


def _plain(value: Any) -> float | int | str | bool | None:
    """A JSON value of a number, a tensor or a NumPy scalar; NaN and infinities become null."""
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return str(value)
