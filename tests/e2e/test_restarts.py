"""kill -9 at the worst moments: training goes on, and there is exactly one result."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from support.fleet import Fleet
from support.scripts import UNTIL_TOLD, manifest
from support.waiting import wait_for


def _training(fleet: Fleet) -> tuple[str, Path]:
    """A job in the middle of its training, and the file that lets it end."""
    fleet.start_sender()
    fleet.add_executor("alpha")
    go_on = fleet.signals / "go-on"
    script = UNTIL_TOLD.format(go_on=str(go_on))
    fleet.push(fleet.project("long", {"train.py": script, "trainforge.yaml": manifest("long")}))
    job = fleet.the_job()
    fleet.wait_log(job, "training has begun")
    return job, go_on


def _assert_one_good_result(fleet: Fleet, job: str) -> None:
    detail = fleet.wait_ended(job)
    assert detail["state"] == "completed", detail
    assert detail["attempt"] == 1, "the same training went on, not a second one"
    text = fleet.log_text(job)
    assert text.count("training has begun") == 1
    assert text.count("training is over") == 1
    files = fleet.result("long")
    assert [path for path in files if path.endswith("/result.json")] == [
        f"{detail['result_path']}/result.json"
    ]
    assert files[f"{detail['result_path']}/artifacts/model.txt"] == b"trained"


def test_the_executor_dies_while_training_goes_on(fleet: Fleet) -> None:
    job, go_on = _training(fleet)
    fleet.kill("alpha")
    go_on.touch()
    fleet.start_executor("alpha")
    _assert_one_good_result(fleet, job)


def test_the_executor_dies_and_training_outlives_its_absence(fleet: Fleet) -> None:
    job, go_on = _training(fleet)
    fleet.kill("alpha")
    fleet.start_executor("alpha")
    go_on.touch()
    _assert_one_good_result(fleet, job)


def test_the_sender_dies_while_training_goes_on(fleet: Fleet) -> None:
    job, go_on = _training(fleet)
    fleet.kill("sender")
    go_on.touch()
    fleet.start_sender()
    _assert_one_good_result(fleet, job)


def test_both_die_while_training_goes_on(fleet: Fleet) -> None:
    job, go_on = _training(fleet)
    fleet.kill("sender")
    fleet.kill("alpha")
    go_on.touch()
    fleet.start_sender()
    fleet.start_executor("alpha")
    _assert_one_good_result(fleet, job)


@pytest.mark.parametrize("moment", ["31.executor.push", "32.executor.pushed"])
def test_the_executor_dies_around_its_push_of_the_result(fleet: Fleet, moment: str) -> None:
    fleet.start_sender()
    fleet.add_executor("alpha", failpoint=f"{moment}:kill")
    go_on = fleet.signals / "go-on"
    go_on.touch()
    script = UNTIL_TOLD.format(go_on=str(go_on))
    fleet.push(fleet.project("long", {"train.py": script, "trainforge.yaml": manifest("long")}))
    job = fleet.the_job()
    fleet.processes["alpha"].wait(60)
    assert fleet.processes["alpha"].returncode == -9
    fleet.start_executor("alpha")
    _assert_one_good_result(fleet, job)
    index = [data for path, data in fleet.result("long").items() if path.startswith("index/2")]
    assert sum(data.decode().count(job) for data in index) == 2, "one row: its id and its path"


def test_a_stop_ends_training_with_a_result(fleet: Fleet) -> None:
    job, _ = _training(fleet)
    fleet.cli("stop", job[:8])
    detail = fleet.wait_ended(job)
    assert detail["state"] == "cancelled", detail
    assert detail["attempts"][-1]["nodes"][0]["phase"] == "finished"
    result = json.loads(fleet.result("long")[f"{detail['result_path']}/result.json"])
    assert result["outcome"] == "cancelled"
    assert result["code"] == "stopped"
    assert not [command for command in fleet.left_behind().values() if "train.py" in command]


def test_an_executor_that_never_returns_gives_its_job_to_another(fleet: Fleet) -> None:
    fleet.start_sender(lease_ttl=2, lost_after=1)
    fleet.add_executor("alpha")
    go_on = fleet.signals / "go-on"
    script = UNTIL_TOLD.format(go_on=str(go_on))
    fleet.push(fleet.project("long", {"train.py": script, "trainforge.yaml": manifest("long")}))
    job = fleet.the_job()
    fleet.wait_log(job, "training has begun")
    fleet.kill("alpha")
    fleet.add_executor("beta")
    go_on.touch()
    detail = fleet.wait_ended(job)
    assert detail["state"] == "completed", detail
    assert detail["attempts"][0]["state"] == "lost"
    assert detail["attempts"][-1]["nodes"][0]["executor_name"] == "beta"
    fleet.start_executor("alpha")  # its own copy of the training has long ended; nothing may come of it
    files = fleet.result("long")
    assert sum(path.endswith("/result.json") for path in files) == 1


SAVES = """\
import os, pathlib, time
folder = pathlib.Path(os.environ["TRAINFORGE_CHECKPOINT_DIR"])
before = os.environ.get("TRAINFORGE_RESUME_FROM")
if before:
    print("goes on from", pathlib.Path(before).name, pathlib.Path(before, "step").read_text(), flush=True)
else:
    (folder / "step-7").mkdir()
    (folder / "step-7" / "step").write_text("seven")
    print("has saved", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("stored", [False, True])
def test_a_stopped_job_is_resumed_from_its_newest_checkpoint(
    fleet: Fleet, tmp_path: Path, stored: bool
) -> None:
    fleet.start_sender()
    fleet.add_executor("alpha")
    store = f"checkpoint: {{store: {tmp_path / 'store'}}}\n" if stored else ""
    fleet.push(fleet.project("saves", {"train.py": SAVES, "trainforge.yaml": manifest("saves", more=store)}))
    job = fleet.the_job()
    fleet.wait_log(job, "has saved")
    refused = fleet.cli("retry", job, "--resume", check=False)
    assert "has not ended" in refused.stderr
    seals = fleet.root / "alpha" / "checkpoints" / job / "seals.json"
    wait_for("the seal", seals.exists, 30)
    if stored:
        wait_for("it in the store", lambda: list((tmp_path / "store" / job).glob("*.json")), 30)
    fleet.cli("stop", job)
    assert fleet.wait_ended(job)["state"] == "cancelled"
    if stored:  # another machine has nothing of it
        fleet.terminate("alpha")
        fleet.add_executor("beta")
    again = json.loads(fleet.cli("retry", job, "--resume", "--json").stdout)
    detail = fleet.wait_ended(again["id"])
    assert (detail["state"], detail["rerun_of"]) == ("completed", job), detail
    assert "goes on from step-7 seven" in fleet.log_text(again["id"])
    refused = fleet.cli("retry", again["id"], "--resume", check=False)
    assert "keeps no checkpoints" in refused.stderr
