"""Every numbered fault in the real programs, in the way that says most; `make kill-matrix` has all ways."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from kill_matrix.random_kills import LOST_AFTER_S, Run
from kill_matrix.scenarios import SLOW, run, telling_cases
from kill_matrix.world import World

from support.waiting import wait_for
from trainforge.config.failpoints import POINTS, Failpoint

DOCUMENT = Path(__file__).parents[2] / "docs" / "reliability.md"


class Worlds:
    """One fleet for many cases; after one that failed, another."""

    def __init__(self, root: Path) -> None:
        self._root, self._number = root, 0
        self._world: World | None = None

    def get(self) -> World:
        if self._world is None:
            self._number += 1
            self._world = World(self._root / str(self._number))
        return self._world

    def discard(self) -> None:
        if self._world is not None:
            self._world.close()
        self._world = None

    def close(self) -> None:
        world = self._world
        if world is not None:
            try:
                wait_for(
                    "end of every training", lambda: not world.orphans(), 20, lambda: str(world.orphans())
                )
            finally:
                self.discard()


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worlds]:
    worlds = Worlds(tmp_path_factory.mktemp("matrix"))
    yield worlds
    worlds.close()


@pytest.mark.parametrize(("point", "action"), telling_cases())
def test_what_must_come_of_a_fault(worlds: Worlds, point: Failpoint, action: str) -> None:
    try:
        run(worlds.get(), point, action)
    except BaseException:
        worlds.discard()
        raise


def test_nothing_is_lost_or_doubled_over_random_kills(tmp_path: Path) -> None:
    world = World(tmp_path / "world", lost_after=LOST_AFTER_S)
    try:
        figures = Run(world, seed=4, kills=10).go()
    finally:
        world.close()
    assert "10 kills" in figures


def test_every_fault_has_a_point_a_case_and_a_row() -> None:
    assert {int(point[:2]) for point in POINTS} == set(range(1, 53))
    assert {point for point, _ in telling_cases()} | SLOW == set(POINTS)
    rows = re.findall(r"^\| (\d+) \|.*$", DOCUMENT.read_text(), re.MULTILINE)
    assert list(map(int, rows)) == list(range(1, 53))
    named = set(re.findall(r"`(\d\d\.[a-z]+\.[a-z_]+)`", DOCUMENT.read_text()))
    assert named == set(POINTS)
