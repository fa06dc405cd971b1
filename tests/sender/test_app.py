"""The sender as a process: listening, refusing a second one, git over HTTP, hooks, ending in time."""

from __future__ import annotations

import hashlib
import hmac
import http.client
import json
import os
import shlex
import shutil
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from support.waiting import wait_for
from trainforge.config.trust import digest_secret
from trainforge.sender.store import Store

SECRET = "0123456789abcdef"
MANIFEST = "project: {name: digits}\ntraining: {script: train.py}\n"
RUN = """\
import sys
from trainforge.config.errors import TrainForgeError
from trainforge.config.settings import SenderSettings
from trainforge.sender.app import run_sender
try:
    run_sender(SenderSettings.load(None))
except TrainForgeError as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


class Process:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.data = root / "sender"
        self.child: subprocess.Popen[bytes] | None = None
        self.url = ""

    def environment(self, **settings: str) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.root),
            "XDG_CONFIG_HOME": str(self.root / "config"),
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_AUTHOR_NAME": "Ada",
            "GIT_AUTHOR_EMAIL": "ada@example.org",
            "GIT_COMMITTER_NAME": "Ada",
            "GIT_COMMITTER_EMAIL": "ada@example.org",
            "TRAINFORGE_SENDER_DATA_DIR": str(self.data),
            "TRAINFORGE_SENDER_PORT": "0",
            "TRAINFORGE_SENDER_WEBHOOK_SECRET": SECRET,
        } | settings

    def start(self) -> None:
        with (self.root / "log").open("ab") as log:
            command = [sys.executable, "-c", RUN]
            self.child = subprocess.Popen(command, env=self.environment(), stdout=log, stderr=log)
        about = wait_for("sender.json", self._about, 60, self.log)
        self.url = about["url"]

    def _about(self) -> dict[str, Any] | None:
        assert self.child is not None
        assert self.child.poll() is None, self.log()
        try:
            about: dict[str, Any] = json.loads((self.data / "sender.json").read_text())
        except FileNotFoundError:
            return None
        return about if about["pid"] == self.child.pid else None

    def end(self) -> int:
        assert self.child is not None
        self.child.terminate()
        return self.child.wait(30)

    def log(self) -> str:
        return (self.root / "log").read_text()

    @property
    def client(self) -> dict[str, str]:
        stored: dict[str, str] = json.loads((self.root / "config" / "trainforge" / "client.json").read_text())
        return stored

    @property
    def bearer(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.client['token']}"}

    def get(self, path: str) -> Any:
        return httpx2.get(self.url + path, headers=self.bearer, timeout=30).json()

    def git(self, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["git", *arguments], cwd=cwd, env=self.environment(), capture_output=True, text=True, check=False,
            timeout=60,
        )  # fmt: skip

    def commit(self, name: str, files: dict[str, str]) -> Path:
        folder = self.root / name
        folder.mkdir(exist_ok=True)
        self.git("init", "-q", "-b", "main", cwd=folder)
        for path, text in files.items():
            (folder / path).write_text(text)
        self.git("add", "-A", cwd=folder)
        self.git("commit", "-q", "-m", "Train", cwd=folder)
        return folder

    def push(
        self, folder: Path, name: str, password: str, ref: str = "HEAD:main"
    ) -> subprocess.CompletedProcess[str]:
        address = f"{self.url.replace('://', f'://x:{password}@')}/git/{name}.git"
        return self.git("push", address, ref, cwd=folder)


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Process]:
    made = Process(tmp_path)
    made.start()
    yield made
    if made.child is not None and made.child.poll() is None:
        made.child.kill()
        made.child.wait()


def test_it_announces_itself_lets_this_machine_in_and_cleans_up(process: Process) -> None:
    assert process.client["sender_url"] == process.url
    assert (process.data.stat().st_mode & 0o777) == 0o700
    assert process.get("/api/jobs") == {"jobs": []}
    link = next(word for word in process.log().split() if "/login?link=" in word)
    assert httpx2.get(link).status_code == 200
    token = process.client["token"]
    assert token not in process.log()
    assert process.end() == 0
    assert not (process.data / "sender.json").exists()
    process.start()  # on another port, with the same identity and token
    assert process.client == {"sender_url": process.url, "token": token}
    assert process.get("/api/jobs") == {"jobs": []}


def test_the_client_of_another_sender_is_kept_and_the_switch_is_named(process: Process) -> None:
    kept = process.root / "config" / "trainforge" / "client.json"
    assert process.end() == 0
    shutil.rmtree(process.data)
    kept.write_text(json.dumps({"sender_url": "https://other.example", "token": "tfp_theirs"}))
    process.start()
    assert process.client["token"] == "tfp_theirs"
    line = next(line for line in process.log().splitlines() if "to switch: " in line)
    assert "go on using https://other.example" in line
    switch = line.split("to switch: trainforge ")[1]
    done = subprocess.run(
        ["sh", "-c", f"{shlex.quote(sys.executable)} -m trainforge {switch}"],
        env=process.environment(), timeout=60, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert process.client["sender_url"] == process.url
    assert process.get("/api/jobs") == {"jobs": []}
    assert stat.S_IMODE((process.data / "admin.token").stat().st_mode) == 0o600


def test_a_second_sender_on_the_same_data_is_refused(process: Process) -> None:
    assert process.child is not None
    second = subprocess.run(
        [sys.executable, "-c", RUN],
        env=process.environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert second.returncode == 1
    assert "runs on" in second.stderr
    assert f"process {process.child.pid}" in second.stderr
    assert process.get("/api/jobs") == {"jobs": []}
    process.child.kill()  # the lock goes with the process, however that ends
    process.child.wait()
    process.start()
    assert process.get("/api/jobs") == {"jobs": []}


def test_a_taken_port_is_named(process: Process, tmp_path: Path) -> None:
    port = process.url.rsplit(":", 1)[1]
    other = process.environment(
        TRAINFORGE_SENDER_DATA_DIR=str(tmp_path / "other"), TRAINFORGE_SENDER_PORT=port
    )
    done = subprocess.run(
        [sys.executable, "-c", RUN], env=other, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert f"port {port}" in done.stderr
    assert "Traceback" not in done.stderr


def test_it_ends_in_time_with_polls_and_streams_open(process: Process) -> None:
    folder = process.commit("demo", {"trainforge.yaml": MANIFEST, "train.py": ""})
    assert process.push(folder, "demo", process.client["token"]).returncode == 0
    (job,) = [job["id"] for job in process.get("/api/jobs")["jobs"]]
    poll = http.client.HTTPConnection(process.url.removeprefix("http://"), timeout=60)
    poll.request("GET", f"/api/jobs/{job}/logs?wait=30", headers=process.bearer)
    paths = [f"/api/jobs/{job}/logs?page=1", "/api/changes?page=jobs"]
    begun = threading.Semaphore(0)
    ended: list[str] = []

    def hold(path: str) -> None:
        headers = {"Accept": "text/event-stream"} | process.bearer
        with httpx2.stream("GET", process.url + path, headers=headers, timeout=60) as answer:
            begun.release()
            for _ in answer.iter_bytes():
                pass
        ended.append(path)

    threads = [threading.Thread(target=hold, args=(path,)) for path in paths]
    for thread in threads:
        thread.start()
    for _ in paths:
        assert begun.acquire(timeout=30)
    before = time.monotonic()
    assert process.end() == 0
    assert time.monotonic() - before < 10
    for thread in threads:
        thread.join(10)
    assert sorted(ended) == sorted(paths)
    answered = poll.getresponse()
    assert (answered.status, json.load(answered)["lines"]) == (200, [])
    poll.close()


def test_a_push_to_the_built_in_server_makes_a_job_and_says_so(process: Process) -> None:
    folder = process.commit("demo", {"trainforge.yaml": MANIFEST, "train.py": ""})
    refused = process.push(folder, "demo", "tfp_wrong")
    assert refused.returncode != 0
    assert process.get("/api/repositories") == {"repositories": []}
    pushed = process.push(folder, "demo", process.client["token"])
    assert pushed.returncode == 0, pushed.stderr
    (job,) = process.get("/api/jobs")["jobs"]
    assert f"TrainForge: job {job['id'][:8]} queued" in pushed.stderr
    assert [(repo["id"], repo["kind"]) for repo in process.get("/api/repositories")["repositories"]] == [
        ("builtin:demo", "builtin")
    ]
    again = httpx2.post(
        f"{process.url}/api/jobs/{job['id'][:8]}/retry", headers=process.bearer, timeout=30
    ).json()
    assert again["rerun_of"] == job["id"]
    asked = {"repository": "demo", "commit": job["commit"], "overrides": {"resources.nodes": 2}}
    made = [
        httpx2.post(f"{process.url}/api/jobs", json=asked, headers=process.bearer, timeout=30).json()["id"]
        for _ in range(2)
    ]
    assert made[0] == made[1]
    assert len(process.get("/api/jobs")["jobs"]) == 3


def test_a_jobs_password_reaches_its_repository_and_results_alone(process: Process) -> None:
    folder = process.commit("demo", {"trainforge.yaml": MANIFEST, "train.py": ""})
    token = process.client["token"]
    for name in ("demo", "other"):
        assert process.push(folder, name, token).returncode == 0
    job = next(job["id"] for job in process.get("/api/jobs")["jobs"] if job["repository"] == "demo")
    store = Store(f"sqlite:///{process.data / 'trainforge.db'}")
    now = time.time()
    for secret, life in (("job-password", 60.0), ("old-password", -1.0)):
        store.add_job_credential(
            digest_secret(secret),
            job=job,
            executor="x",
            repository="builtin:demo",
            now=now - 2,
            expires=now + life,
        )
    store.close()
    results = "HEAD:refs/heads/trainforge-results"
    assert process.push(folder, "demo", "job-password", "HEAD:main2").returncode != 0
    assert process.push(folder, "demo", "job-password", "+HEAD~0:refs/heads/elsewhere").returncode != 0
    assert process.push(folder, "other", "job-password", results).returncode != 0
    assert process.push(folder, "demo", "old-password", results).returncode != 0
    allowed = process.push(folder, "demo", "job-password", results)
    assert allowed.returncode == 0, allowed.stderr


def _signed(body: bytes, secret: str = SECRET) -> dict[str, str]:
    signature = hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
    return {
        "X-Hub-Signature-256": f"sha256={signature}",
        "X-GitHub-Event": "push",
        "X-GitHub-Delivery": "1234-abcd",
    }


def _bare(process: Process) -> tuple[Path, Path]:
    bare = process.root / "outside.git"
    process.git("init", "-q", "--bare", "-b", "main", str(bare), cwd=process.root)
    return bare, process.commit("outside", {"trainforge.yaml": MANIFEST, "train.py": ""})


def _watch(process: Process, url: str) -> dict[str, Any]:
    answer = httpx2.post(
        f"{process.url}/api/repositories", json={"url": url}, headers=process.bearer, timeout=30
    )
    assert answer.status_code == 200, answer.text
    view: dict[str, Any] = answer.json()
    return view


def test_a_watched_repository_is_seen_on_disk(process: Process) -> None:
    bare, folder = _bare(process)
    view = _watch(process, str(bare))
    assert (view["name"], view["kind"], view["error"]) == ("outside", "local", "")
    assert _watch(process, str(bare))["id"] == view["id"]
    assert process.git("push", str(bare), "main", cwd=folder).returncode == 0
    (job,) = wait_for("job", lambda: process.get("/api/jobs")["jobs"], 30, process.log)
    assert job["repository"] == "outside"


def test_hooks_are_hints_that_must_be_signed(process: Process) -> None:
    bare, folder = _bare(process)
    _watch(process, str(bare))
    process.git("push", str(bare), "main", cwd=folder)
    head = process.git("rev-parse", "HEAD", cwd=folder).stdout.strip()
    zero = "0" * 40
    notice = {"repository": str(bare), "refs": [{"old": zero, "new": head, "ref": "refs/heads/main"}]}
    push = {"ref": "refs/heads/main", "before": zero, "after": head, "forced": False}
    push["repository"] = {"id": 1, "full_name": "ada/outside", "clone_url": str(bare)}
    strange = push | {
        "repository": {"id": 2, "full_name": "eve/x", "clone_url": "https://github.com/eve/x.git"}
    }
    for path, payload in (("/hooks/git", notice), ("/webhooks/github", push)):
        body = json.dumps(payload).encode()
        for headers in ({}, _signed(body, "wrong"), _signed(body + b" ")):
            assert httpx2.post(process.url + path, content=body, headers=headers).status_code == 401
        answer = httpx2.post(process.url + path, content=body, headers=_signed(body), timeout=30)
        assert answer.status_code in {200, 202}, answer.text
        broken = httpx2.post(process.url + path, content=b"{}", headers=_signed(b"{}"))
        assert broken.status_code == 400, broken.text
    (job,) = wait_for("job", lambda: process.get("/api/jobs")["jobs"], 30, process.log)
    assert job["commit"] == head
    body = json.dumps(strange).encode()
    headers = _signed(body) | {"X-GitHub-Delivery": "5678-efgh"}
    answer = httpx2.post(f"{process.url}/webhooks/github", content=body, headers=headers)
    assert answer.json()["status"] == "ignored"
    newest = process.get("/api/events")["events"][0]
    assert (newest["decision"], newest["repository"]) == ("refused", "eve/x")


def test_a_remote_that_does_not_answer_is_said_and_kept(process: Process) -> None:
    view = _watch(process, "http://127.0.0.1:9/nothing/here.git")
    assert view["kind"] == "remote"
    assert view["error"]
