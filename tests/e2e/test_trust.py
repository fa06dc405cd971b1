"""Trust with the real programs: who is let in, what a machine takes, keys that change, who is sent away."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx2
import pytest

from support.fleet import Fleet
from support.waiting import wait_for

MANIFEST = """\
project: {name: trust}
training: {script: train.py, launcher: python}
resources: {nodes: 1}
"""


@pytest.fixture
def fleet(tmp_path: Path) -> Any:
    fleet = Fleet(tmp_path)
    try:
        fleet.start_sender(lease_ttl=6, lost_after=3)
        yield fleet
    finally:
        fleet.close()


def executor(fleet: Fleet, name: str) -> Any:
    return next((one for one in fleet.api("GET", "/api/executors")["executors"] if one["name"] == name), None)


def own(fleet: Fleet, name: str, *arguments: str) -> Any:
    options = ["--data-dir", str(fleet.root / name), "--name", name, "--json"]
    return json.loads(fleet.cli("executor", *arguments, *options).stdout)


def test_from_being_approved_to_being_removed(fleet: Fleet, tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text("branches: [main]\n")
    invitation = fleet.api("POST", "/api/join-tokens", json={"approval": True})
    joined = own(fleet, "alpha", "join", fleet.url, invitation["token"])
    assert joined["pending"]
    fleet.start_executor("alpha", policy_file=tmp_path / "policy.yaml")
    shown = executor(fleet, "alpha")
    assert (shown["status"], shown["fingerprint"]) == ("pending", joined["fingerprint"])

    project = fleet.project("trust", {"trainforge.yaml": MANIFEST, "train.py": "print('trained')\n"})
    fleet.push(project)
    job = fleet.the_job()
    waits = wait_for("reason", lambda: fleet.job(job)["waiting"], 20)
    assert "waits for approval" in json.dumps(waits)
    assert "is approved" in fleet.cli("executor", "approve", "alpha").stdout
    assert fleet.wait_ended(job)["state"] == "completed"

    fleet.commit(project, {"trainforge.yaml": MANIFEST + "seed: 2\n"}, "Elsewhere")
    fleet.push(project, "feature")
    other = fleet.jobs()[0]["id"]
    words = wait_for("reason", lambda: fleet.job(other)["waiting"], 20)
    assert "the policy does not allow the branch feature (policy.yaml:1: branches)" in json.dumps(words)
    fleet.api("POST", f"/api/jobs/{other}/stop", json={})

    fingerprint = own(fleet, "alpha", "rotate-key")["fingerprint"]
    assert fingerprint != joined["fingerprint"]
    before = executor(fleet, "alpha")
    assert before["id"] == joined["executor"]
    fleet.api("POST", "/api/sender/rotate-key", json={})
    identity = tmp_path / "alpha" / "identity.json"
    wait_for("the sender's new key", lambda: json.loads(identity.read_text())["previous_sender_key"], 20)
    fleet.commit(project, {"trainforge.yaml": MANIFEST + "seed: 3\n"}, "Once more")
    fleet.push(project)
    assert fleet.wait_ended(fleet.jobs()[0]["id"])["state"] == "completed"
    assert executor(fleet, "alpha")["fingerprint"] == fingerprint

    fleet.api("DELETE", "/api/executors/alpha")
    ended = wait_for("end of the executor", fleet.processes["alpha"].poll, 30, fleet.logs)
    assert ended != 0
    assert "was removed from the sender" in (tmp_path / "alpha.log").read_text()

    entries = fleet.api("GET", "/api/audit?limit=1000")["entries"]
    actions = [entry["action"] for entry in entries][::-1]
    expected = ("join_token.created", "executor.joined", "executor.approved", "job.stopped")
    for action in (*expected, "executor.key_changed", "sender.key_changed", "executor.removed"):
        assert action in actions, actions
    verdict = fleet.api("GET", "/api/audit/verify")
    assert (verdict["problems"], verdict["rows"]) == ([], len(entries))
    assert not fleet.api("GET", f"/api/audit/verify?head={verdict['head']}")["problems"]
    wrong = fleet.cli("audit", "verify", "--head", f"1:{'0' * 64}", check=False)
    assert wrong.returncode == 1
    assert "row 1 differs from the given head" in wrong.stdout
    visited(fleet, project, tmp_path)


def visited(fleet: Fleet, project: Path, tmp_path: Path) -> None:
    """A visitor trains, and is gone."""
    ask = {"ephemeral": True, "max_jobs": 1}
    token = fleet.api("POST", "/api/join-tokens", json=ask)["token"]
    visitor = {"name": "colab", "data_dir": tmp_path / "unused", "heartbeat_every": 1}
    fleet._start("colab", "executor", "start", "--ephemeral", fleet.url, token, settings=visitor)
    wait_for("visitor", lambda: (executor(fleet, "colab") or {}).get("status") == "online", 30, fleet.logs)
    fleet.commit(project, {"trainforge.yaml": MANIFEST + "seed: 4\n"}, "For a visitor")
    fleet.push(project)
    job = fleet.jobs()[0]["id"]
    assert fleet.wait_ended(job)["state"] == "completed"
    assert fleet.terminate("colab") == 0
    assert executor(fleet, "colab")["status"] == "revoked"
    assert not (tmp_path / "unused").exists()


def test_an_owner_is_answered_for_at_the_sender(fleet: Fleet) -> None:
    fleet.add_executor("alpha", accept="ask")
    project = fleet.project("trust", {"trainforge.yaml": MANIFEST, "train.py": "print('trained')\n"})
    fleet.push(project)
    job = fleet.the_job()
    asked = "waiting for the machine's owner to accept"

    def detail(job: str) -> str:
        tries = fleet.job(job)["attempts"]
        return tries[-1]["nodes"][0]["detail"] if tries else ""

    wait_for("the question", lambda: detail(job) == asked, 20)
    headers = {"Authorization": f"Bearer {fleet.token}", "Accept": "text/html"}
    page = httpx2.get(f"{fleet.url}/jobs/{job}", headers=headers).text
    assert "<strong>alpha</strong> asks whether" in page
    fleet.api("POST", f"/api/jobs/{job}/answer", json={"accept": True})
    assert fleet.wait_ended(job)["state"] == "completed"

    fleet.terminate("alpha")
    fleet.start_executor("alpha", accept="ask", accept_here=True)
    again = fleet.api("POST", f"/api/jobs/{job}/retry")["id"]
    wait_for("the question", lambda: detail(again) == f"{asked}, on that machine", 20)
    refused = httpx2.post(f"{fleet.url}/api/jobs/{again}/answer", headers=headers, json={"accept": True})
    assert (refused.status_code, refused.json()["code"]) == (409, "conflict")
    own(fleet, "alpha", "reject", again)
    assert fleet.wait_ended(again)["code"] == "policy_refused"
