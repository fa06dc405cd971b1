"""Parameters for the number of processes: what is changed, by which rule, before and after. Pure.

They are always made from the manifest's own values, so that no attempt adapts them twice.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainforge.config.manifest import Manifest

BATCH_SIZES = ("batch_size", "per_device_train_batch_size")
LEARNING_RATES = ("learning_rate", "lr")
OUTPUT = "output_dir"


@dataclass(frozen=True)
class Adjustment:
    key: str
    before: float | str
    after: float | str
    rule: str

    def __str__(self) -> str:
        return f"{self.key}: {_shown(self.before)} becomes {_shown(self.after)} ({self.rule})"


def adjust(
    manifest: Manifest, world_size: int, nodes: int = 1
) -> tuple[dict[str, Any], tuple[Adjustment, ...], tuple[str, ...]]:
    """Parameters for so many processes, what was changed, and what somebody should know about it."""
    params = dict(manifest.training.params)
    scale = manifest.distributed.scale
    if world_size == 1:
        return params, (), ()
    adjusted: list[Adjustment] = []
    notices: list[str] = []
    if scale.batch_size == "divide":
        for key in (key for key in BATCH_SIZES if _positive(params.get(key), int)):
            before = params[key]
            params[key] = max(1, before // world_size)
            adjusted.append(Adjustment(key, before, params[key], f"divided by {world_size} processes"))
            if params[key] * world_size != before:
                notices.append(
                    f"{key} {before} is not a multiple of {world_size} processes: "
                    f"together they train with {params[key] * world_size}"
                )
    divided = bool(adjusted)
    if scale.learning_rate != "keep":
        factor = world_size if scale.learning_rate == "linear" else math.sqrt(world_size)
        rule = f"times {factor:.4g}, {scale.learning_rate} in {world_size} processes"
        for key in (key for key in LEARNING_RATES if _positive(params.get(key), (int, float))):
            before = params[key]
            params[key] = before * factor
            adjusted.append(Adjustment(key, before, params[key], rule))
            if divided:
                notices.append(
                    f"{key} is scaled although the batch of all processes together stays the same; "
                    "distributed.scale.batch_size: keep goes with it"
                )
    folder = params.get(OUTPUT)
    if nodes > 1 and scale.output_dir == "divert" and isinstance(folder, str) and folder:
        after = _diverted(folder, 1) + (f" to rank-{nodes - 1}" if nodes > 2 else "")
        adjusted.append(Adjustment(OUTPUT, folder, after, "on the other nodes: the first writes alone there"))
    return params, tuple(adjusted), tuple(notices)


def of_node(params: Mapping[str, Any], adjusted: Sequence[Adjustment], rank: int) -> dict[str, Any]:
    """What one node gets of the planned parameters."""
    own = dict(params)
    if rank and any(change.key == OUTPUT for change in adjusted):
        own[OUTPUT] = _diverted(own[OUTPUT], rank)
    return own


def _diverted(folder: str, rank: int) -> str:
    return f"{folder.rstrip('/')}/rank-{rank}"


def _shown(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.12g}"


def _positive(value: object, kind: type | tuple[type, ...]) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool) and value > 0  # type: ignore[operator]
