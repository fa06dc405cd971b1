"""A GitHub of the tests' own: `with serving_github(tmp_path) as github:`."""

from __future__ import annotations

import asyncio
import socket
import threading
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Mount, Route

from support.github.server import API, GitHub
from support.github.state import App, Installation, Repository
from support.waiting import wait_for
from trainforge.config.strict_json import read_json
from trainforge.hooks.git_http import Access, GitHttpApp

__all__ = ["App", "GitHub", "Installation", "Repository", "serving_github"]


@contextmanager
def serving_github(root: Path) -> Iterator[GitHub]:
    """A GitHub on a port of its own, its repositories below `root`; nothing it was asked may be wrong."""
    root.mkdir(parents=True, exist_ok=True)
    listener = socket.create_server(("127.0.0.1", 0))
    github = GitHub(f"http://127.0.0.1:{listener.getsockname()[1]}", root)
    server = uvicorn.Server(uvicorn.Config(_app(github), log_level="error", lifespan="off", ws="none"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        wait_for("GitHub", lambda: server.started)
        yield github
        github.settle()
    finally:
        server.should_exit = True
        thread.join(20)
        listener.close()
        github.close()
    assert not github.violations, "\n".join(github.violations)


def _app(github: GitHub) -> Starlette:
    async def api(request: Request) -> Response:
        path = request.url.path.removeprefix(API)
        body = await request.body()
        query = list(request.query_params.multi_items())
        headers = dict(request.headers)
        status, more, data = await asyncio.to_thread(
            github.answer, request.method, path, query, headers, body
        )
        return Response(data, status, more, "application/json")

    async def new_app(request: Request) -> Response:
        """The page where a person agrees to the App that a form of ours describes."""
        form = await request.form()
        manifest = read_json(str(form["manifest"]).encode())
        where = github.post_manifest(manifest, request.query_params.get("state", ""))
        return RedirectResponse(where, 302)

    async def authorize(name: str, _scope: Any, service: str, header: str) -> Access | None:
        return _git_access(github, name, service, header)

    async def on_push(name: str) -> list[str]:
        found = github.repository(name)
        assert found is not None
        await asyncio.to_thread(github.pushed, found)
        return []

    methods = ["GET", "POST", "PATCH", "PUT", "DELETE"]
    return Starlette(
        routes=[
            Route(API + "/{path:path}", api, methods=methods),
            Route("/settings/apps/new", new_app, methods=["POST"]),
            Mount("/", app=GitHttpApp(github.root, authorize, on_push)),
        ]
    )


def _git_access(github: GitHub, name: str, service: str, header: str) -> Access | None:
    """By a token as the password, as GitHub does; public repositories are read by anybody."""
    found = github.repository(name)
    scheme, _, encoded = header.partition(" ")
    secret = b64decode(encoded).decode().partition(":")[2] if scheme.lower() == "basic" else ""
    token = github.tokens.get(secret)
    writing = service == "git-receive-pack"
    if found is None or token is None or token.revoked:
        readable = found is not None and not found.private and not writing and not secret
        return Access("anybody") if readable else None
    may = token.is_for(found.id, private=found.private) and token.may(
        "contents", "write" if writing else "read"
    )
    return Access(token.user, write=writing) if may else None
