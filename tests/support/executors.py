"""Small projects in real repositories, and executors that run them."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from support.sender_double import NodeState, SenderDouble
from support.waiting import wait_for
from trainforge.config import messages as m
from trainforge.config.identity import job_id
from trainforge.config.settings import ExecutorSettings
from trainforge.executor.agent import Agent
from trainforge.executor.join import join

Start = Callable[..., subprocess.Popen[bytes]]

GIT = {
    "GIT_AUTHOR_NAME": "Ada", "GIT_AUTHOR_EMAIL": "ada@example.org", "GIT_COMMITTER_NAME": "Ada",
    "GIT_COMMITTER_EMAIL": "ada@example.org", "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1",
    "PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/nonexistent",
}  # fmt: skip


def git(*arguments: str, cwd: Path) -> str:
    return subprocess.run(
        ["git", *arguments], cwd=cwd, env=GIT, capture_output=True, text=True, check=True
    ).stdout.strip()


class Project:
    """A bare repository with one commit of `files`, and the order that runs it."""

    def __init__(self, root: Path, files: dict[str, str]) -> None:
        self.work = root / "project"
        self.bare = root / "project.git"
        root.mkdir(parents=True, exist_ok=True)
        git("init", "-q", "-b", "main", str(self.work), cwd=root)
        for path, text in files.items():
            (self.work / path).parent.mkdir(parents=True, exist_ok=True)
            (self.work / path).write_text(text)
        git("add", "-A", cwd=self.work)
        git("commit", "-q", "-m", "Train", cwd=self.work)
        git("clone", "-q", "--bare", str(self.work), str(self.bare), cwd=root)
        self.commit = git("rev-parse", "HEAD", cwd=self.work)
        self.blob = git("rev-parse", "HEAD:trainforge.yaml", cwd=self.work)

    def job(self, rerun: str = "") -> str:
        return job_id(f"git:{self.bare}", self.commit, "trainforge.yaml", self.blob, rerun=rerun)

    def order(self, **changes: Any) -> m.RunOrder:
        fields: dict[str, Any] = {
            "repository": m.Repository(id=f"git:{self.bare}", name="project", url=str(self.bare)),
            "ref": "refs/heads/main", "commit": self.commit, "manifest_path": "trainforge.yaml",
            "manifest_blob": self.blob, "project": "test", "nodes": 1, "processes_per_node": 1,
            "results_branch": "trainforge-results", "lease_ttl": 20.0,
        }  # fmt: skip
        return m.RunOrder(**(fields | changes))

    def results(self) -> dict[str, str]:
        """The results branch as path -> text; empty when there is none."""
        if not git("for-each-ref", "refs/heads/trainforge-results", cwd=self.bare):
            return {}
        paths = git("ls-tree", "-r", "--name-only", "trainforge-results", cwd=self.bare).splitlines()
        return {path: git("show", f"trainforge-results:{path}", cwd=self.bare) for path in paths}


def signals(root: Path) -> Path:
    """Where a training sees what a test tells it, even from a sandbox."""
    folder = root / "signals"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def settings(folder: Path, **changes: Any) -> ExecutorSettings:
    fields: dict[str, Any] = {
        "data_dir": folder,
        "name": folder.name,
        "heartbeat_every": 0.5,
        "poll_interval": 0.1,
        "shared_folders": [signals(folder.parent)],
    }
    return ExecutorSettings(**(fields | changes))


def joined(double: SenderDouble, folder: Path, **changes: Any) -> tuple[ExecutorSettings, str]:
    chosen = settings(folder, **changes)
    return chosen, join(double.url, double.join_token(), chosen).executor


@contextlib.contextmanager
def running(chosen: ExecutorSettings) -> Iterator[Agent]:
    agent = Agent(chosen)
    agent.start()
    try:
        yield agent
    finally:
        agent.close(stop_jobs=False)
        for thread in threading.enumerate():
            if thread.name == "claims":
                thread.join(60)


def process(
    chosen: ExecutorSettings, log: Path, env: dict[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """The executor as a program of its own, to be killed."""
    program = (
        "import logging, sys; logging.basicConfig(level=logging.INFO)\n"
        "from trainforge.config.settings import ExecutorSettings\n"
        "from trainforge.executor.program import run_executor\n"
        "run_executor(ExecutorSettings.model_validate_json(sys.argv[1]))\n"
    )
    with log.open("ab") as out:
        return subprocess.Popen(
            [sys.executable, "-c", program, chosen.model_dump_json()],
            stdout=out, stderr=out, stdin=subprocess.DEVNULL, env={**os.environ, **(env or {})},
        )  # fmt: skip


def ended(node: NodeState, timeout: float = 60) -> dict[str, Any]:
    wait_for(f"end of {node.key}", lambda: bool(node.data("ended")), timeout, lambda: story(node))
    return node.last("ended")


def forgotten(chosen: ExecutorSettings, node: NodeState, timeout: float = 60) -> None:
    folder = chosen.data_dir / "nodes" / str(node.key)
    wait_for(
        f"{node.key} forgotten",
        lambda: bool(node.data("published")) and not folder.exists(),
        timeout,
        lambda: story(node),
    )


def story(node: NodeState) -> str:
    return "\n".join(f"{record.n} {record.kind} {str(record.data)[:2000]}" for record in node.records)
