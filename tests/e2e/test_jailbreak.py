"""A job that tries to get out: at its executor's keys, the sender, a sibling, the machine, and into results.

What each level promises is in docs/security.md. At `process`, without a user of its own, a job can do all
that the executor's user can: those probes are not run there, for they would succeed.
"""

from __future__ import annotations

import inspect
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import trainforge.executor
from support import engines, prisoner
from support.fleet import Fleet
from support.processes import commands
from support.scripts import UNTIL_TOLD, manifest
from support.waiting import wait_for

VICTIM = "victim-value-0123456789"
BAIT = "bait-9f3c1a"
SANDBOX, EVERYWHERE, OFFLINE = "SANDBOX | EVERYWHERE", "EVERYWHERE", "SANDBOX | OFFLINE"


@pytest.fixture
def caged(fleet: Fleet, request: pytest.FixtureRequest) -> Iterator[Fleet]:
    """An executor of that level, with a door on loopback, that trains a sibling with a secret."""
    fleet.start_sender()
    level: dict[str, object] = {"isolation": request.param}
    if request.param == "container":
        engine = engines.engine("podman")
        fleet.variables |= engine.env
        level |= {"container_engine": engine.kind, "container_image": engines.IMAGE}
    fleet.add_executor("cage", connection="push", **level, max_jobs=2, max_processes=150)
    (fleet.root / "bait").write_text(f"{BAIT}\n")
    script = UNTIL_TOLD.format(go_on=str(fleet.signals / "go-on"))
    text = manifest("victim", more="secrets: [VICTIM_TOKEN]\n")
    project = fleet.project("victim", {"train.py": script, "trainforge.yaml": text})
    secret = {"name": "VICTIM_TOKEN", "repository": "builtin:victim", "value": VICTIM}
    fleet.api("POST", "/api/secrets", json=secret)
    fleet.push(project)
    fleet.wait_log(fleet.the_job(), "training has begun")
    yield fleet


def world(fleet: Fleet) -> dict[str, Any]:
    """All that a prisoner could wish to know."""
    root, victim = fleet.root, fleet.the_job()
    (sibling,) = (root / "cage" / "nodes").glob(f"{victim}*")
    spec = json.loads((sibling / "run" / "supervisor.json").read_text())
    (mirror,) = (root / "cage" / "mirrors").glob("*.git")
    endpoint = json.loads((root / "cage" / "config.json").read_text())
    return {
        "root": str(root), "executor": str(root / "cage"), "sender": str(root / "sender"),
        "home": str(fleet.home), "sibling": str(sibling), "sibling_pid": spec["pid"],
        "executor_pid": fleet.processes["cage"].pid, "mirror": str(mirror), "url": fleet.url,
        "port": int(fleet.url.rsplit(":", 1)[1]), "door": endpoint["public_url"].rstrip("/"),
        "code": str(Path(trainforge.executor.__file__).resolve().parents[1]),
        "daemon": f"daemon-of-{root.name}",
        "bait": str(root / "bait"), "planted": str(root / "planted"), "inner_tmp": False,
    }  # fmt: skip


def tries(fleet: Fleet, which: str, **around: str) -> tuple[dict[str, Any], dict[str, bytes], dict[str, Any]]:
    """Push the prisoner, wait for its end; what it reports, its result's files, and its job."""
    known = world(fleet)
    source = inspect.getsource(prisoner)
    script = source.replace('globals().get("WORLD", {})', repr(known)) + f"\n\nmain({which})\n"
    text = manifest("prisoner", more=f"environment: {json.dumps(around)}\n" if around else "")
    fleet.push(fleet.project("prisoner", {"train.py": script, "trainforge.yaml": text}))
    job = fleet.the_job(2)
    detail = fleet.wait_ended(job)
    files = fleet.result("prisoner")
    folder = detail["result_path"]
    own = {path.removeprefix(f"{folder}/"): data for path, data in files.items() if path.startswith(folder)}
    assert "artifacts/outputs/probes.json" in own, (detail["reason"], fleet.log_text(job)[-3000:])
    return json.loads(own["artifacts/outputs/probes.json"]), own, detail


def check_what_was_planted(fleet: Fleet, files: dict[str, bytes], detail: dict[str, Any]) -> None:
    """What holds at every level: nothing that a job leaves reaches further than its own result."""
    assert (detail["state"], detail["code"]) == ("completed", ""), detail["reason"]
    assert not (fleet.root / "planted").exists()
    assert BAIT not in b"".join(files.values()).decode("utf-8", "replace")
    assert BAIT not in fleet.log_text(detail["id"])
    assert json.loads(files["result.json"])["metrics"] == {}
    assert b'"accuracy": 1.0' in files["artifacts/result.json"]  # a file like any other
    assert not {"artifacts/link.txt", "artifacts/pipe", "artifacts/disk"} & files.keys()
    lines = fleet.api("GET", f"/api/jobs/{detail['id']}/logs?limit=5000")["lines"]
    assert max(len(line["text"]) for line in lines) <= 64 * 1024 + 100
    marked = f"daemon-of-{fleet.root.name}"

    def gone() -> bool:
        return not commands(naming=marked)

    wait_for("the daemon's end", gone, 20)


def test_what_the_tests_need_is_there() -> None:
    assert shutil.which("bwrap"), "install bubblewrap (tests/system-packages does): the sandbox is untested"


@pytest.mark.parametrize("caged", ["sandbox", "container"], indirect=True)
def test_nothing_gets_out(caged: Fleet, request: pytest.FixtureRequest) -> None:
    level = request.node.callspec.params["caged"]
    said, files, detail = tries(caged, SANDBOX)
    assert said["out"] == []
    assert len(said["held"]) >= 35
    if os.geteuid() == 0:
        assert 61184 <= said["uid"] < 65520
    check_what_was_planted(caged, files, detail)
    chosen = json.loads(files["environment/environment.json"])["isolation"]
    assert (chosen["level"], chosen["network"]) == (level, True)
    if level == "sandbox":  # the container's image has no packages
        assert b"==" in files["environment/requirements.lock.txt"]
    assert any(f"isolation: {level}" in line["text"] for line in detail["timeline"])
    (caged.signals / "go-on").touch()
    victim = next(job["id"] for job in caged.jobs() if job["project"] == "victim")
    assert caged.wait_ended(victim)["state"] == "completed"


@pytest.mark.parametrize("caged", ["process"], indirect=True)
def test_what_every_level_promises_and_a_job_without_network(caged: Fleet) -> None:
    """`network: none` alone asks for a sandbox; without it `process` keeps what it promises."""
    said, files, detail = tries(caged, EVERYWHERE)
    # What has neither a user of its own nor a control group is not bounded in its processes.
    assert set(said["out"]) <= ({"too many processes"} if os.geteuid() else set())
    check_what_was_planted(caged, files, detail)
    assert json.loads(files["environment/environment.json"])["isolation"]["level"] == "process"


@pytest.mark.parametrize("caged", ["process"], indirect=True)
def test_no_network_is_a_sandbox_without_one(caged: Fleet) -> None:
    said, files, _ = tries(caged, OFFLINE, network="none")
    assert said["out"] == []
    assert {"metadata", "sender's port"} <= said["held"].keys()
    chosen = json.loads(files["environment/environment.json"])["isolation"]
    assert (chosen["level"], chosen["network"]) == ("sandbox", False)
