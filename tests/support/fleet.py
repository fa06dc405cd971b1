"""A sender, executors and projects as real processes in a folder of the test's own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx2
import psutil

from support.databases import prepared
from support.network import Network
from support.processes import commands, kill_all
from support.waiting import wait_for
from trainforge.config.settings import ExecutorSettings
from trainforge.executor.join import join as pair

ENDED = {"completed", "failed", "cancelled"}


class Fleet:
    """Runs the commands a user would type, with a home folder of its own, and cleans up after."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.home = root / "home"
        self.home.mkdir(parents=True)
        self.signals = root / "signals"  # where trainings see what a test tells them
        self.signals.mkdir()
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.url = ""
        self.token = ""
        self.variables: dict[str, str] = {}  # of every program besides
        self.network: Network | None = None

    def on(self, host: str) -> list[str]:
        """What a command begins with to run on that host, where the test has made hosts."""
        return self.network.within(host) if self.network and host in self.network.addresses else []

    def environment(
        self, program: str = "EXECUTOR", settings: dict[str, object] | None = None
    ) -> dict[str, str]:
        kept = {name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR") if name in os.environ}
        own = {
            "HOME": str(self.home),
            "XDG_CONFIG_HOME": str(self.home / ".config"),
            "XDG_DATA_HOME": str(self.home / ".local" / "share"),
            "GIT_AUTHOR_NAME": "Ada",
            "GIT_AUTHOR_EMAIL": "ada@example.org",
            "GIT_COMMITTER_NAME": "Ada",
            "GIT_COMMITTER_EMAIL": "ada@example.org",
            "GIT_CONFIG_NOSYSTEM": "1",
            "OMP_NUM_THREADS": "1",
            "TRAINFORGE_EXECUTOR_CONTAINER_ENGINE": "none",
        }
        kept["PATH"] = f"{Path(sys.executable).parent}:{kept['PATH']}"
        prefix = f"TRAINFORGE_{program}_"
        named = {prefix + name.upper(): str(value) for name, value in (settings or {}).items()}
        if failpoint := named.pop(f"{prefix}FAILPOINT", None):
            named["TRAINFORGE_FAILPOINT"] = failpoint
        return kept | own | self.variables | named

    def cli(
        self,
        *arguments: str,
        cwd: Path | None = None,
        check: bool = True,
        timeout: float = 120,
        settings: dict[str, object] | None = None,
        host: str = "",
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [*self.on(host), sys.executable, "-m", "trainforge", *arguments],
            cwd=cwd or self.root,
            env=self.environment(settings=settings),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        if check and done.returncode != 0:
            raise AssertionError(
                f"trainforge {' '.join(arguments)}: {done.returncode}\n{done.stdout}{done.stderr}"
            )
        return done

    def git(self, *arguments: str, cwd: Path, check: bool = True) -> str:
        done = subprocess.run(
            ["git", *arguments],
            cwd=cwd,
            env=self.environment(),
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        if check and done.returncode != 0:
            raise AssertionError(f"git {' '.join(arguments)}: {done.stdout}{done.stderr}")
        return done.stdout + done.stderr

    # --- processes -------------------------------------------------------------------------------------

    def _start(self, program: str, *arguments: str, settings: dict[str, object]) -> None:
        log = (self.root / f"{program}.log").open("ab")
        self.processes[program] = subprocess.Popen(
            [*self.on(program), sys.executable, "-m", "trainforge", *arguments],
            env=self.environment(arguments[0].upper(), settings),
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            cwd=self.root,
            start_new_session=True,
        )
        log.close()

    def begin(self, name: str, *arguments: str, settings: dict[str, object]) -> None:
        """Start a command that runs until this fleet is closed, and do not wait for anything."""
        self._start(name, *arguments, settings=settings)

    def start_sender(self, **settings: object) -> None:
        data = prepared(self.root / "sender")
        # A restarted sender must come back where its executors look for it.
        port = int(self.url.rsplit(":", 1)[1]) if self.url else 0
        defaults: dict[str, object] = {
            "data_dir": data,
            "port": port,
            "heartbeat_every": 1,
            "poll_interval": 1,
            "allow_private_endpoints": True,  # push executors of the tests are on this machine
        }
        self._start("sender", "sender", "start", settings=defaults | settings)
        about = wait_for("sender", lambda: self._sender_file(data), 30, self.logs)
        self.url = about["url"].rstrip("/")
        client = json.loads((self.home / ".config" / "trainforge" / "client.json").read_text())
        self.token = client["token"]

    def start_again(self, name: str, settings: dict[str, object]) -> None:
        """Start what was killed, as it was started before, and do not wait until it is there."""
        if name == "sender":
            port = int(self.url.rsplit(":", 1)[1])
            self._start(
                name, "sender", "start", settings={"data_dir": self.root / name, "port": port} | settings
            )
        else:
            self._start(name, "executor", "start", settings=self._executor(name) | settings)

    def _sender_file(self, data: Path) -> dict[str, Any] | None:
        if self.processes["sender"].poll() is not None:
            raise AssertionError(f"the sender ended\n{self.logs()}")
        try:
            about: dict[str, Any] = json.loads((data / "sender.json").read_text())
        except (FileNotFoundError, ValueError):
            return None
        return about if about.get("pid") == self.processes["sender"].pid else None

    def add_executor(self, name: str, **settings: object) -> None:
        self.invite(name)
        self.start_executor(name, **settings)

    def invite(self, name: str) -> None:
        """What `trainforge executor join` does, without a process for it."""
        token = self.api("POST", "/api/join-tokens")["token"]
        pair(self.url, token, ExecutorSettings(data_dir=self.root / name, name=name))

    def join(self, executor: str, token: str, *, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.cli(
            "executor",
            "join",
            self.url,
            token,
            check=check,
            settings=self._executor(executor),
            host=executor,
        )

    def _executor(self, name: str) -> dict[str, object]:
        data_dir = self.root / name
        return {"data_dir": data_dir, "name": name, "heartbeat_every": 1, "shared_folders": self.signals}

    def start_executor(self, name: str, **settings: object) -> None:
        self._start(name, "executor", "start", settings=self._executor(name) | settings)
        wait_for(f"executor {name}", lambda: self._online(name), 30, self.logs)

    def _online(self, name: str) -> bool:
        listed = self.api("GET", "/api/executors")["executors"]
        return any(e["name"] == name and e["status"] != "offline" and e["last_seen"] for e in listed)

    def kill(self, name: str) -> None:
        """kill -9 of that program alone: what it started goes on."""
        self.processes[name].kill()
        self.processes[name].wait()

    def terminate(self, name: str, timeout: float = 20) -> int:
        self.processes[name].terminate()
        return self.processes[name].wait(timeout)

    def left_behind(self) -> dict[psutil.Process, str]:
        """Processes that name this fleet's folder, with what they run: ours, supervisors, trainings."""
        return commands(naming=str(self.root))

    def close(self) -> None:
        for process in self.processes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                process.wait()
        kill_all(str(self.root))

    def logs(self) -> str:
        parts = []
        for path in sorted(self.root.glob("*.log")):
            parts.append(f"--- {path.name}\n{path.read_text(errors='replace')[-4000:]}")
        return "\n".join(parts)

    # --- what a user asks ------------------------------------------------------------------------------

    def api(self, method: str, path: str, **options: Any) -> Any:
        headers = {"Authorization": f"Bearer {self.token}"}
        answer = httpx2.request(method, self.url + path, headers=headers, timeout=60, **options)
        assert answer.status_code < 300, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer.json()

    def jobs(self) -> list[dict[str, Any]]:
        jobs: list[dict[str, Any]] = self.api("GET", "/api/jobs")["jobs"]
        return jobs

    def job(self, job: str) -> dict[str, Any]:
        detail: dict[str, Any] = self.api("GET", f"/api/jobs/{job}")
        return detail

    def the_job(self, count: int = 1) -> str:
        """The newest job, once there are `count`."""
        wait_for(f"{count} job(s)", lambda: len(self.jobs()) >= count, 30, self.logs)
        newest = max(self.jobs(), key=lambda job: job["created"])
        return str(newest["id"])

    def log_text(self, job: str) -> str:
        lines = self.api("GET", f"/api/jobs/{job}/logs?limit=5000")["lines"]
        return "\n".join(line["text"] for line in lines)

    def wait_ended(self, job: str, timeout: float = 240) -> dict[str, Any]:
        def probe() -> dict[str, Any] | None:
            detail = self.job(job)
            return detail if detail["state"] in ENDED else None

        return wait_for(f"end of job {job}", probe, timeout, lambda: f"{self.job(job)}\n{self.logs()}")

    def wait_log(self, job: str, text: str, timeout: float = 60) -> None:
        wait_for(
            f"{text!r} in the log",
            lambda: text in self.log_text(job),
            timeout,
            lambda: f"{self.job(job)}\n{self.log_text(job)}\n{self.logs()}",
        )

    # --- projects --------------------------------------------------------------------------------------

    def project(self, name: str, files: dict[str, str]) -> Path:
        """A repository with one commit whose remote is the sender's built-in git server."""
        folder = self.root / name
        folder.mkdir()
        self.git("init", "-q", "-b", "main", cwd=folder)
        self.git("remote", "add", "trainforge", f"{self.url}/git/{name}.git", cwd=folder)
        helper = f"!{sys.executable} -m trainforge git-credential"
        self.git("config", f"credential.{self.url}.helper", helper, cwd=folder)
        self.commit(folder, files)
        return folder

    def commit(self, folder: Path, files: dict[str, str], message: str = "Train") -> str:
        for path, text in files.items():
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text)
        self.git("add", "-A", cwd=folder)
        self.git("commit", "-q", "--allow-empty", "-m", message, cwd=folder)
        return self.git("rev-parse", "HEAD", cwd=folder).strip()

    def push(self, folder: Path, branch: str = "main") -> str:
        return self.git("push", "trainforge", f"HEAD:refs/heads/{branch}", cwd=folder)

    def result(self, name: str, branch: str = "trainforge-results") -> dict[str, bytes]:
        """The files of the results branch of a repository on the built-in server."""
        (bare,) = [path for path in (self.root / "sender").rglob(f"{name}.git") if (path / "HEAD").exists()]
        listed = self.git("ls-tree", "-r", "--name-only", branch, cwd=bare).splitlines()
        return {path: self._show(bare, branch, path) for path in listed}

    def _show(self, bare: Path, branch: str, path: str) -> bytes:
        return subprocess.run(
            ["git", "cat-file", "blob", f"{branch}:{path}"], cwd=bare, capture_output=True, check=True
        ).stdout
