"""kill -9 of the executor at the worst moments: training goes on, nothing is double, one result comes out."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest

from support.executors import Project, Start, ended, forgotten, git, joined, signals, story
from support.scripts import UNTIL_TOLD
from support.sender_double import NodeState, SenderDouble
from support.waiting import wait_for

MANIFEST = "project: {name: test}\ntraining: {script: train.py, launcher: python}\n"
COUNTING = """\
import os, sys, time
for number in range(40):
    print("line", number, flush=True)
    time.sleep(0.05)
print("PROGRESS:", '{"done": 1}')
"""


def numbers(node: NodeState) -> list[int]:
    return [int(line.split()[1]) for line in node.text(0).splitlines() if line.startswith("line ")]


def test_training_survives_its_executor(double: SenderDouble, tmp_path: Path, start: Start) -> None:
    go_on = signals(tmp_path) / "go-on"
    project = Project(
        tmp_path, {"trainforge.yaml": MANIFEST, "train.py": UNTIL_TOLD.format(go_on=str(go_on))}
    )
    chosen, executor = joined(double, tmp_path / "laptop")
    program = start(chosen)
    (node,) = double.run(project.job(), [executor], project.order())
    wait_for("training", lambda: "training has begun" in node.text(0), 60, lambda: story(node))
    program.kill()
    program.wait()
    go_on.touch()  # it ends while nobody looks
    exit_record = chosen.data_dir / "nodes" / str(node.key) / "run" / "exit.json"
    wait_for("the training's own end", exit_record.exists)
    assert "training is over" not in node.text(0)
    start(chosen)
    forgotten(chosen, node)
    assert node.last("ended")["code"] == ""
    assert node.text(0).splitlines().count("training is over") == 1
    assert len(node.data("started")) == 1
    assert "trained" in "".join(project.results().values())


def test_no_line_is_lost_or_double_over_many_kills(
    double: SenderDouble, tmp_path: Path, start: Start
) -> None:
    project = Project(tmp_path, {"trainforge.yaml": MANIFEST, "train.py": COUNTING})
    chosen, executor = joined(double, tmp_path / "laptop")
    program = start(chosen)
    (node,) = double.run(project.job(), [executor], project.order())
    for reached in (5, 15, 30):
        wait_for(
            f"line {reached}", lambda reached=reached: len(numbers(node)) > reached, 60, lambda: story(node)
        )
        program.kill()
        program.wait()
        program = start(chosen)
    forgotten(chosen, node)
    assert numbers(node) == list(range(40))
    assert [data["values"] for data in node.data("metric")] == [{"done": 1}]


@pytest.mark.parametrize(
    "point", ["26.executor.launch", "29.executor.gather", "31.executor.push", "32.executor.pushed"]
)
def test_killed_at_a_point_there_is_one_result(
    double: SenderDouble, tmp_path: Path, start: Start, point: str
) -> None:
    script = f"open({str(tmp_path / 'ran')!r}, 'a').write('x')\nprint('line 0')\n"
    project = Project(tmp_path, {"trainforge.yaml": MANIFEST, "train.py": script})
    chosen, executor = joined(double, tmp_path / "laptop", isolation="process")  # it notes that it ran
    program = start(chosen, TRAINFORGE_FAILPOINT=f"{point}:kill")
    (node,) = double.run(project.job(), [executor], project.order())
    assert program.wait(60) == -signal.SIGKILL
    start(chosen)
    forgotten(chosen, node)
    assert (tmp_path / "ran").read_text() == "x"  # the training itself ran once
    log = git("log", "--format=%s", "trainforge-results", cwd=project.bare).splitlines()
    assert len(log) == 1
    assert numbers(node) == [0]


def test_sigterm_leaves_the_training_alone(double: SenderDouble, tmp_path: Path, start: Start) -> None:
    go_on = signals(tmp_path) / "go-on"
    project = Project(
        tmp_path, {"trainforge.yaml": MANIFEST, "train.py": UNTIL_TOLD.format(go_on=str(go_on))}
    )
    chosen, executor = joined(double, tmp_path / "laptop")
    program = start(chosen)
    (node,) = double.run(project.job(), [executor], project.order())
    wait_for("training", lambda: "training has begun" in node.text(0), 60, lambda: story(node))
    program.send_signal(signal.SIGTERM)
    assert program.wait(60) == 0
    assert not (chosen.data_dir / "nodes" / str(node.key) / "run" / "exit.json").exists()
    start(chosen)
    go_on.touch()
    assert ended(node)["code"] == ""


def test_a_second_agent_is_refused(double: SenderDouble, tmp_path: Path, start: Start) -> None:
    chosen, _ = joined(double, tmp_path / "laptop")
    start(chosen)
    wait_for("heartbeat", lambda: double.heartbeats)
    second: subprocess.Popen[bytes] = start(chosen)
    assert second.wait(60) != 0
    assert "already runs in" in (tmp_path / "executor.log").read_text()
