"""Real repositories, and the real built-in git server over HTTP on a port of its own."""

from __future__ import annotations

import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn
from hypothesis import settings
from starlette.applications import Starlette
from starlette.routing import Mount

from support.repositories import ENVIRONMENT, Project, Server
from support.waiting import wait_for
from trainforge.hooks import git
from trainforge.hooks.git_http import Access, GitHttpApp

settings.register_profile("busy machines", deadline=None)
settings.load_profile("busy machines")


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path / "project")


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A bare repository as any git server keeps one: it serves filters, and nothing else is special."""
    path = git.init_bare(tmp_path / "remote.git")
    subprocess.run(["git", "config", "uploadpack.allowFilter", "true"], cwd=path, env=ENVIRONMENT, check=True)
    return path


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    listener = socket.create_server(("127.0.0.1", 0))
    served = Server(f"http://127.0.0.1:{listener.getsockname()[1]}", tmp_path / "served")
    served.users["s3cret-pass"] = Access("me", write=True, create=True)
    git_app = GitHttpApp(served.root, served.authorize, served.on_push)
    app = Starlette(routes=[Mount("/git", app=git_app)])
    runner = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off", ws="none"))
    thread = threading.Thread(target=runner.run, kwargs={"sockets": [listener]})
    thread.start()
    wait_for("server", lambda: runner.started)
    yield served
    runner.should_exit = True
    thread.join(20)
    listener.close()
    assert not thread.is_alive()
