"""From a matrix to its cells."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainforge.config.manifest import apply_overrides, parse_manifest
from trainforge.config.manifest_models import Strategy
from trainforge.config.matrix import MAX_CELLS, as_overrides, cell_key, cell_name, expand

VALUES = st.one_of(st.integers(-3, 3), st.sampled_from(["a", "b", ""]), st.booleans(), st.none())
NAMES = st.sampled_from(["lr", "depth", "seed", "opt.name"])
MATRICES = st.dictionaries(NAMES, st.lists(VALUES, min_size=1, max_size=4), max_size=4)
CELLS = st.lists(st.dictionaries(NAMES, VALUES, min_size=1, max_size=3), max_size=3)


def strategy(**keys: Any) -> Strategy:
    return Strategy.model_validate(keys)


def test_every_combination_but_the_excluded_and_those_added() -> None:
    cells = expand(
        strategy(
            matrix={"lr": [0.1, 0.01], "depth": [1, 2]},
            exclude=[{"lr": 0.1, "depth": 2}],
            include=[{"lr": 1.0, "depth": 9, "note": "far out"}],
        )
    )
    assert cells == [
        {"lr": 0.1, "depth": 1},
        {"lr": 0.01, "depth": 1},
        {"lr": 0.01, "depth": 2},
        {"lr": 1.0, "depth": 9, "note": "far out"},
    ]
    assert cell_name(cells[-1]) == "lr=1.0, depth=9, note=far out"


def test_without_a_matrix_there_are_no_cells() -> None:
    assert expand(strategy()) == []
    assert not cell_key({})


@given(MATRICES, CELLS, CELLS)
def test_cells_are_distinct_in_order_and_none_is_excluded(
    matrix: dict[str, Any], include: list[Any], exclude: list[Any]
) -> None:
    asked = strategy(matrix=matrix, include=include, exclude=exclude)
    try:
        cells = expand(asked)
    except ValueError as error:
        assert "exclude leaves none" in str(error)
        return
    keys = [cell_key(cell) for cell in cells]
    assert len(set(keys)) == len(keys)
    assert cells == expand(asked)
    added = [cell_key(cell) for cell in include]
    for cell in cells:
        if cell_key(cell) in added:
            continue
        assert list(cell) == list(matrix)
        assert not any(
            all(cell_key({k: cell.get(k)}) == cell_key({k: v}) and k in cell for k, v in out.items())
            for out in exclude
        )
    for cell in include:
        assert cell_key(cell) in keys


@given(st.permutations([("lr", 0.1), ("depth", 2), ("opt.name", "adam")]))
def test_the_key_does_not_depend_on_the_order(pairs: list[tuple[str, Any]]) -> None:
    assert cell_key(dict(pairs)) == cell_key({"lr": 0.1, "depth": 2, "opt.name": "adam"})


@pytest.mark.parametrize(("rows", "columns", "fits"), [(16, 16, True), (16, 17, False), (1, 256, True)])
def test_the_most_cells(rows: int, columns: int, fits: bool) -> None:
    asked = strategy(matrix={"a": list(range(rows)), "b": list(range(columns))})
    if fits:
        assert len(expand(asked)) == MAX_CELLS
    else:
        with pytest.raises(ValueError, match="makes 272 jobs, the most is 256"):
            expand(asked)


def test_a_cell_becomes_parameters() -> None:
    text = "project: {name: p}\ntraining: {script: t.py, params: {lr: 1, kept: true}}\n"
    manifest = apply_overrides(parse_manifest(text), as_overrides({"lr": 0.1, "opt.name": "adam"}))
    assert manifest.training.params == {"lr": 0.1, "kept": True, "opt.name": "adam"}
