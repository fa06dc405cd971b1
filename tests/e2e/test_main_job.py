"""The main job: a push trains over two executors with Accelerate, and the result comes back."""

from __future__ import annotations

import json

import pytest

from support.fleet import Fleet
from support.scripts import PROGRESS, manifest
from support.waiting import wait_for


def test_a_push_trains_over_two_executors_and_the_result_comes_back(fleet: Fleet) -> None:
    fleet.start_sender()
    fleet.add_executor("alpha")
    fleet.add_executor("beta")
    fleet.cli("init", "digits", "--template", "digits", cwd=fleet.root)
    project = fleet.root / "digits"
    said = fleet.git("push", "trainforge", "main", cwd=project)
    job = fleet.the_job()
    assert job[:8] in said, "the push itself names the job"

    detail = fleet.wait_ended(job)

    assert detail["state"] == "completed", detail
    nodes = detail["attempts"][-1]["nodes"]
    assert {node["executor_name"] for node in nodes} == {"alpha", "beta"}
    assert detail["metrics"]["val_accuracy"] > 0.95
    files = fleet.result("digits")
    folder = detail["result_path"]
    machine = json.loads(files[f"{folder}/result.json"])
    assert machine["outcome"] == "completed"
    assert b"epoch 8" in files[f"{folder}/logs/rank0.log"]
    assert any(path.startswith(f"{folder}/artifacts/") for path in files)
    assert json.loads(files[f"{folder}/metrics.json"])["val_accuracy"] > 0.95
    assert "latest/main/digits/metrics.json" in files
    front = files["README.md"].decode()
    assert job[:8] in front

    home = fleet.root / "home-again"
    fleet.cli("pull", job[:10], "--to", str(home), cwd=project)
    assert json.loads(next(home.rglob("metrics.json")).read_text())["val_accuracy"] > 0.95


@pytest.mark.parametrize("connection", ["pull", "push"])
def test_both_directions_of_dispatch_train(fleet: Fleet, connection: str) -> None:
    fleet.start_sender()
    fleet.add_executor("alpha", connection=connection)
    project = fleet.project("one", {"train.py": PROGRESS, "trainforge.yaml": manifest("one")})
    fleet.push(project)
    detail = fleet.wait_ended(fleet.the_job())
    assert detail["state"] == "completed", detail
    assert detail["metrics"]["accuracy"] == 1.0


def test_the_shape_of_the_job_does_not_change_what_it_learns(fleet: Fleet) -> None:
    """One node with two processes and two nodes with one each end at the same loss."""
    fleet.start_sender()
    fleet.add_executor("alpha")
    fleet.add_executor("beta")
    fleet.cli("init", "digits", "--template", "digits", cwd=fleet.root)
    project = fleet.root / "digits"
    losses = {}
    for count, (nodes, processes) in enumerate(((1, 2), (2, 1)), start=1):
        shape = ["--set", f"resources.nodes={nodes}", "--set", f"resources.processes_per_node={processes}"]
        fleet.cli("submit", str(project), *shape, "--set", "seed=7", cwd=project)
        detail = fleet.wait_ended(fleet.the_job(count))
        assert detail["state"] == "completed", detail
        losses[nodes, processes] = detail["metrics"]["loss"]
    assert losses[1, 2] == pytest.approx(losses[2, 1], rel=1e-6)


def test_executors_side_by_side_run_jobs_side_by_side(fleet: Fleet) -> None:
    fleet.start_sender()
    fleet.add_executor("alpha", isolation="process", max_jobs=2)
    meet = (
        "import os, pathlib, time\n"
        f"hall = pathlib.Path({str(fleet.signals)!r})\n"
        "(hall / os.environ['TRAINFORGE_JOB_ID']).touch()\n"
        "end = time.monotonic() + 60\n"
        "while len(list(hall.iterdir())) < 2:\n"
        "    assert time.monotonic() < end, 'alone'\n"
        "    time.sleep(0.05)\n"
    )
    for name in ("one", "two"):
        fleet.push(fleet.project(name, {"train.py": meet, "trainforge.yaml": manifest(name)}))
    wait_for("two jobs", lambda: len(fleet.jobs()) == 2, 30)
    for job in fleet.jobs():
        assert fleet.wait_ended(job["id"])["state"] == "completed"
