"""Several jobs that mind each other: matrices, concurrency groups, tries, limits and priorities."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

from support.fleet import ENDED, Fleet
from support.scripts import manifest
from support.waiting import wait_for

MATRIX = "strategy: {{matrix: {{lr: [0.1, 0.01], depth: [1, 2]}}, exclude: [{{lr: 0.1, depth: 2}}]{more}}}\n"
SHOW = """\
import json, os
params = json.load(open(os.environ["TRAINFORGE_PARAMS_FILE"]))
print("PROGRESS: " + json.dumps({"product": params["lr"] * params["depth"], "kept": params["kept"]}))
"""
# Ends when the test has made the file named after the cell; says by a file of its own that it runs.
GATED = """\
import json, os, pathlib, time
params = json.load(open(os.environ["TRAINFORGE_PARAMS_FILE"]))
name = str(params.get("n", "one"))
hall = pathlib.Path({hall!r})
(hall / f"runs-{{name}}-{{os.environ['TRAINFORGE_ATTEMPT']}}").touch()
end = time.monotonic() + 100
while not (hall / f"end-{{name}}").exists():
    assert time.monotonic() < end, "nobody said go on"
    time.sleep(0.05)
if (hall / f"end-{{name}}").read_text():
    raise SystemExit("told to fail")
"""


class Hall:
    """Where the test and the trainings leave each other signs."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.folder = fleet.signals
        self.script = GATED.format(hall=str(self.folder))

    def running(self) -> set[str]:
        return {path.name.removeprefix("runs-") for path in self.folder.glob("runs-*")}

    def wait_running(self, *names: str, timeout: float = 40) -> None:
        wait_for(f"{names} to run", lambda: set(names) <= self.running(), timeout, self.fleet.logs)

    def end(self, name: str, *, fail: bool = False) -> None:
        (self.folder / f"end-{name}").write_text("x" if fail else "")

    def push(self, name: str, more: str) -> None:
        files = {"train.py": self.script, "trainforge.yaml": manifest(name, more=more)}
        project = self.fleet.root / name
        if project.exists():
            self.fleet.commit(project, files)
        else:
            project = self.fleet.project(name, files)
        self.fleet.push(project)


def jobs(fleet: Fleet, count: int) -> list[dict[str, Any]]:
    """So many jobs, oldest first."""
    wait_for(f"{count} jobs", lambda: len(fleet.jobs()) == count, 30, fleet.logs)
    return sorted(fleet.jobs(), key=lambda job: job["created"])


def waiting(fleet: Fleet, job: str, key: str) -> str:
    words: str = wait_for(f"reason {key}", lambda: fleet.job(job)["waiting"].get(key), 30, fleet.logs)
    return words


def test_each_cell_of_a_matrix_is_a_job_with_parameters_and_a_result_of_its_own(fleet: Fleet) -> None:
    fleet.start_sender()
    fleet.add_executor("alpha", isolation="process", max_jobs=3)
    text = manifest("sweep", more=MATRIX.format(more=""))
    text = text.replace("launcher: python", "launcher: python, params: {lr: 9, kept: 7}")
    said = fleet.push(fleet.project("sweep", {"train.py": SHOW, "trainforge.yaml": text}))
    assert "lr=0.01, depth=2" in said
    ended = [fleet.wait_ended(job["id"]) for job in jobs(fleet, 3)]
    assert {job["state"] for job in ended} == {"completed"}
    assert [(job["cell"], job["metrics"]["product"], job["metrics"]["kept"]) for job in ended] == [
        ({"lr": 0.1, "depth": 1}, 0.1, 7),
        ({"lr": 0.01, "depth": 1}, 0.01, 7),
        ({"lr": 0.01, "depth": 2}, 0.02, 7),
    ]
    files = fleet.result("sweep")
    for job in ended:
        machine = json.loads(files[f"{job['result_path']}/result.json"])
        assert machine["cell"] == job["cell"]
        assert machine["params"] == job["cell"] | {"kept": 7}
    (index,) = [text for path, text in files.items() if path.startswith("index/") and path.endswith(".csv")]
    rows = list(csv.DictReader(io.StringIO(index.decode())))
    assert sorted(row["cell"] for row in rows) == ["lr=0.01, depth=1", "lr=0.01, depth=2", "lr=0.1, depth=1"]
    assert "sweep (lr=0.01, depth=2)" in fleet.cli("status").stdout


def test_submitting_a_matrix_shows_and_follows_all_its_jobs(fleet: Fleet) -> None:
    fleet.start_sender()
    fleet.add_executor("alpha", isolation="process", max_jobs=2)
    script = 'import json, os, sys\nsys.exit(json.load(open(os.environ["TRAINFORGE_PARAMS_FILE"]))["code"])\n'
    text = manifest("sweep", more="strategy: {matrix: {code: [0, 3]}, fail_fast: false}\n")
    project = fleet.project("sweep", {"train.py": script, "trainforge.yaml": text})
    assert "2 times with other parameters" in fleet.cli("validate", cwd=project).stdout
    done = fleet.cli("submit", "--follow", cwd=project, check=False)
    assert done.returncode == 1, done.stdout
    assert "sweep (code=0)" in done.stdout
    assert "sweep (code=3)" in done.stdout
    assert [job["state"] for job in jobs(fleet, 2)] == ["completed", "failed"]


def test_the_first_failure_stops_the_others_of_its_matrix(fleet: Fleet) -> None:
    fleet.start_sender()
    fleet.add_executor("alpha", isolation="process", max_jobs=2)
    hall = Hall(fleet)
    hall.push("sweep", "strategy: {matrix: {n: [1, 2, 3]}}\ntimeout: {grace: 1s}\n")
    first, second, third = jobs(fleet, 3)
    hall.wait_running("1-1", "2-1")
    hall.end("1", fail=True)
    assert fleet.wait_ended(first["id"])["state"] == "failed"
    for job in (second, third):
        detail = fleet.wait_ended(job["id"])
        assert (detail["state"], detail["code"]) == ("cancelled", "matrix_failed"), detail
        assert detail["reason"] == f"job {first['id'][:8]} (n=1) of the same matrix failed"
    assert "3-1" not in hall.running()


def test_no_more_than_max_parallel_run_and_the_next_says_whom_it_waits_for(fleet: Fleet) -> None:
    fleet.start_sender()
    fleet.add_executor("alpha", isolation="process", max_jobs=3)
    hall = Hall(fleet)
    hall.push("sweep", "strategy: {matrix: {n: [1, 2, 3]}, max_parallel: 1, fail_fast: false}\n")
    first, second, third = jobs(fleet, 3)
    hall.wait_running("1-1")
    for job in (second, third):
        assert (
            waiting(fleet, job["id"], "matrix") == f"job {first['id'][:8]} (n=1) runs, and max_parallel is 1"
        )
    hall.end("1", fail=True)
    hall.wait_running("2-1")
    assert "3-1" not in hall.running()
    assert waiting(fleet, third["id"], "matrix").startswith(f"job {second['id'][:8]} (n=2) runs")
    hall.end("2")
    hall.wait_running("3-1")
    hall.end("3")
    states = [fleet.wait_ended(job["id"])["state"] for job in (first, second, third)]
    assert states == ["failed", "completed", "completed"]


def test_the_jobs_of_a_group_run_one_after_the_other(fleet: Fleet) -> None:
    fleet.start_sender()
    fleet.add_executor("alpha", isolation="process", max_jobs=3)
    hall = Hall(fleet)
    more = "concurrency: {{group: nightly}}\nseed: {seed}\n"
    hall.push("one", more.format(seed=1))
    hall.wait_running("one-1")
    hall.push("one", more.format(seed=2))
    first, second = jobs(fleet, 2)
    assert waiting(fleet, second["id"], "concurrency") == (
        f"job {first['id'][:8]} of the group nightly goes first"
    )
    assert fleet.job(second["id"])["attempt"] == 0
    hall.end("one")
    assert fleet.wait_ended(first["id"])["state"] == "completed"
    assert fleet.wait_ended(second["id"])["state"] == "completed"


def test_a_newer_job_takes_the_place_of_older_ones_in_its_group(fleet: Fleet) -> None:
    fleet.start_sender()
    fleet.add_executor("alpha", isolation="process", max_jobs=3)
    hall = Hall(fleet)
    more = "concurrency: {{group: g, cancel_in_progress: true}}\ntimeout: {{grace: 1s}}\nseed: {seed}\n"
    hall.push("one", more.format(seed=1))
    hall.wait_running("one-1")
    hall.push("one", more.format(seed=2))
    first, second = jobs(fleet, 2)
    old = fleet.wait_ended(first["id"])
    assert (old["state"], old["code"]) == ("cancelled", "superseded"), old
    assert second["id"][:8] in old["reason"]
    hall.end("one")
    assert fleet.wait_ended(second["id"])["state"] == "completed"
    assert fleet.job(second["id"])["started"] > old["started"]


def test_a_failed_training_rests_and_is_tried_again(fleet: Fleet) -> None:
    fleet.start_sender()
    fleet.add_executor("alpha", isolation="process")
    hall = Hall(fleet)
    hall.push("one", "retry: {max: 1, on: [script_failed]}\n")
    (job,) = jobs(fleet, 1)
    hall.wait_running("one-1")
    hall.end("one", fail=True)
    assert waiting(fleet, job["id"], "retry").startswith("attempt 2 begins at ")
    hall.end("one")
    detail = fleet.wait_ended(job["id"])
    assert (detail["state"], detail["attempt"]) == ("completed", 2), detail
    first, second = detail["attempts"]
    assert (first["state"], first["code"]) == ("failed", "script_failed")
    assert second["nodes"][0]["started"] >= first["ended"] + 1


def test_limits_end_what_takes_too_long(fleet: Fleet) -> None:
    fleet.start_sender()
    fleet.add_executor("alpha", isolation="process", max_jobs=3)
    forever = "import time; time.sleep(100)"
    asked = {
        "runs": manifest("runs", more="timeout: {run: 1s, grace: 1s}\n"),
        "waits": manifest("waits", more="timeout: {queue: 1s}\n").replace(
            "nodes: 1", "nodes: 1, labels: {zone: nowhere}"
        ),
        "prepares": manifest("prepares", more="timeout: {setup: 1s}\n").replace(
            "launcher: python", "launcher: python, setup: sleep 60"
        ),
    }
    for name, text in asked.items():
        fleet.push(fleet.project(name, {"train.py": forever, "trainforge.yaml": text}))
    codes = {job["project"]: fleet.wait_ended(job["id"])["code"] for job in jobs(fleet, 3)}
    assert codes == {"runs": "timeout_run", "waits": "timeout_queue", "prepares": "timeout_setup"}


def test_of_two_that_wait_the_one_of_higher_priority_runs_first(fleet: Fleet) -> None:
    fleet.start_sender()
    fleet.add_executor("alpha", isolation="process")
    hall = Hall(fleet)
    hall.push("busy", "")
    hall.wait_running("one-1")
    text = "strategy: {matrix: {n: [1]}}\npriority: "
    hall.push("low", text + "-1\n")
    hall.push("high", text.replace("[1]", "[2]") + "5\n")
    jobs(fleet, 3)
    hall.end("one")
    hall.wait_running("2-1")
    assert "1-1" not in hall.running()
    hall.end("2")
    hall.end("1")
    wait_for("all ends", lambda: all(job["state"] in ENDED for job in fleet.jobs()), 60, fleet.logs)
