"""Where events come from: several sources, one job; and why a push led to none."""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from pathlib import Path

import httpx2

from support.fleet import Fleet
from support.scripts import PROGRESS, UNTIL_TOLD, manifest
from support.waiting import wait_for

SECRET = secrets.token_hex(16)


def _bare(fleet: Fleet, name: str = "outside") -> tuple[Path, Path]:
    """A bare repository somewhere on this machine, and a clone that pushes to it."""
    bare = fleet.root / f"{name}.git"
    fleet.git("init", "-q", "--bare", "-b", "main", str(bare), cwd=fleet.root)
    work = fleet.root / name
    work.mkdir()
    fleet.git("init", "-q", "-b", "main", cwd=work)
    fleet.git("remote", "add", "trainforge", str(bare), cwd=work)
    return bare, work


def _announce(fleet: Fleet, repository: str, new: str, delivery: str) -> httpx2.Response:
    """A push webhook in GitHub's form."""
    body = json.dumps(
        {
            "ref": "refs/heads/main",
            "before": "0" * 40,
            "after": new,
            "created": False,
            "deleted": False,
            "forced": False,
            "repository": {
                "id": 1,
                "name": repository,
                "full_name": f"ada/{repository}",
                "clone_url": repository,
            },
            "commits": [],
            "head_commit": None,
            "pusher": {"name": "ada"},
        }
    ).encode()
    signature = hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()
    headers = {
        "X-GitHub-Event": "push",
        "X-GitHub-Delivery": delivery,
        "X-Hub-Signature-256": f"sha256={signature}",
        "Content-Type": "application/json",
    }
    return httpx2.post(f"{fleet.url}/webhooks/github", content=body, headers=headers, timeout=30)


def test_three_sources_of_the_same_commit_make_one_job(fleet: Fleet) -> None:
    """A watched local repository is announced by the watcher, by polling and by webhooks at once."""
    fleet.start_sender(webhook_secret=SECRET, poll_interval=1)
    fleet.add_executor("alpha")
    bare, work = _bare(fleet)
    fleet.cli("sender", "watch", str(bare), "--name", "outside")
    commit = fleet.commit(work, {"train.py": PROGRESS, "trainforge.yaml": manifest("outside")})
    fleet.push(work)
    for number in range(5):
        answer = _announce(fleet, str(bare), commit, f"delivery-{number % 2}")
        assert answer.status_code in {200, 202}, answer.text
    detail = fleet.wait_ended(fleet.the_job())
    assert detail["state"] == "completed", detail
    assert [job["commit"] for job in fleet.jobs()] == [commit]
    heads = fleet.git("for-each-ref", "--format=%(refname:short)", cwd=bare).split()
    assert "trainforge-results" in heads


def test_a_push_that_touches_no_manifest_is_explained(running: Fleet) -> None:
    project = running.project("quiet", {"notes.txt": "hello"})
    running.push(project)
    running.commit(project, {"notes.txt": "more"})
    running.push(project)
    wait_for("two events", lambda: len(running.api("GET", "/api/events")["events"]) >= 2, 20)
    said = running.cli("events").stdout
    assert "trainforge.yaml" in said
    assert running.jobs() == []


def test_pushing_results_triggers_nothing(running: Fleet) -> None:
    project = running.project("loop", {"train.py": PROGRESS, "trainforge.yaml": manifest("loop")})
    running.push(project)
    running.wait_ended(running.the_job())
    running.git("fetch", "-q", "trainforge", "trainforge-results", cwd=project)
    running.commit(project, {"notes.txt": "no change to the manifest"})
    running.push(project)
    wait_for(
        "event of the second push",
        lambda: sum(e["ref"] == "refs/heads/main" for e in running.api("GET", "/api/events")["events"]) >= 2,
        20,
    )
    assert len(running.jobs()) == 1


def test_the_post_receive_hook_tells_the_pusher_and_the_sender(fleet: Fleet) -> None:
    fleet.start_sender(webhook_secret=SECRET, poll_interval=600)
    fleet.add_executor("alpha")
    bare, work = _bare(fleet, "hooked")
    fleet.cli("sender", "watch", str(bare), "--name", "hooked")
    secret = fleet.root / "secret"
    secret.write_text(SECRET)
    secret.chmod(0o600)
    fleet.cli("hooks", "install", str(bare), "--secret-file", str(secret))
    fleet.commit(work, {"train.py": PROGRESS, "trainforge.yaml": manifest("hooked")})
    said = fleet.push(work)
    job = fleet.the_job()
    assert job[:8] in said, said
    assert fleet.wait_ended(job)["state"] == "completed"


def test_a_remote_that_is_away_makes_the_job_wait_and_say_so(fleet: Fleet) -> None:
    fleet.start_sender(poll_interval=1)
    fleet.add_executor("alpha")
    bare, work = _bare(fleet, "away")
    fleet.cli("sender", "watch", str(bare), "--name", "away")
    go_on = fleet.signals / "go-on"
    script = UNTIL_TOLD.format(go_on=str(go_on))
    fleet.commit(work, {"train.py": script, "trainforge.yaml": manifest("away")})
    fleet.push(work)
    job = fleet.the_job()
    fleet.wait_log(job, "training has begun")
    hidden = bare.rename(fleet.root / "hidden.git")
    go_on.touch()
    wait_for("word of the missing remote", lambda: fleet.job(job)["waiting"], 60, lambda: str(fleet.job(job)))
    assert fleet.job(job)["state"] == "running"
    hidden.rename(bare)
    assert fleet.wait_ended(job)["state"] == "completed"


def test_an_executor_that_does_not_fit_is_named_with_its_reason(running: Fleet) -> None:
    founding = (
        "project:\n  name: llama-finetune\n\n"
        "training:\n  script: train.py\n  requirements: requirements.txt\n\n"
        "resources:\n  gpu: 1\n  memory: 16Gi\n"
    )
    project = running.project(
        "llama", {"train.py": PROGRESS, "requirements.txt": "", "trainforge.yaml": founding}
    )
    running.push(project)
    job = running.the_job()
    wait_for("a reason to wait", lambda: running.job(job)["waiting"], 20)
    assert "GPU" in running.job(job)["waiting"]["alpha"]
    assert "GPU" in running.cli("status", job).stdout
    running.cli("stop", job)
    assert running.wait_ended(job)["state"] == "cancelled"
