"""Nodes from their first order to their last: real git, real processes, real HTTP."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.sender_double import SenderDouble
from support.executors import Project, ended, forgotten, joined, running

PLAIN = """\
import json, os
from pathlib import Path
print("hello from", os.environ["TRAINFORGE_JOB_ID"])
for epoch in range(1, 4):
    print(f"PROGRESS: {json.dumps({'epoch': epoch, 'loss': 1 / epoch, 'accuracy': epoch / 5})}")
with open(os.environ["TRAINFORGE_METRICS_FILE"], "a") as file:
    file.write('{"step": 3, "val_loss": 0.25}\\n')
print(json.load(open(os.environ["TRAINFORGE_PARAMS_FILE"])))
Path(os.environ["TRAINFORGE_OUTPUT_DIR"], "model.bin").write_bytes(b"weights")
Path("outputs").mkdir()
Path("outputs/report.txt").write_text("fine")
"""
FOUNDING = "project: {name: test}\ntraining: {script: train.py}\nresources: {memory: 16Mi}\n"




def test_a_node_trains_and_publishes(double: SenderDouble, tmp_path: Path) -> None:
    project = Project(tmp_path, {"trainforge.yaml": FOUNDING, "train.py": PLAIN})
    chosen, executor = joined(double, tmp_path / "laptop")
    with running(chosen):
        (node,) = double.run(project.job(), [executor], project.order(params={"batch_size": 8}))
        forgotten(chosen, node)
    end = node.last("ended")
    assert (end["exit_code"], end["code"], end["world_size"]) == (0, "", 1)
    assert node.phases() == [
        "checkout", "environment", "data", "ready", "training", "collecting", "publishing",
    ]  # fmt: skip
    assert "hello from " + node.key.job in node.text(0)
    assert "{'batch_size': 8}" in node.text(0)
    metrics = node.data("metric")
    assert [metric["epoch"] for metric in metrics if metric["epoch"]] == [1.0, 2.0, 3.0]
    assert [metric for metric in metrics if metric["step"] == 3][0]["values"] == {"val_loss": 0.25}
    folder = node.last("published")["path"]
    results = project.results()
    assert json.loads(results[f"{folder}/result.json"])["outcome"] == "completed"
    assert results[f"{folder}/artifacts/model.bin"] == "weights"
    assert results[f"{folder}/artifacts/outputs/report.txt"] == "fine"
    assert {"README.md"} <= results.keys()
