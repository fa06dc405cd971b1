"""The helpers for training scripts where TrainForge is not installed, and the templates that need none."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from trainforge import training
from trainforge.commands.init import write_template
from trainforge.executor.metrics import from_json, from_line

BARE = [sys.executable, "-I", "-S"]  # no site-packages: neither TrainForge nor torch


def run_bare(folder: Path, script: str, **variables: str) -> str:
    """Run a script beside a copy of training.py, with the standard library alone."""
    shutil.copy(training.__file__, folder / "training.py")
    (folder / "script.py").write_text(f"import sys; sys.path.insert(0, {str(folder)!r})\n{script}")
    done = subprocess.run(
        [*BARE, str(folder / "script.py")],
        env=variables,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_helpers_need_no_trainforge(tmp_path: Path) -> None:
    script = (
        "import importlib.util, training\n"
        "assert importlib.util.find_spec('trainforge') is None\n"
        "assert not training.is_distributed_training() and training.should_save_outputs()\n"
        "training.print_distributed_info()\n"
        "print(training.load_params({'lr': 1}), training.resume_from(), training.output_dir())\n"
    )
    said = run_bare(tmp_path, script)
    assert said.splitlines() == ["process 0 of 1 on node 0 of 1", "{'lr': 1} None outputs"]


def test_the_helpers_read_what_a_job_sees(tmp_path: Path) -> None:
    (tmp_path / "params.json").write_text('{"lr": 2}')
    script = (
        "import training\n"
        "assert training.is_distributed_training() and not training.should_save_outputs()\n"
        "training.print_distributed_info(); training.log_metrics(loss=1)\n"
        "print(training.load_params({'lr': 1, 'b': 3}), training.resume_from())\n"
    )
    said = run_bare(
        tmp_path,
        script,
        RANK="1",
        WORLD_SIZE="4",
        MASTER_ADDR="10.0.0.1",
        MASTER_PORT="29500",
        TRAINFORGE_NODE_RANK="1",
        TRAINFORGE_NODES="2",
        TRAINFORGE_PARAMS_FILE=str(tmp_path / "params.json"),
        TRAINFORGE_RESUME_FROM="/c/1",
    )
    assert "process 1 of 4 on node 1 of 2, meeting at 10.0.0.1:29500" in said
    assert "{'lr': 2, 'b': 3} /c/1" in said
    assert "PROGRESS" not in said


def test_metrics_are_read_back_by_the_executor_from_file_and_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("RANK", "TRAINFORGE_METRICS_FILE"):
        monkeypatch.delenv(name, raising=False)
    training.log_metrics({"loss": 0.5, "bad": float("nan")}, step=3, epoch=1)
    printed = from_line(capsys.readouterr().out, rank=0)
    monkeypatch.setenv("TRAINFORGE_METRICS_FILE", str(tmp_path / "metrics.jsonl"))
    training.log_metrics({"loss": 0.5, "bad": float("nan")}, step=3, epoch=1)
    written = from_json((tmp_path / "metrics.jsonl").read_text(), rank=0)
    assert printed == written
    assert written is not None
    assert (written.step, written.epoch, written.values) == (3, 1.0, {"loss": 0.5, "bad": None})


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    write_template(tmp_path / "digits", "digits", "digits")
    return tmp_path / "digits"


def last_epoch(output: str) -> dict[str, float]:
    line = [line for line in output.splitlines() if line.startswith("epoch ")][-1]
    return {name: float(value) for name, value in re.findall(r"(\w+) ([\d.e+-]+)", line)}


def run_script(folder: Path, *launcher: str, **variables: str) -> str:
    done = subprocess.run(
        [sys.executable, *launcher, "train.py"],
        cwd=folder,
        env={"PATH": str(Path(sys.executable).parent), "OMP_NUM_THREADS": "1", "HOME": str(folder)}
        | variables,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_digits_are_learned_by_hand_and_alike_by_two_processes(digits: Path) -> None:
    """What TrainForge's planner does for two processes, halving the batch, changes nothing in the result."""
    alone = last_epoch(run_script(digits))
    assert alone["epoch"] == 8
    assert alone["val_accuracy"] > 0.95
    assert (digits / "outputs" / "model.safetensors").stat().st_size > 10_000

    (digits / "params.json").write_text(json.dumps({"batch_size": 16}))
    metrics = digits / "metrics.jsonl"
    together = last_epoch(
        run_script(
            digits,
            "-m",
            "torch.distributed.run",
            "--nproc-per-node=2",
            "--standalone",
            TRAINFORGE_PARAMS_FILE=str(digits / "params.json"),
            TRAINFORGE_METRICS_FILE=str(metrics),
            TRAINFORGE_OUTPUT_DIR=str(digits / "collected"),
        )
    )
    assert together["val_loss"] == pytest.approx(alone["val_loss"], rel=0.02)
    assert together["val_accuracy"] > 0.95
    reported = [from_json(line, 0) for line in metrics.read_text().splitlines()]
    assert [point.epoch for point in reported if point] == list(range(1, 9))
    assert [path.name for path in (digits / "collected").iterdir()] == ["model.safetensors"]


def test_the_minimal_template_runs_by_hand(tmp_path: Path) -> None:
    write_template(tmp_path / "m", "minimal", "m")
    output = run_script(tmp_path / "m")
    points = [from_line(line, 0) for line in output.splitlines() if line.startswith("PROGRESS:")]
    losses = [point.values["loss"] for point in points if point]
    assert len(losses) == 5
    assert losses[-1] < losses[0]  # type: ignore[operator]
    assert (tmp_path / "m" / "outputs" / "model.pt").is_file()


def test_accelerate_reports_to_the_job_as_to_any_tracker(tmp_path: Path) -> None:
    script = (
        "from accelerate import Accelerator\n"
        "from trainforge.training import trainforge_tracker\n"
        "accelerator = Accelerator(cpu=True, log_with=trainforge_tracker())\n"
        "accelerator.init_trackers('any', config={'lr': 0.1})\n"
        "accelerator.log({'loss': 0.5}, step=3)\n"
        "accelerator.end_training()\n"
    )
    (tmp_path / "train.py").write_text(script)
    metrics = tmp_path / "metrics.jsonl"
    env = {"PATH": os.environ["PATH"], "TRAINFORGE_METRICS_FILE": str(metrics)}
    done = subprocess.run(
        [sys.executable, "train.py"], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(metrics.read_text()) == {"loss": 0.5, "step": 3}
