"""Bad input from outside: a clear answer, and nothing changed."""

from __future__ import annotations

import json
import socket

import httpx2

from support.fleet import Fleet
from support.scripts import FAILING, PROGRESS, manifest


def test_a_script_that_fails_shows_its_traceback_and_exit_code(running: Fleet) -> None:
    project = running.project("fails", {"train.py": FAILING, "trainforge.yaml": manifest("fails")})
    running.push(project)
    job = running.the_job()
    detail = running.wait_ended(job)
    assert (detail["state"], detail["code"]) == ("failed", "script_failed")
    assert detail["attempts"][-1]["nodes"][0]["exit_code"] == 1
    files = running.result("fails")
    page = files[f"{detail['result_path']}/README.md"].decode()
    assert "ZeroDivisionError: division by zero" in page
    assert "exit code 1" in page
    assert "ZeroDivisionError" in files[f"{detail['result_path']}/logs/rank0.log"].decode()
    status = running.cli("status", job, check=False).stdout
    assert "ZeroDivisionError" in status
    answer = httpx2.get(f"{running.url}/jobs/{job}", headers={"Authorization": f"Bearer {running.token}"})
    assert "ZeroDivisionError" in answer.text


def test_a_wrong_manifest_fails_with_every_place_named(running: Fleet) -> None:
    wrong = "project: {name: wrong}\ntraining:\n  scritp: train.py\n  requirements: [7]\n"
    wrong += "resources:\n  nodes: many\n"
    project = running.project("wrong", {"train.py": PROGRESS, "trainforge.yaml": wrong})
    running.push(project)
    detail = running.wait_ended(running.the_job())
    assert (detail["state"], detail["code"]) == ("failed", "manifest_invalid")
    page = running.result("wrong")[f"{detail['result_path']}/README.md"].decode()
    for place in ("trainforge.yaml:3:3", "trainforge.yaml:4:17", "trainforge.yaml:6:10"):
        assert place in detail["reason"]
        assert place.split(":", 1)[1] in page
    assert "script" in detail["reason"]
    checked = running.cli("validate", cwd=project, check=False)
    assert checked.returncode == 3
    assert "trainforge.yaml:3:3" in checked.stdout + checked.stderr


def test_a_commit_without_its_script_fails_before_training(running: Fleet) -> None:
    running.push(running.project("empty", {"trainforge.yaml": manifest("empty")}))
    detail = running.wait_ended(running.the_job())
    assert (detail["state"], detail["code"]) == ("failed", "script_missing")
    assert "train.py" in detail["reason"]


DOORS = [
    ("POST", "/v1/heartbeat"),
    ("POST", "/v1/claims"),
    ("POST", f"/v1/nodes/{'a' * 26}/1/0/journal"),
    ("POST", f"/v1/nodes/{'a' * 26}/1/0/credential"),
    ("POST", f"/v1/nodes/{'a' * 26}/1/0/turn"),
    ("GET", "/api/jobs"),
    ("POST", "/api/jobs"),
    ("POST", f"/api/jobs/{'a' * 26}/stop"),
    ("GET", "/api/executors"),
    ("POST", "/api/join-tokens"),
    ("GET", "/git/demo.git/info/refs?service=git-receive-pack"),
]


def test_nobody_gets_in_without_a_name(running: Fleet) -> None:
    for method, path in DOORS:
        for headers in ({}, {"Authorization": "Bearer tfp_wrong"}, {"Authorization": "TF-Proof a.b.c"}):
            answer = httpx2.request(method, running.url + path, headers=headers, content=b"{}", timeout=10)
            assert answer.status_code == 401, f"{path} {headers}: {answer.status_code} {answer.text}"
    assert running.jobs() == []


def test_webhooks_that_are_not_ours_change_nothing(fleet: Fleet) -> None:
    fleet.start_sender(webhook_secret="right")
    url = f"{fleet.url}/webhooks/github"
    unsigned = httpx2.post(url, content=b"{}", headers={"X-GitHub-Event": "push", "X-GitHub-Delivery": "1"})
    assert unsigned.status_code == 401
    forged = {"X-GitHub-Event": "push", "X-GitHub-Delivery": "1", "X-Hub-Signature-256": "sha256=" + "0" * 64}
    assert httpx2.post(url, content=b"{}", headers=forged).status_code == 401
    assert _announce_size(fleet.url, 26 * 1024 * 1024).startswith(b"HTTP/1.1 413 ")
    assert httpx2.get(f"{fleet.url}/health").status_code == 200
    assert fleet.jobs() == []
    assert fleet.api("GET", "/api/events")["events"] == []


def _announce_size(url: str, size: int) -> bytes:
    """The answer to a webhook that says how large it is, and sends nothing of it."""
    host, port = url.removeprefix("http://").split(":")
    head = f"POST /webhooks/github HTTP/1.1\r\nHost: {host}\r\nX-GitHub-Event: push\r\n"
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(f"{head}Content-Length: {size}\r\n\r\n".encode())
        return connection.recv(4096)


def test_no_secret_reaches_a_log_a_remote_or_a_result(running: Fleet) -> None:
    project = running.project("quiet", {"train.py": PROGRESS, "trainforge.yaml": manifest("quiet")})
    running.push(project)
    detail = running.wait_ended(running.the_job())
    assert detail["state"] == "completed"
    assert running.token not in running.logs()
    assert running.token not in (project / ".git" / "config").read_text()
    assert all(running.token.encode() not in data for data in running.result("quiet").values())
    for path in (running.root / "alpha").rglob("*"):
        if path.is_file() and path.stat().st_size < 1_000_000:
            assert running.token.encode() not in path.read_bytes(), path
    assert json.dumps(detail).find(running.token) < 0
