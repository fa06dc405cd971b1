"""A sender, executors and git repositories, struck, started again and questioned: all of them real."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import httpx2

from kill_matrix.remote import PASSWORD, ROBOT, USER, Remote
from support.fleet import ENDED, Fleet
from support.waiting import wait_for

SECRET = "kill-matrix-secret"
SENDER: dict[str, object] = {
    "heartbeat_every": 1, "lease_ttl": 4, "lost_after": 2, "poll_interval": 1, "webhook_secret": SECRET,
    "triggers_per_hour": 100_000,
}  # fmt: skip
EXECUTOR: dict[str, object] = {"poll_interval": 0.2, "git_username": ROBOT, "git_token": PASSWORD}
TRAIN = """\
import os, pathlib, sys, time
root = pathlib.Path({root!r})
with (root / "ran" / os.environ["TRAINFORGE_JOB_ID"]).open("a") as file:
    file.write("x")
pathlib.Path(os.environ["TRAINFORGE_OUTPUT_DIR"], "model.txt").write_text("trained")
print("training has begun", flush=True)
end = time.monotonic() + 60
while (root / "gates" / sys.argv[1]).exists() and time.monotonic() < end:
    time.sleep(0.05)
print('PROGRESS: {{"loss": 0.25}}', flush=True)
"""
MANIFEST = """\
project: {{name: matrix}}
training: {{script: train.py, launcher: python, args: ["{number}"]}}
timeout: {{grace: 2}}
"""
BROKEN = "project: {{name: matrix}}\ntraining: {{script: train.py, speed: {number}}}\n"


class Project:
    """A repository of one case: on the sender's own git server, or watched elsewhere."""

    def __init__(self, world: World, *, far: bool = False, manifest: str = MANIFEST) -> None:
        self.world, self.far, self.manifest = world, far, manifest
        number = next(world.numbers)
        self.number, self.name, self.commit = number, f"p{number}", ""
        fleet = world.fleet
        self.folder = fleet.root / "work" / self.name
        self.folder.mkdir(parents=True)
        fleet.git("init", "-q", "-b", "main", cwd=self.folder)
        base = world.remote.url if far else fleet.url
        self.url = f"{base}/git/{self.name}.git"
        fleet.git("remote", "add", "origin", self.url, cwd=self.folder)
        password = PASSWORD if far else fleet.token
        helper = f"!f() {{ echo username={USER}; echo password={password}; }}; f"
        fleet.git("config", "credential.helper", helper, cwd=self.folder)
        if far:
            fleet.commit(self.folder, {"README.md": "far"})
            self.push()
            fleet.api("POST", "/api/repositories", json={"url": self.url})

    @classmethod
    def on_disk(cls, world: World) -> Project:
        """In a repository of this machine that the sender does not watch yet."""
        project = cls(world)
        fleet, bare = world.fleet, world.fleet.root / "disk" / f"{project.name}.git"
        fleet.git("init", "-q", "--bare", "-b", "main", str(bare), cwd=fleet.root)
        fleet.git("remote", "set-url", "origin", str(bare), cwd=project.folder)
        project.url = str(bare)
        return project

    @property
    def bare(self) -> Path:
        if self.url.startswith("/"):
            return Path(self.url)
        if self.far:
            return self.world.remote.bare(self.name)
        return self.world.fleet.root / "sender" / "git" / f"{self.name}.git"

    @property
    def gate(self) -> Path:
        """While this file is there, the training goes on."""
        return self.world.fleet.root / "gates" / str(self.number)

    def change(self, **files: str) -> str:
        """Commit what leads to a job."""
        fleet = self.world.fleet
        self.number = next(self.world.numbers)
        texts = {"train.py": TRAIN.format(root=str(fleet.root))} | files
        texts["trainforge.yaml"] = self.manifest.format(number=self.number)
        self.commit = fleet.commit(self.folder, texts)
        return self.commit

    def push(self, *options: str) -> None:
        """As a user does: where the answer was lost, again until the remote has it."""
        fleet = self.world.fleet
        arguments = options or ("HEAD:refs/heads/main",)

        def pushed() -> bool:
            fleet.git("push", "-q", "--force", "origin", *arguments, cwd=self.folder, check=False)
            self.world.raise_the_dead()
            return bool(options) or self._stands()

        wait_for("push", pushed, 60, fleet.logs)

    def _stands(self) -> bool:
        head = self.world.fleet.git("rev-parse", "HEAD", cwd=self.folder).strip()
        return self.show("rev-parse", "refs/heads/main").strip() == head

    def show(self, *arguments: str) -> str:
        """What git says in the bare repository; empty where that fails, or there is none yet."""
        if not self.bare.is_dir():
            return ""
        done = subprocess.run(
            ["git", *arguments], cwd=self.bare, capture_output=True, text=True, check=False, timeout=30,
        )  # fmt: skip
        return done.stdout if done.returncode == 0 else ""

    def results(self, job: str) -> list[dict[str, Any]]:
        """Every result that was ever committed for a job."""
        found = []
        for line in self.show(
            "log", "--format=", "--name-status", "--no-renames", "trainforge-results"
        ).splitlines():
            status, _, path = line.partition("\t")
            if path.endswith(f"/{job}/result.json"):
                assert status == "A", f"{path} was changed after it was written"
                found.append(json.loads(self.show("show", f"trainforge-results:{path}") or "{}"))
        return found


class World:
    def __init__(self, root: Path, executors: tuple[str, ...] = ("alpha", "beta"), **sender: object) -> None:
        self.fleet = Fleet(root)
        self.armed = root / "armed"
        self.numbers = count(1)
        self.started: dict[str, dict[str, object]] = {}
        self.pids: dict[str, int] = {}
        for name in ("ran", "gates"):
            (root / name).mkdir()
        self.remote = Remote(root / "remote")
        self.start("sender", **sender)
        for name in executors:
            self.add(name)

    def close(self) -> None:
        self.fleet.close()
        self.remote.close()

    # --- processes ---------------------------------------------------------------------------------------

    @property
    def point(self) -> str:
        return f"@{self.armed}"

    def start(self, name: str, **settings: object) -> None:
        if name == "sender":
            self.started[name] = SENDER | {"failpoint": self.point} | settings
            self.fleet.start_sender(**self.started[name])
        else:
            # A training that counts how often it ran writes outside of what a sandbox lets it.
            self.started[name] = EXECUTOR | {"failpoint": self.point, "isolation": "process"} | settings
            self.fleet.start_executor(name, **self.started[name])

    def add(self, name: str, **settings: object) -> None:
        self.fleet.invite(name)
        self.start(name, **settings)

    def dead(self) -> list[str]:
        return [name for name in self.started if self.fleet.processes[name].poll() is not None]

    def _lost(self) -> bool:
        """Whether a program that lived when the point was armed has died, even if another runs already."""
        return any(self.fleet.processes[name].pid != pid for name, pid in self.pids.items()) or bool(
            self.dead()
        )

    def raise_the_dead(self, *, wait: bool = True) -> None:
        """Start again what was killed, the sender first."""
        for name in sorted(self.dead(), key=lambda name: name != "sender"):
            if wait:
                self.start(name, **self.started[name])
            else:
                self.fleet.start_again(name, self.started[name])

    def stop(self, name: str, number: int = signal.SIGKILL) -> None:
        self.fleet.processes[name].send_signal(number)
        self.fleet.processes[name].wait(30)

    def retire(self, name: str) -> None:
        """End an executor of one case for good."""
        del self.started[name]
        self.stop(name)

    def drain(self, name: str, *, again: bool = False) -> None:
        self.fleet.api("POST", f"/api/executors/{name}/{'undrain' if again else 'drain'}")

    # --- striking ----------------------------------------------------------------------------------------

    def arm(self, point: str, action: str) -> None:
        aside = self.armed.with_suffix(".new")
        aside.write_text(f"{point}:{action}")
        Path(f"{self.armed}.fired").unlink(missing_ok=True)
        self.pids = {name: self.fleet.processes[name].pid for name in self.started}
        aside.replace(self.armed)

    def disarm(self) -> None:
        self.armed.unlink(missing_ok=True)

    def await_strike(self, timeout: float = 30) -> None:
        """Wait until the armed point was reached."""
        armed = self.armed.read_text() if self.armed.exists() else "the point"
        wait_for(f"{armed} to fire", Path(f"{self.armed}.fired").exists, timeout, self.fleet.logs)

    def struck(self, action: str) -> None:
        """The same, and start again whom that killed."""
        self.await_strike()
        if action == "kill":
            wait_for("death", self._lost, 20, self.fleet.logs)
        self.raise_the_dead()

    # --- questions ---------------------------------------------------------------------------------------

    def jobs(self, commit: str) -> list[dict[str, Any]]:
        return [
            job for job in self.fleet.api("GET", "/api/jobs?limit=500")["jobs"] if job["commit"] == commit
        ]

    def job(self, project: Project, timeout: float = 30) -> str:
        found = wait_for(
            f"job of {project.commit}", lambda: self.quietly(lambda: self.jobs(project.commit)), timeout,
            self.fleet.logs,
        )  # fmt: skip
        assert len(found) == 1, found
        return str(found[0]["id"])

    def quietly(self, ask: Callable[[], Any]) -> Any:
        """While a sender is on its way back, nobody answers."""
        try:
            return ask()
        except (httpx2.HTTPError, AssertionError):
            return None

    def expect(self, project: Project, state: str = "completed", code: str = "") -> dict[str, Any]:
        """The project's newest commit has led to one job, and that to one result that says so."""
        job = self.job(project)

        def over() -> Any:
            detail = self.quietly(lambda: self.fleet.job(job))
            return detail if detail and detail["state"] in ENDED else None

        detail: dict[str, Any] = wait_for(
            f"end of {job}", over, 60, lambda: f"{self.story(job)}\n{self.fleet.logs()}"
        )
        assert (detail["state"], detail["code"]) == (state, code), self.story(job)
        (result,) = project.results(job)
        assert (result["job"], result["outcome"]) == (job, state), result
        return detail

    def story(self, job: str) -> str:
        return str(self.quietly(lambda: self.fleet.job(job)))

    def trainings(self, job: str) -> int:
        try:
            return len((self.fleet.root / "ran" / job).read_text())
        except FileNotFoundError:
            return 0

    def orphans(self) -> list[str]:
        """Trainings and supervisors that run though every job has ended."""
        ours = {process.pid for process in self.fleet.processes.values()}
        return [
            command
            for process, command in self.fleet.left_behind().items()
            if process.pid not in ours and process.is_running()
        ]
