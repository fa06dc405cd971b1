"""What is kept for later jobs goes when room is needed, the oldest first, and never under a job."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from support.executors import settings
from support.files import serving_files
from support.jobs import Job
from trainforge.cli import cli
from trainforge.config.errors import NodeFailed
from trainforge.executor import budget
from trainforge.executor.budget import Entry
from trainforge.executor.capabilities import own_capabilities
from trainforge.executor.commands import Interrupted
from trainforge.executor.housekeeping import Housekeeper, clean

MB = 10**6


def entry(root: Path, kind: str, name: str, *, age: float, size: int = MB) -> Path:
    path = root / budget.KINDS[kind] / name
    path.mkdir(parents=True)
    (path / "content").write_bytes(os.urandom(size))
    os.utime(path, (time.time() - age,) * 2)
    return path


def node(root: Path, name: str, *entries: Path) -> Path:
    folder = root / "nodes" / f"{name}.1.0"
    folder.mkdir(parents=True)
    for each in entries:
        budget.lease(folder, each)
    return folder


def keeper(root: Path, **changes: Any) -> Housekeeper:
    root.mkdir(exist_ok=True)
    return Housekeeper(settings(root, disk_low=0, **changes))


@given(
    st.lists(st.tuples(st.floats(0, 9), st.integers(0, 9)), max_size=9),
    st.sets(st.integers(0, 8)),
    st.integers(0, 50),
)
def test_what_is_chosen(about: list[tuple[float, int]], held: set[int], need: int) -> None:
    found = [Entry("data", Path(f"/{number}"), used, size) for number, (used, size) in enumerate(about)]
    kept = {Path(f"/{number}") for number in held}
    chosen = budget.choose(found, kept, need)
    free = sorted((one for one in found if one.path not in kept), key=lambda one: (one.used, str(one.path)))
    assert chosen == free[: len(chosen)]  # the oldest, none that is held
    assert sum(one.size for one in chosen) >= need or len(chosen) == len(free)
    assert not chosen or sum(one.size for one in chosen[:-1]) < need  # and no more than it takes


def test_the_least_recently_used_goes_within_the_budget(tmp_path: Path) -> None:
    old = entry(tmp_path, "data", "old", age=300)
    used = entry(tmp_path, "environments", "used", age=400)
    held = entry(tmp_path, "mirrors", "held.git", age=500)
    new = entry(tmp_path, "data", "new", age=100)
    node(tmp_path, "job", held)
    with budget.locked(used, lambda: None):
        pass  # a use counts from now
    assert keeper(tmp_path, disk_budget_gb=0.0035).refusal() == ""
    assert [path.exists() for path in (old, used, held, new)] == [False, True, True, True]
    assert keeper(tmp_path, disk_budget_gb=0.0015).refusal() == ""
    assert [path.exists() for path in (old, used, held, new)] == [False, False, True, False]


def test_work_is_refused_when_nothing_more_can_go(tmp_path: Path) -> None:
    held = entry(tmp_path, "data", "held", age=10, size=3 * MB)
    node(tmp_path, "job", held)
    refused = keeper(tmp_path, disk_budget_gb=0.001)
    assert "disk_budget_gb is 0.001" in refused.refusal()
    assert "disk_budget_gb" in own_capabilities(refused.settings).closed
    with pytest.raises(NodeFailed, match=r"train\.csv of 5\.0 MB"):
        refused.make_room(5 * MB, "train.csv")
    (tmp_path / "nodes" / "job.1.0" / budget.LEASES).unlink()
    assert refused.refusal() == ""
    assert not own_capabilities(refused.settings).closed
    assert not held.exists()


def test_a_low_disk_makes_room_before_it_refuses(tmp_path: Path) -> None:
    free = os.statvfs(tmp_path)
    old = entry(tmp_path, "data", "old", age=10)
    low = Housekeeper(settings(tmp_path, disk_low=free.f_bavail * free.f_frsize * 2))
    assert "its disk is low" in low.refusal()
    assert not old.exists()


def _hold(path: Path, held: Any, done: Any) -> None:
    with budget.locked(path, lambda: None):
        held.set()
        done.wait(30)


def test_what_another_process_makes_is_left_alone(tmp_path: Path) -> None:
    path = entry(tmp_path, "environments", "made", age=1000)
    half = path.with_name(".made.0a1b2c3d")
    half.mkdir()
    context = multiprocessing.get_context("fork")
    held, done = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(path, held, done))
    process.start()
    try:
        assert held.wait(30)
        freed = clean(tmp_path)
        assert ([one.path for one, _ in freed.in_use], freed.removed) == ([path], [])
        assert half.exists()
    finally:
        done.set()
        process.join(30)
    assert {one.path for one in clean(tmp_path).removed} == {path, half}
    assert not path.exists()
    assert not half.exists()


def test_read_only_data_go_too_and_a_part_that_nobody_fetches(tmp_path: Path) -> None:
    with serving_files() as server:
        server.files["/x"], server.stops["/x"] = b"x" * 3_000_000, [1_000_000, 0, 0, 0, 0, 0]
        entry_ = {"url": f"{server.url}/x", "sha256": "0" * 64}
        job = Job(tmp_path, stopping=lambda: len(server.asked) > 1)
        with pytest.raises(Interrupted):
            job.get(entry_)
        server.stops.clear()
        Job(tmp_path, "b").get({"url": f"file://{__file__}", "path": "y"})
    assert {one.name for one in budget.entries(tmp_path)} == {"a download under way", "y"}
    budget.discard(tmp_path / "nodes" / "b.1.0")
    assert len(clean(tmp_path, older_than=3600).removed) == 0
    assert len(clean(tmp_path, dry_run=True).removed) == 2
    assert len(clean(tmp_path).removed) == 2
    assert budget.entries(tmp_path) == []


def test_the_command_says_what_goes_and_what_stays(tmp_path: Path) -> None:
    entry(tmp_path, "data", "old", age=90_000, size=2 * MB)
    held = entry(tmp_path, "environments", "held", age=90_000)
    node(tmp_path, "4wq7abcdefgh", held)
    run = lambda *arguments: CliRunner().invoke(  # noqa: E731
        cli, ["executor", "clean", "--data-dir", str(tmp_path), *arguments], catch_exceptions=False
    )
    said = run("--dry-run").output
    assert "would go  data" in said
    assert "1 d ago" in said
    assert "job 4wq7abcd" in said
    assert "would free 2." in said
    about = json.loads(run("--json").output)
    assert [(one["kind"], one["name"]) for one in about["removed"]] == [("data", "old")]
    assert [(one["kind"], one["jobs"]) for one in about["in_use"]] == [("environments", ["4wq7abcdefgh"])]
    assert about["freed_bytes"] >= 2 * MB
    assert run("--older-than", "soon").exit_code == 2
    assert "freed 0.0 MB" in run().output
