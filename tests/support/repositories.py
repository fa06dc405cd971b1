"""A project as its owner uses it, and what the built-in git server is told by its."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.routing import BaseRoute, Mount
from starlette.types import Scope

from support.waiting import wait_for
from trainforge.hooks.git_http import Access, GitHttpApp

ENVIRONMENT = {
    "PATH": os.environ["PATH"],
    "HOME": "/dev/null",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_AUTHOR_NAME": "Ada",
    "GIT_AUTHOR_EMAIL": "ada@example.org",
    "GIT_COMMITTER_NAME": "Ada",
    "GIT_COMMITTER_EMAIL": "ada@example.org",
    "LC_ALL": "C",
}


class Project:
    """A work tree as its owner uses it: with the plain git command."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        self.git("init", "--quiet", "--initial-branch=main")

    def git(self, *args: str, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            ["git", *args],
            cwd=self.path,
            env=ENVIRONMENT | environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert not check or done.returncode == 0, done.stderr
        return done

    def commit(self, files: dict[str, str | bytes] | None = None, message: str = "Change") -> str:
        for name, content in (files or {}).items():
            target = self.path / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content if isinstance(content, bytes) else content.encode())
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "-m", message)
        return self.git("rev-parse", "HEAD").stdout.strip()


@dataclass
class Server:
    """The built-in server, and what its owner decides: `users` maps a password to what it opens."""

    url: str
    root: Path
    users: dict[str, Access] = field(default_factory=dict)
    pushed: list[str] = field(default_factory=list)
    lines: Callable[[str], list[str]] = lambda name: [f"TrainForge: looked at {name}"]
    services: list[str] = field(default_factory=list)

    def at(self, name: str, password: str = "") -> str:
        """The address of a repository, as a person might type it with the password inside."""
        return self.url.replace("://", f"://me:{password}@" if password else "://") + f"/git/{name}.git"

    async def authorize(self, name: str, scope: Scope, service: str, authorization: str) -> Access | None:
        self.services.append(service)
        for password, access in self.users.items():
            if authorization == "Basic " + b64encode(f"{access.user}:{password}".encode()).decode():
                return access
        return None

    async def on_push(self, name: str) -> list[str]:
        self.pushed.append(name)
        return self.lines(name)


@contextmanager
def serving_git(root: Path, routes: Sequence[BaseRoute] = ()) -> Iterator[Server]:
    """The built-in git server over HTTP, on a port of its own, with `routes` beside it."""
    listener = socket.create_server(("127.0.0.1", 0))
    served = Server(f"http://127.0.0.1:{listener.getsockname()[1]}", root)
    served.users["s3cret-pass"] = Access("me", write=True, create=True)
    git_app = GitHttpApp(served.root, served.authorize, served.on_push)
    app = Starlette(routes=[*routes, Mount("/git", app=git_app)])
    runner = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off", ws="none"))
    thread = threading.Thread(target=runner.run, kwargs={"sockets": [listener]})
    thread.start()
    wait_for("server", lambda: runner.started)
    try:
        yield served
    finally:
        runner.should_exit = True
        thread.join(20)
        listener.close()
        assert not thread.is_alive()
