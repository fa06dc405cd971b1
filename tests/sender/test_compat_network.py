"""`/api/network` and `/api/tasks` of the first API, each by its description's own example."""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import Any

import httpx2
import pytest

from support.compat import PLUGIN, add_plugin, gpu_machine, post
from support.web import Web

PLAN_REQUEST: dict[str, Any] = {
    "plugin_name": PLUGIN,
    "config": {"learning_rate": 0.05},
    "resource_requirements": {"num_machines": 3, "gpus_per_machine": 2},
}
MACHINE: dict[str, type | tuple[type, ...]] = {
    "id": str, "name": str, "host": str, "port": int, "status": str,
}  # fmt: skip
CAPABILITIES = {"gpu_count", "gpu_memory", "cpu_count", "memory", "disk_space"}


def is_machine(one: dict[str, Any]) -> None:
    """The documents' `interface Machine`."""
    for name, kind in MACHINE.items():
        assert isinstance(one[name], kind), name
    assert one["status"] in {"online", "offline", "busy"}
    assert set(one["capabilities"]) == CAPABILITIES
    assert all(isinstance(value, int) for value in one["capabilities"].values())
    load = one["current_load"]
    assert set(load) == {"cpu_usage", "memory_usage", "gpu_usage"}
    assert isinstance(load["gpu_usage"], list)


def is_status(said: dict[str, Any]) -> None:
    """The documents' `interface DistributedJobStatus`."""
    assert said["status"] in {"planning", "dispatching", "running", "completed", "failed"}
    assert isinstance(said["job_id"], str)
    assert isinstance(said["world_size"], int)
    assert isinstance(said["master_addr"], str)
    assert isinstance(said["master_port"], int)
    for node in said["nodes"]:
        assert isinstance(node["machine_id"], str)
        assert isinstance(node["rank"], int)
        assert node["status"] in {"pending", "running", "completed", "failed"}


@pytest.fixture
def fleet(site: Web, tmp_path: Path) -> Web:
    """Three machines with two GPUs each, and a plugin to train on them."""
    add_plugin(site, tmp_path)
    for number in (1, 2, 3):
        gpu_machine(site, f"gpu-{number}")
    return site


# --- machines -------------------------------------------------------------------------------------------


def test_machines_are_listed_and_shown_in_the_documents_form(fleet: Web) -> None:
    listed = fleet.get("/api/network/machines")["machines"]
    assert [one["name"] for one in listed] == ["gpu-1", "gpu-2", "gpu-3"]
    for one in listed:
        is_machine(one)
        assert fleet.get(f"/api/network/machines/{one['id']}") == one
    assert listed[0]["capabilities"]["gpu_memory"] == 48 << 30
    missing = fleet.ask("GET", "/api/network/machines/nobody")
    assert (missing.status_code, missing.json()["code"]) == (404, "not_found")


def test_a_machine_that_is_added_is_expected_until_it_joins(site: Web) -> None:
    machine = {"name": "gpu-9", "host": "192.168.1.109", "port": 8338}
    added = post(site, "/api/network/machines", machine)
    is_machine(added)
    assert added["pending"]
    assert re.search(r"trainforge executor join http\S+ \S+ --name gpu-9 && ", added["join_command"])
    (listed,) = site.get("/api/network/machines")["machines"]
    assert (listed["pending"], listed["status"], listed["host"]) == (True, "offline", "192.168.1.109")
    assert "join_command" not in listed, "the token is told once"
    refused = site.ask("POST", f"/api/network/machines/{added['id']}/ping")
    assert (refused.status_code, refused.json()["code"]) == (409, "conflict")

    arriving = threading.Timer(0.1, lambda: site.add_executor("gpu-9"))
    arriving.start()
    found = site.get("/api/network/machines/gpu-9?wait=20")
    arriving.join()
    assert (found["pending"], found["status"]) == (False, "online"), "it is told when it has arrived"
    joined = found["id"]

    (now,) = site.get("/api/network/machines")["machines"]
    assert (now["id"], now["pending"], now["status"]) == (joined, False, "online")
    assert (now["host"], now["port"]) == ("192.168.1.109", 8338)
    assert site.get(f"/api/network/machines/{added['id']}")["id"] == joined, "its first id still finds it"
    assert post(site, "/api/network/machines", machine, 409)["code"] == "conflict"


@pytest.mark.parametrize(
    "wrong", [{"name": "x y"}, {"host": "a b"}, {"port": 0}, {"port": "x"}, {"surprise": 1}, {"name": None}]
)
def test_a_machine_is_not_added_by_a_wrong_form(site: Web, wrong: dict[str, Any]) -> None:
    machine = {"name": "gpu-9", "host": "192.168.1.109", "port": 8338} | wrong
    assert post(site, "/api/network/machines", machine, 422)["code"] == "message_invalid"
    assert site.get("/api/network/machines")["machines"] == []


def test_a_machine_is_removed_by_id(fleet: Web) -> None:
    first = fleet.get("/api/network/machines")["machines"][0]
    assert fleet.ask("DELETE", f"/api/network/machines/{first['id']}").json()["name"] == "gpu-1"
    assert [one["name"] for one in fleet.get("/api/network/machines")["machines"]] == ["gpu-2", "gpu-3"]
    assert fleet.ask("DELETE", f"/api/network/machines/{first['id']}").status_code == 404


def test_a_machine_is_removed_by_name(fleet: Web) -> None:
    post(fleet, "/api/network/machines", {"name": "late", "host": "10.0.0.9", "port": 1})
    for name in ("gpu-2", "late"):
        assert fleet.ask("DELETE", f"/api/network/machines/by-name/{name}").status_code == 200
    assert [one["name"] for one in fleet.get("/api/network/machines")["machines"]] == ["gpu-1", "gpu-3"]


def test_the_status_of_all_machines_is_one_answer(fleet: Web) -> None:
    post(fleet, "/api/network/machines", {"name": "late", "host": "10.0.0.9", "port": 1})
    fleet.add_node(fleet.add_job(), fleet.sender.queries.executor("gpu-1", 0).id)
    said = fleet.get("/api/network/status")
    assert [said[key] for key in ("total_machines", "online", "busy", "offline", "pending")] == [
        4,
        2,
        1,
        1,
        1,
    ]
    assert said["capabilities"]["gpu_count"] == 6
    assert said["jobs"] == {"running": 1, "waiting": 0}
    for one in said["machines"]:
        is_machine(one)


def test_what_two_executors_of_one_host_offer_counts_once(site: Web) -> None:
    for name, cores in (("first", 8), ("second", 4)):
        site.add_executor(name, host_id="h", cpu_count=cores)
    site.add_executor("other", host_id="o", cpu_count=2)
    assert site.get("/api/network/status")["capabilities"]["cpu_count"] == 10


def test_a_ping_that_nobody_answers_says_so(fleet: Web) -> None:
    said = post(fleet, "/api/network/machines/gpu-1/ping?wait=0.2")
    assert said["reachable"] is False
    assert said["latency_ms"] is None
    assert "gpu-1 was not heard of" in said["error"]


def test_the_health_check_asks_all_and_says_what_to_do(site: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainforge.sender.machines.ANSWER_S", 0.2)
    monkeypatch.setattr("trainforge.sender.machines.BEATS", 0)
    site.add_executor("full", disk_free_bytes=1 << 30, torch="2.6")
    post(site, "/api/network/machines", {"name": "late", "host": "10.0.0.9", "port": 1})
    said = post(site, "/api/network/health-check")
    assert (said["healthy"], said["unhealthy"]) == (0, 2)
    full, late = said["machines"]
    assert "1.0 GiB of disk" in " ".join(full["problems"])
    assert "not heard of" in " ".join(full["problems"])
    assert "has not joined" in late["problems"][0]


def test_the_capabilities_are_those_of_the_senders_host(site: Web) -> None:
    said = site.get("/api/network/capabilities")
    assert set(said["capabilities"]) == CAPABILITIES
    assert said["capabilities"]["cpu_count"] >= 1
    assert said["capabilities"]["memory"] > 1 << 20


# --- plan, confirm, dispatch ----------------------------------------------------------------------------


def test_a_job_is_planned_shown_and_not_started_until_it_is_confirmed(fleet: Web) -> None:
    planned = post(fleet, "/api/network/distributed/plan", PLAN_REQUEST)
    plan = planned["execution_plan"]
    assert {machine["name"] for machine in plan["machines"]} == {"gpu-1", "gpu-2", "gpu-3"}
    assert [machine["rank"] for machine in plan["machines"]] == [0, 1, 2]
    assert plan["world_size"] == 6
    (adjusted,) = [one for one in plan["adjusted"] if one["key"] == "batch_size"]
    assert (adjusted["before"], adjusted["after"]) == (48, 8)
    assert plan["params"]["learning_rate"] == 0.05
    job = planned["job_id"]
    assert fleet.ask("GET", f"/api/jobs/{job}").status_code == 404
    status = fleet.get(f"/api/network/distributed/status/{job}")
    is_status(status)
    assert (status["status"], len(status["nodes"])) == ("planning", 3)

    queued = post(fleet, "/api/network/distributed/dispatch", {"job_id": job})

    is_status(queued)
    assert (queued["job_id"], queued["state"]) == (job, "pending")
    assert fleet.get(f"/api/jobs/{job}")["source"] == "plan"
    elsewhere = {"job_id": job, "selected_machines": ["gpu-1"]}
    assert post(fleet, "/api/network/distributed/dispatch", elsewhere, 409)["code"] == "conflict"
    again = post(fleet, "/api/network/distributed/dispatch", {"job_id": job})
    assert again["job_id"] == job, "confirming twice queues once"
    assert len([one for one in fleet.get("/api/jobs")["jobs"] if one["id"] == job]) == 1


def test_the_older_address_of_the_plan_is_the_same(fleet: Web) -> None:
    planned = post(fleet, "/api/network/distributed_jobs/plan", PLAN_REQUEST)
    is_status(fleet.get(f"/api/network/distributed_jobs/{planned['job_id']}/status"))


def test_ranks_that_are_dispatched_one_by_one_queue_the_job_with_the_last(fleet: Web) -> None:
    job = post(fleet, "/api/network/distributed_jobs/plan", PLAN_REQUEST)["job_id"]
    post(fleet, "/api/network/machines", {"name": "late", "host": "192.168.1.101", "port": 8338})
    late = gpu_machine(fleet, "late")
    rank = {
        "job_id": job, "target_machine": "192.168.1.101", "rank": 1, "world_size": 3,
        "master_addr": "192.168.1.100", "master_port": 29500, "plugin_name": PLUGIN, "config": {},
    }  # fmt: skip
    path = "/api/network/distributed_jobs/dispatch"
    assert post(fleet, path, rank)["missing_ranks"] == [0, 2]
    assert post(fleet, path, rank | {"rank": 0}, 409)["code"] == "conflict", "one machine, two ranks"
    assert post(fleet, path, rank | {"rank": 3}, 422)["code"] == "message_invalid"
    assert post(fleet, path, rank | {"rank": 0, "target_machine": "gpu-2"})["missing_ranks"] == [2]
    is_status(post(fleet, path, rank | {"rank": 2, "target_machine": "gpu-3"}))
    row = fleet.sender.store.job(job)
    ids = [fleet.get(f"/api/network/machines/{name}")["id"] for name in ("gpu-2", "late", "gpu-3")]
    assert row["executors"] == ids
    assert late in ids
    assert row["overrides"]["distributed.port"] == 29500


def test_a_plan_by_hand_takes_the_machines_named(fleet: Web) -> None:
    by_hand = {"machine_selection": "manual", "selected_machines": ["gpu-3"]}
    one = {"resource_requirements": {"num_machines": 1, "min_gpu_memory": "20GB"}}
    planned = post(fleet, "/api/network/distributed/plan", PLAN_REQUEST | one | by_hand)
    assert [machine["name"] for machine in planned["execution_plan"]["machines"]] == ["gpu-3"]
    nobody = by_hand | {"selected_machines": []}
    assert post(fleet, "/api/network/distributed/plan", PLAN_REQUEST | nobody, 422)


def test_a_machine_that_is_unavailable_leads_to_alternatives(fleet: Web) -> None:
    post(fleet, "/api/executors/gpu-3/drain")
    asked = {
        "machine_selection": "manual",
        "selected_machines": ["gpu-3"],
        "resource_requirements": {"num_machines": 1, "gpus_per_machine": 1},
    }
    planned = post(fleet, "/api/network/distributed/plan", PLAN_REQUEST | asked)
    assert planned["execution_plan"] is None
    assert "draining" in planned["waiting"]["gpu-3"]
    assert planned["alternatives"][0] in {"gpu-1", "gpu-2"}
    post(fleet, "/api/executors/gpu-3/undrain")
    assert post(fleet, "/api/network/distributed/plan", PLAN_REQUEST | asked)["execution_plan"]


def test_too_large_a_request_says_what_each_machine_lacks(fleet: Web) -> None:
    large = PLAN_REQUEST | {"resource_requirements": {"num_machines": 3, "gpus_per_machine": 4}}
    planned = post(fleet, "/api/network/distributed/plan", large)
    assert planned["execution_plan"] is None
    assert all("GPU" in why for why in planned["waiting"].values())
    bytes_meant = PLAN_REQUEST | {"resource_requirements": {"min_gpu_memory": 24}}
    assert "24GB" in post(fleet, "/api/network/distributed/plan", bytes_meant, 422)["hint"]


def test_a_planned_job_is_stopped_by_being_dropped_and_a_queued_one_by_a_request(fleet: Web) -> None:
    job = post(fleet, "/api/network/distributed/plan", PLAN_REQUEST)["job_id"]
    assert post(fleet, f"/api/network/distributed/stop/{job}")["state"] == "cancelled"
    assert fleet.ask("GET", f"/api/network/distributed/status/{job}").status_code == 404
    job = post(fleet, "/api/network/distributed/plan", PLAN_REQUEST)["job_id"]
    post(fleet, "/api/network/distributed/dispatch", {"job_id": job})
    is_status(post(fleet, f"/api/network/distributed/stop/{job}"))
    assert fleet.get(f"/api/jobs/{job}")["stopping"]


def test_nothing_is_planned_of_what_is_not_known(fleet: Web) -> None:
    asked = PLAN_REQUEST | {"plugin_name": "nobody"}
    assert post(fleet, "/api/network/distributed/plan", asked, 404)["code"] == "not_found"
    wrong = PLAN_REQUEST | {"config": {"learning_rate": {"deep": [1]}}, "commit": "b" * 40}
    assert post(fleet, "/api/network/distributed/plan", wrong, 404)["code"] == "not_found"
    assert post(fleet, "/api/network/distributed/dispatch", {"job_id": "zz"}, 404)


# --- one machine, whole jobs ----------------------------------------------------------------------------


def test_a_whole_job_goes_to_one_machine_with_its_status_and_stop(fleet: Web) -> None:
    body = {"plugin_name": PLUGIN, "config": {"batch_size": 4}}
    said = post(fleet, "/api/network/machines/gpu-2/dispatch_job", body)
    is_status(said)
    job = said["job_id"]
    machine = fleet.get("/api/network/machines/gpu-2")["id"]
    row = fleet.sender.store.job(job)
    assert (row["executors"], row["overrides"]["resources.nodes"]) == ([machine], 1)
    is_status(fleet.get(f"/api/network/machines/{machine}/job_status/{job}"))
    assert fleet.ask("GET", f"/api/network/machines/gpu-1/job_status/{job}").status_code == 404
    assert fleet.ask("POST", f"/api/network/machines/gpu-1/stop_job/{job}").status_code == 404
    is_status(post(fleet, f"/api/network/machines/{machine}/stop_job/{job}"))
    assert fleet.get(f"/api/jobs/{job}")["stopping"]


def test_a_job_on_this_machine_needs_an_executor_on_it(fleet: Web) -> None:
    body = {"plugin_name": PLUGIN, "config": {}}
    refused = post(fleet, "/api/network/execute_job", body, 409)
    assert "no executor runs on this sender's host" in refused["detail"]
    here = fleet.get("/api/network/capabilities")["name"]
    local = fleet.add_executor("local", hostname=here)
    said = post(fleet, "/api/network/execute_job", body)
    assert fleet.sender.store.job(said["job_id"])["executors"] == [local]
    is_status(fleet.get(f"/api/network/local_job_status/{said['job_id']}"))


def test_dependencies_are_prepared_by_a_job_that_does_not_train(fleet: Web) -> None:
    body = {"machines": ["gpu-1", "gpu-2"], "plugin_name": PLUGIN, "config": {}}
    said = post(fleet, "/api/network/prepare_dependencies", body)
    is_status(said)
    assert [fleet.get(f"/api/jobs/{job['job_id']}")["source"] for job in said["jobs"]] == ["prepare"] * 2
    one = post(fleet, "/api/network/prepare_dependencies", {"machine_id": "gpu-1", "plugin_name": PLUGIN})
    assert len(one["jobs"]) == 1
    assert post(fleet, "/api/network/prepare_dependencies", {"plugin_name": PLUGIN}, 422)


def test_the_output_of_a_job_is_read_in_pages(site: Web) -> None:
    job = site.add_job()
    site.log(job, "epoch 1", "epoch 2")
    said = site.get(f"/api/network/local_job_output/{job}")
    assert said["output"] == "epoch 1\nepoch 2\n"
    site.log(job, "epoch 3")
    site.end(job)
    rest = site.get(f"/api/network/local_job_output/{job}?after={said['cursor']}")
    assert (rest["output"], rest["ended"]) == ("epoch 3\n", True)
    assert site.ask("GET", f"/api/network/local_job_output/{job}?after=x").status_code == 422


# --- tasks ----------------------------------------------------------------------------------------------


def test_a_task_is_queued_for_distributed_training(fleet: Web) -> None:
    task = post(fleet, "/api/network/distributed/plan", PLAN_REQUEST)["task_id"]
    said = fleet.get(f"/api/tasks/{task}/queue_distributed")
    is_status(said)
    assert said["job_id"] == task
    assert fleet.get(f"/api/jobs/{task}")["state"] == "pending"


def test_a_task_is_queued_on_one_machine(fleet: Web) -> None:
    task = post(fleet, "/api/network/distributed/plan", PLAN_REQUEST)["task_id"]
    fleet.get(f"/api/tasks/{task}/queue/gpu-3")
    row = fleet.sender.store.job(task)
    assert row["executors"] == [fleet.get("/api/network/machines/gpu-3")["id"]]
    assert row["overrides"]["resources.nodes"] == 1


def test_another_sites_link_cannot_queue_a_task(fleet: Web) -> None:
    task = post(fleet, "/api/network/distributed/plan", PLAN_REQUEST)["task_id"]
    with fleet.log_in() as browser:
        cookie = {"Cookie": "; ".join(f"{name}={value}" for name, value in browser.cookies.items())}
        path = f"{fleet.url}/api/tasks/{task}/queue_distributed"
        elsewhere = httpx2.get(path, headers=cookie | {"Sec-Fetch-Site": "cross-site"})
        assert elsewhere.status_code == 403
        same = cookie | {"Sec-Fetch-Site": "same-origin"}
        assert httpx2.get(path, headers=same).status_code == 403
        ours = same | {"X-CSRF-Token": browser.headers["X-CSRF-Token"]}
        assert httpx2.get(path, headers=ours).status_code == 200


def test_machines_are_suggested_by_need_and_preference(fleet: Web) -> None:
    said = fleet.get("/api/tasks/distributed/suggest_machines")
    assert len(said["suggested_machines"]) == 1
    for one in said["machines"]:
        is_machine(one)
    wide = fleet.get("/api/tasks/distributed/suggest_machines?num_machines=3&gpus_per_machine=2")
    assert len(wide["suggested_machines"]) == 3
    none = fleet.get("/api/tasks/distributed/suggest_machines?num_machines=4")
    assert (none["enough"], none["suggested_machines"]) == (False, [])
    assert set(none["waiting"]) == {"gpu-1", "gpu-2", "gpu-3"}
    assert fleet.ask("GET", "/api/tasks/distributed/suggest_machines?num_machines=x").status_code == 422


def test_preferences_are_kept_and_used(fleet: Web) -> None:
    wishes = {
        "preferred_machines": ["gone", "gpu-3"], "default_num_machines": 1, "default_gpus_per_machine": 1,
        "auto_machine_selection": True,
    }  # fmt: skip
    assert fleet.ask("PUT", "/api/network/preferences", json=wishes).json() == wishes
    assert fleet.get("/api/network/preferences") == wishes
    preferred = fleet.get("/api/network/machines/gpu-3")["id"]
    assert fleet.get("/api/tasks/distributed/suggest_machines")["suggested_machines"] == [preferred]
    plan = {name: value for name, value in PLAN_REQUEST.items() if name != "resource_requirements"}
    planned = post(fleet, "/api/network/distributed/plan", plan)
    assert [machine["name"] for machine in planned["execution_plan"]["machines"]] == ["gpu-3"]
    assert fleet.ask("PUT", "/api/network/preferences", json={"default_num_machines": 0}).status_code == 422
