"""The first API's frontend, call by call, against real executors."""

from __future__ import annotations

from typing import Any

import httpx2

from support.fleet import Fleet
from support.scripts import PROGRESS, manifest
from support.waiting import wait_for

SAVING = PROGRESS + (
    "\nimport os, pathlib\n"
    'pathlib.Path(os.environ["TRAINFORGE_OUTPUT_DIR"], "model.txt").write_text("weights\\n")\n'
)


def plugin(fleet: Fleet, script: str = SAVING) -> str:
    """A repository whose first push has trained already."""
    files = {"train.py": script, "trainforge.yaml": manifest("llama", launcher="accelerate")}
    project = fleet.project("llama_trainer", files)
    fleet.push(project)
    return fleet.the_job()


def poll(fleet: Fleet, job: str) -> dict[str, Any]:
    """`pollDistributedJob` of the documents, to the end."""

    def probe() -> dict[str, Any] | None:
        status: dict[str, Any] = fleet.api("GET", f"/api/network/distributed/status/{job}")
        return status if status["status"] in {"completed", "failed"} else None

    return wait_for(f"end of {job}", probe, 120, fleet.logs)


def test_the_documents_way_from_machines_to_results(fleet: Fleet) -> None:
    fleet.start_sender()
    fleet.add_executor("alpha")
    fleet.add_executor("beta", connection="push")
    fleet.wait_ended(plugin(fleet))
    machines = fleet.api("GET", "/api/network/machines")["machines"]
    assert {machine["name"] for machine in machines} == {"alpha", "beta"}
    for name in ("alpha", "beta"):
        ping = fleet.api("POST", f"/api/network/machines/{name}/ping")
        assert ping["reachable"], ping
        assert ping["latency_ms"] < 5000

    request = {
        "plugin_name": "llama_trainer",
        "config": {"batch_size": 8},
        "resource_requirements": {"num_machines": 2},
    }
    planned = fleet.api("POST", "/api/network/distributed/plan", json=request)
    assert planned["execution_plan"]["world_size"] == 2
    fleet.api("GET", f"/api/tasks/{planned['task_id']}/queue_distributed")
    status = poll(fleet, planned["job_id"])

    assert status["status"] == "completed", (status, fleet.logs())
    assert {node["rank"]: node["status"] for node in status["nodes"]} == {0: "completed", 1: "completed"}
    assert status["master_addr"]
    assert status["master_port"] > 0
    whole = fleet.api(
        "POST", "/api/network/machines/beta/dispatch_job", json={"plugin_name": "llama_trainer"}
    )
    ended = poll(fleet, whole["job_id"])
    assert [node["name"] for node in ended["nodes"]] == ["beta"]
    output = fleet.api("GET", f"/api/network/local_job_output/{whole['job_id']}")
    assert "PROGRESS" in output["output"]
    for key, content in (("model.txt", b"weights\n"), ("result.json", None), ("no-such", None)):
        path = f"{fleet.url}/api/network/local_job_file/{whole['job_id']}/{key}"
        answer = httpx2.get(path, headers={"Authorization": f"Bearer {fleet.token}"}, timeout=60)
        assert answer.status_code == (404 if key == "no-such" else 200), answer.text
        assert content is None or answer.content == content


def test_dependencies_are_prepared_ahead_of_the_job(fleet: Fleet) -> None:
    fleet.start_sender()
    fleet.add_executor("alpha")
    fleet.wait_ended(plugin(fleet))
    body = {"machine_id": "alpha", "plugin_name": "llama_trainer", "config": {}}
    job = fleet.api("POST", "/api/network/prepare_dependencies", json=body)["job_id"]
    assert poll(fleet, job)["status"] == "completed", fleet.logs()
    detail = fleet.job(job)
    assert detail["metrics"] == {}
    assert "PROGRESS" not in fleet.log_text(job)
    latest = fleet.result("llama_trainer")["latest/main/llama/job.json"]
    assert job.encode() not in latest, "what trained last stays the latest"


def test_machines_are_managed_from_the_command_line(fleet: Fleet) -> None:
    fleet.start_sender()
    fleet.add_executor("alpha")
    assert "alpha" in fleet.cli("executor", "list").stdout
    assert "online" in fleet.cli("executor", "show", "alpha").stdout
    fleet.cli("executor", "drain", "alpha")
    job = plugin(fleet)
    wait_for("reason", lambda: "draining" in fleet.job(job)["waiting"].get("alpha", ""), 30, fleet.logs)
    fleet.cli("executor", "undrain", "alpha")
    assert fleet.wait_ended(job)["state"] == "completed"
    fleet.cli("executor", "remove", "alpha")
    assert fleet.cli("executor", "show", "nobody", check=False).returncode == 5
    assert "revoked" not in fleet.cli("executor", "list").stdout
