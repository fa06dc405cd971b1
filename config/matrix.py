"""A matrix of parameters as its cells, and their names. Pure.

Every combination of `matrix` that `exclude` does not match, in the order of the file, then those that
`include` adds. A cell's values become parameters of its job.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from trainforge.config.manifest_models import Strategy

Cell = dict[str, Any]
MAX_CELLS = 256
_MAX_COMBINATIONS = 100_000  # more are not looked at, however many of them are excluded
_PARAMS = "training.params."


def expand(strategy: Strategy) -> list[Cell]:
    """The cells, each once; empty where there is no matrix.

    Raises:
        ValueError: more than `MAX_CELLS`, or all are left out.
    """
    wanted = bool(strategy.matrix or strategy.include)
    if math.prod(len(values) for values in strategy.matrix.values()) > _MAX_COMBINATIONS:
        raise ValueError(f"makes more than {_MAX_COMBINATIONS} combinations, the most is {MAX_CELLS}")
    cells = list({cell_key(cell): cell for cell in _cells(strategy)}.values())
    if wanted and not cells:
        raise ValueError("exclude leaves none of its combinations")
    if len(cells) > MAX_CELLS:
        raise ValueError(f"makes {len(cells)} jobs, the most is {MAX_CELLS}")
    return cells


def _cells(strategy: Strategy) -> Iterator[Cell]:
    if strategy.matrix:
        for values in itertools.product(*strategy.matrix.values()):
            cell = dict(zip(strategy.matrix, values, strict=True))
            if not any(_matches(cell, out) for out in strategy.exclude):
                yield cell
    yield from (dict(cell) for cell in strategy.include if cell)


def _matches(cell: Cell, pattern: Mapping[str, Any]) -> bool:
    """1 and 1.0 are the same number, 1 and true are not."""
    return all(
        key in cell and cell[key] == value and isinstance(cell[key], bool) == isinstance(value, bool)
        for key, value in pattern.items()
    )


def cell_key(cell: Mapping[str, Any]) -> str:
    """The same for the same values in any order: the cell's part in the job's id."""
    return json.dumps(dict(cell), sort_keys=True, ensure_ascii=False) if cell else ""


def cell_name(cell: Mapping[str, Any]) -> str:
    """For people, such as `lr=0.1, depth=2`."""
    return ", ".join(f"{key}={_shown(value)}" for key, value in cell.items())


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def as_overrides(cell: Mapping[str, Any]) -> dict[str, Any]:
    """The cell as what is set anew in the manifest."""
    return {_PARAMS + key: value for key, value in cell.items()}
