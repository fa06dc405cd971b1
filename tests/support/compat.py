"""A site with a project that can be planned and machines that could train it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from support.repositories import Project
from support.web import Web
from trainforge.config.messages import Gpu
from trainforge.hooks.git import init_bare
from trainforge.sender import events
from trainforge.sender.store_events import Repo

PLUGIN = "llama_trainer"
TRAINER = (
    "project: {name: llama}\ntraining: {script: train.py, params: {batch_size: 48, learning_rate: 0.1}}\n"
)


def add_plugin(site: Web, folder: Path, manifest: str = TRAINER) -> str:
    """A repository on the built-in server, pushed to; gives its commit. The push's job is ended."""
    sender = site.sender
    bare = init_bare(sender.git_root / f"{PLUGIN}.git")
    sender.store.add_repository(Repo(f"builtin:{PLUGIN}", PLUGIN, "", "builtin"), sender.now())
    project = Project(folder / PLUGIN)
    project.git("remote", "add", "origin", str(bare))
    commit = project.commit({"trainforge.yaml": manifest, "train.py": "print('hello')\n"}, "Start")
    project.git("push", "--quiet", "origin", "main")
    events.handle_hint(sender, PLUGIN, "push")
    for job in sender.queries.jobs():
        site.end(job.id)
    return commit


def gpu_machine(site: Web, name: str, gpus: int = 2) -> str:
    """An executor with that many GPUs of 24 GiB each."""
    has = [Gpu(uuid=f"{name}-{n}", model="RTX 3090", memory_bytes=24 << 30) for n in range(gpus)]
    return site.add_executor(name, gpus=has)


def post(site: Web, path: str, body: Any = None, status: int = 200) -> Any:
    answer = site.ask("POST", path, json={} if body is None else body)
    assert answer.status_code == status, f"{path}: {answer.status_code} {answer.text}"
    return answer.json()
