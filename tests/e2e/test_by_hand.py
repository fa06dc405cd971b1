"""The founding quickstart and the everyday commands, as a user types them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from support.fleet import Fleet
from support.scripts import PROGRESS, manifest
from support.waiting import wait_for


def test_the_founding_quickstart(fleet: Fleet) -> None:
    """init, submit ., submit . --workers 2, status, pull: in the founding order."""
    fleet.start_sender()
    fleet.add_executor("alpha")
    fleet.add_executor("beta")
    project = fleet.root / "quick"
    project.mkdir()
    fleet.cli("init", cwd=project)
    assert {"train.py", "trainforge.yaml"} <= {path.name for path in project.iterdir()}

    fleet.cli("submit", ".", cwd=project)
    first = fleet.the_job()
    assert fleet.wait_ended(first)["state"] == "completed", fleet.job(first)

    fleet.cli("submit", ".", "--workers", "2", cwd=project)
    second = fleet.the_job(2)
    detail = fleet.wait_ended(second)
    assert detail["state"] == "completed", detail
    assert len(detail["attempts"][-1]["nodes"]) == 2

    assert "completed" in fleet.cli("status", second, cwd=project).stdout
    fleet.cli("pull", second, cwd=project)
    assert any(second in str(path) for path in project.rglob("result.json"))


def test_submit_takes_a_dirty_tree_as_it_is_and_leaves_it_so(running: Fleet) -> None:
    project = running.project(
        "dirty", {"train.py": "raise SystemExit('old')\n", "trainforge.yaml": manifest("dirty")}
    )
    (project / "train.py").write_text(PROGRESS)
    (project / "new.txt").write_text("untracked")
    before = (
        running.git("status", "--porcelain", cwd=project),
        running.git("rev-parse", "HEAD", cwd=project),
    )
    running.cli("submit", cwd=project)
    job = running.the_job()
    assert running.wait_ended(job)["state"] == "completed", running.job(job)
    after = (running.git("status", "--porcelain", cwd=project), running.git("rev-parse", "HEAD", cwd=project))
    assert before == after
    assert running.git("branch", "--list", cwd=project).split() == ["*", "main"]


def test_logs_follow_to_the_end_and_json_is_machine_readable(running: Fleet) -> None:
    project = running.project("logs", {"train.py": PROGRESS, "trainforge.yaml": manifest("logs")})
    running.push(project)
    job = running.the_job()
    followed = running.cli("logs", job, "-f")
    assert "Training complete!" in followed.stdout
    assert followed.stdout.count("Epoch 3/5: training...") == 1
    listed = json.loads(running.cli("status", "--json").stdout)
    assert [entry["id"] for entry in listed["jobs"]] == [job]
    one = json.loads(running.cli("status", job[:6], "--json").stdout)
    assert one["id"] == job
    missing = running.cli("status", "zzzzzz", check=False)
    assert missing.returncode == 5
    assert "Traceback" not in missing.stderr


def test_retry_is_a_new_job_that_names_the_old_one(running: Fleet) -> None:
    flag = running.signals / "flag"
    script = f"import pathlib, sys\nsys.exit(0 if pathlib.Path({str(flag)!r}).exists() else 3)\n"
    project = running.project("again", {"train.py": script, "trainforge.yaml": manifest("again")})
    running.push(project)
    first = running.the_job()
    assert running.wait_ended(first)["state"] == "failed"
    flag.touch()
    running.cli("retry", first)
    second = running.the_job(2)
    detail = running.wait_ended(second)
    assert detail["state"] == "completed", detail
    assert detail["rerun_of"] == first


def test_an_executor_is_joined_once_per_token_and_reports_its_state(running: Fleet) -> None:
    token = running.api("POST", "/api/join-tokens")["token"]
    running.join("beta", token)
    again = running.join("gamma", token, check=False)
    assert again.returncode == 4
    assert "token" in again.stderr
    where = {"data_dir": running.root / "alpha", "name": "alpha"}
    assert "alpha" in running.cli("executor", "status", settings=where).stdout


def test_a_tunnel_command_publishes_the_executors_address(fleet: Fleet) -> None:
    """Any program that prints a URL will do; this one forwards real connections."""
    fleet.start_sender()
    forward = Path(__file__).parents[1] / "support" / "forward.py"
    fleet.add_executor(
        "alpha", connection="push", tunnel="command", tunnel_command=f"{sys.executable} {forward} {{port}}"
    )
    seen = wait_for(
        "published address",
        lambda: next((e for e in fleet.api("GET", "/api/executors")["executors"] if e["endpoint"]), None),
        30,
        fleet.logs,
    )
    published = json.loads(next((fleet.root / "alpha").rglob("config.json")).read_text())
    assert published["public_url"].rstrip("/") == seen["endpoint"].rstrip("/")
    fleet.push(fleet.project("far", {"train.py": PROGRESS, "trainforge.yaml": manifest("far")}))
    assert fleet.wait_ended(fleet.the_job())["state"] == "completed"


def test_the_demo_does_the_whole_job_and_leaves_nothing(fleet: Fleet) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "trainforge", "demo"],
        env=fleet.environment() | {"TMPDIR": str(fleet.root)},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        cwd=fleet.root,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "result.json" in done.stdout
    assert "accuracy" in done.stdout
    assert fleet.left_behind() == {}
    assert {path.name for path in fleet.root.iterdir()} <= {"home", "signals"}
