"""A git host of the test's own: bare repositories over HTTP that can be told to misbehave."""

from __future__ import annotations

import socket
import threading
from base64 import b64encode
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount
from starlette.types import Receive, Scope, Send

from support.waiting import wait_for
from trainforge.hooks.git_http import Access, GitHttpApp

USER, ROBOT, PASSWORD = "me", "robot", "s3cret-pass"
HEADER, ROBOTS = ("Basic " + b64encode(f"{name}:{PASSWORD}".encode()).decode() for name in (USER, ROBOT))


class Remote:
    """Everybody may read; its owner may push, and robots what the hook lets pass.

    `answers` are given to those who ask to push, before anything else.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(parents=True)
        self.answers: list[int] = []
        self.git = GitHttpApp(root, self._authorize, self._pushed)
        listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        app = Starlette(routes=[Mount("/git", app=self._serve)])
        self._server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off", ws="none"))
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [listener]}, daemon=True)
        self._thread.start()
        wait_for("git host", lambda: self._server.started)

    def close(self) -> None:
        self._server.should_exit = True
        self._thread.join(20)

    def bare(self, name: str) -> Path:
        return self.root / f"{name}.git"

    def refuse(self, script: str) -> None:
        """Have this decide on every robot's push, as a host's own rules do; empty allows all."""
        hook = self.root / ".hooks" / "pre-receive"
        hook.write_text("#!/bin/sh\n" + (script or "exit 0\n"))

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.answers and b"git-receive-pack" in scope["query_string"]:
            status = self.answers.pop(0)
            headers = {"WWW-Authenticate": 'Basic realm="test"'} if status == 401 else {}
            await PlainTextResponse("not now", status, headers)(scope, receive, send)
            return
        await self.git(scope, receive, send)

    async def _authorize(self, name: str, scope: Any, service: str, authorization: str) -> Access | None:
        if authorization == HEADER:
            return Access(USER, write=True, create=True)
        if authorization == ROBOTS:  # restricted to everything, for that is what runs the hook
            return Access(ROBOT, write=True, refs=("refs/",))
        return None if service == "git-receive-pack" else Access("anybody")

    async def _pushed(self, name: str) -> list[str]:
        return []
