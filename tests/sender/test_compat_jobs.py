"""`/api/jobs` and `/api/workers` of the first API, each by its description's own example."""

from __future__ import annotations

from pathlib import Path

import httpx2
import sqlalchemy as sa

from support.compat import PLUGIN, add_plugin, gpu_machine, post
from support.repositories import Project
from support.web import Web
from trainforge.hooks.git import init_bare
from trainforge.sender import schema
from trainforge.sender.store_events import Repo


def test_a_distributed_job_is_submitted_and_pending(site: Web, tmp_path: Path) -> None:
    commit = add_plugin(site, tmp_path)
    said = post(site, "/api/jobs/distributed", {"repository": PLUGIN, "workers": 2})
    assert (said["status"], said["workers"]) == ("pending", 2)
    job = site.get(f"/api/jobs/{said['job_id']}")
    assert (job["commit"], job["ref"], job["nodes"]) == (commit, "refs/heads/main", 2)
    again = post(site, "/api/jobs/distributed", {"repository": PLUGIN, "workers": 2})
    assert again["job_id"] == said["job_id"], "the same request is the same job"
    by_project = post(site, "/api/jobs/distributed", {"repository": "llama", "workers": 2})
    assert by_project["job_id"] == said["job_id"]


def test_pending_jobs_are_those_that_wait_for_a_worker(site: Web) -> None:
    waiting, running, over = site.add_job(), site.add_job(), site.add_job()
    site.set(running, state="running")
    site.end(over)
    (pending,) = site.get("/api/jobs/pending")["jobs"]
    assert (pending["job_id"], pending["status"]) == (waiting, "pending")


def test_a_claim_tells_an_executor_its_rank(site: Web) -> None:
    job, executor = site.add_job(), gpu_machine(site, "worker-1")
    site.set(job, waiting={"worker-1": "has 16.0Gi, 24.0Gi needed"})
    early = post(site, f"/api/jobs/{job}/claim", {"worker_id": "worker-1"}, 409)
    assert "24.0Gi needed" in early["detail"]
    site.add_node(job, executor)
    site.set(job, plan={"world_size": 2}, waiting={})
    said = post(site, f"/api/jobs/{job}/claim", {"worker_id": "worker-1"})
    assert (said["rank"], said["world_size"], said["worker_id"]) == (0, 2, executor)
    assert {"master_addr", "master_port"} <= set(said)
    site.end(job)
    assert "completed" in post(site, f"/api/jobs/{job}/claim", {"worker_id": "worker-1"}, 409)["detail"]


def test_a_worker_without_a_key_is_told_how_to_join(site: Web) -> None:
    job = site.add_job()
    for body in ({}, {"worker_id": "colab-1"}):
        refused = post(site, f"/api/jobs/{job}/claim", body, 403)
        assert refused["code"] == "forbidden"
        assert "trainforge sender token" in refused["hint"]


def test_a_jobs_status_is_read_and_a_workers_word_for_it_is_not_taken(site: Web) -> None:
    job = site.add_job()
    site.metric(job, loss=0.5)
    said = site.get(f"/api/jobs/{job}/status")
    assert (said["job_id"], said["status"], said["metrics"]) == (job, "pending", {"loss": 0.5})
    path = f"/api/jobs/{job}/status"
    assert site.ask("PUT", path, json={"status": "pending"}).status_code == 200
    refused = site.ask("PUT", path, json={"status": "completed", "results": {"loss": 0.1}})
    assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
    assert site.ask("PUT", path, json={"status": "cancelled"}).status_code == 200
    assert site.get(f"/api/jobs/{job}")["stopping"]


def test_workers_are_listed_and_shown_by_name(site: Web) -> None:
    executor = gpu_machine(site, "worker-1")
    (listed,) = site.get("/api/workers")["workers"]
    assert (listed["worker_id"], listed["name"], listed["status"]) == (executor, "worker-1", "online")
    assert site.get("/api/workers/worker-1") == site.get(f"/api/workers/{executor}") == listed
    assert listed["capabilities"]["gpu_count"] == 2
    assert site.ask("GET", "/api/workers/worker-9").status_code == 404


def test_a_distributed_job_tells_all_of_its_nodes(site: Web) -> None:
    job = site.add_job()
    first, second = gpu_machine(site, "gpu-1"), gpu_machine(site, "gpu-2")
    site.add_node(job, first, started=1.0)
    other = {"job_id": job, "attempt": 1, "rank": 1, "executor_id": second, "state": "failed", "gpus": []}
    with site.sender.store.write() as c:
        c.execute(sa.insert(schema.nodes).values(**other, lease_until=1, created=1, reason="out of memory"))
    said = site.get(f"/api/network/distributed/status/{job}")
    assert said["status"] == "running"
    assert [(node["machine_id"], node["status"]) for node in said["nodes"]] == [
        (first, "running"),
        (second, "failed"),
    ]
    assert said["nodes"][0]["start_time"] == "1970-01-01T00:00:01+00:00"
    assert said["nodes"][1]["reason"] == "out of memory"


def test_a_file_of_a_result_is_read_from_a_watched_repository(site: Web, tmp_path: Path) -> None:
    bare = init_bare(tmp_path / "watched.git")
    repo = Repo(f"git:{bare}", "watched", str(bare), "local")
    site.repo = site.sender.store.add_repository(repo, site.sender.now())
    job = site.add_job(result_branch="results")
    path = f"/api/network/local_job_file/{job}"
    early = site.ask("GET", f"{path}/model.txt")
    assert (early.status_code, early.json()["code"]) == (409, "conflict")
    project = Project(tmp_path / "results")
    folder = site.sender.store.job(job)["result_path"]
    commit = project.commit({f"{folder}/artifacts/a/model.txt": "weights", f"{folder}/result.json": "{}"})
    project.git("push", "--quiet", str(bare), "HEAD:refs/heads/results")
    site.end(job, result_commit=commit)
    answer = site.ask("GET", f"{path}/a/model.txt")
    assert (answer.status_code, answer.content) == (200, b"weights")
    assert answer.headers["content-disposition"] == "attachment; filename*=UTF-8''model.txt"
    assert site.ask("GET", f"{path}/result.json").content == b"{}"
    for nothing in ("none", "a", "%2e%2e/%2e%2e/result.json", "a%00b"):
        assert site.ask("GET", f"{path}/{nothing}").status_code == 404, nothing


def test_everything_needs_a_token_but_the_health(site: Web) -> None:
    assert httpx2.get(f"{site.url}/health").json()["status"] == "ok"
    for path in ("/api/workers", "/api/jobs/pending", "/api/network/machines", "/api/network/status"):
        assert httpx2.get(site.url + path).status_code == 401
