"""The clock is set two hours forward or back: nobody is lost by it, and nobody is waited for longer."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from support.core import Core, serving
from trainforge.sender import schema as s
from trainforge.sender.clock import Jumps

TWO_HOURS = 7200.0


@pytest.fixture
def core(tmp_path: Path) -> Iterator[Core]:
    with serving(tmp_path, lost_after=60) as core:
        yield core


def _running(core: Core, folder: Path) -> str:
    executor = core.executor("alpha")
    job = core.push_job(folder)
    node = executor.take("run").node
    executor.journal(node, ("ready", {}), ("started", {"argv": [], "processes": 1, "pid": 7}))
    core.wait_state(job, "running")
    return job


def _node(core: Core) -> Any:
    with core.sender.store.read() as c:
        return c.execute(sa.select(s.nodes)).mappings().one()


@pytest.mark.parametrize("jump", [TWO_HOURS, -TWO_HOURS])
def test_a_jump_moves_leases_along(core: Core, tmp_path: Path, jump: float) -> None:
    _running(core, tmp_path)
    moment, ran = [time.time()], [0.0]
    jumps = Jumps(core.sender, wall=lambda: moment[0], steady=lambda: ran[0])
    left = _node(core)["lease_until"] - moment[0]
    moment[0] += jump
    core.sender.clock = lambda: moment[0]
    jumps.settle()
    now_left = _node(core)["lease_until"] - moment[0]
    assert now_left == pytest.approx(left, abs=0.1) if jump > 0 else left - 1 < now_left <= 90
    assert _node(core)["created"] <= moment[0]


def test_time_that_passed_moves_nothing(core: Core, tmp_path: Path) -> None:
    _running(core, tmp_path)
    moment, ran = [time.time()], [0.0]
    jumps = Jumps(core.sender, wall=lambda: moment[0], steady=lambda: ran[0])
    before = _node(core)["lease_until"]
    for _ in range(100):
        moment[0] += 60.05  # a clock that is slowly corrected
        ran[0] += 60.0
        jumps.settle()
    assert _node(core)["lease_until"] == before


def test_a_start_gives_every_lease_its_time_again(core: Core, tmp_path: Path) -> None:
    _running(core, tmp_path)
    away = 3600.0
    core.sender.clock = lambda: time.time() + away
    Jumps(core.sender).begin()
    assert _node(core)["lease_until"] > core.sender.now() + 80
