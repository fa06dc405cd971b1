"""The sender as one web application: its doors, its pages and its loops."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, cast

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.types import ASGIApp

from trainforge import __version__
from trainforge.config import discreet
from trainforge.config.errors import Forbidden, TrainForgeError
from trainforge.config.failpoints import failpoint
from trainforge.config.redact import Redactor
from trainforge.config.settings import SenderSettings
from trainforge.config.trust import digest_secret
from trainforge.hooks.git import check_version
from trainforge.hooks.git_http import Access, GitHttpApp
from trainforge.sender import (
    access,
    account,
    actions,
    api,
    assets,
    compare,
    compat,
    dashboard,
    executor_api,
    files_page,
    github_routes,
    github_sweep,
    github_teller,
    job_page,
    log_page,
    missing,
    notifying,
    openapi,
    pages,
    people_api,
    registry,
    schedules,
    serve,
    watching,
    webhooks,
)
from trainforge.sender.auth import SafeHeaders, basic_password
from trainforge.sender.context import Sender
from trainforge.sender.disk import TakesNothingNewWhenLow
from trainforge.sender.door import make_door
from trainforge.sender.keys import SenderKeys
from trainforge.sender.loops import core_loops
from trainforge.sender.notify import REPOSITORIES
from trainforge.sender.people import People
from trainforge.sender.placing import online_for
from trainforge.sender.problems import problem_response
from trainforge.sender.queries import Queries
from trainforge.sender.store import Store

log = logging.getLogger(__name__)
FOR_PROGRAMS = ("/api", "/v1", "/webhooks", "/hooks", "/git", "/health", "/static")
TRY_AGAIN_S = 1.0
LONG_S = 3600.0
Loop = Callable[[Sender], Coroutine[Any, Any, None]]


def open_sender(settings: SenderSettings) -> Sender:
    """The sender's state on disk, opened or made. Raises SettingsError when it cannot be used."""
    settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    store = Store.open(settings.database_url, settings.data_dir)
    keys = SenderKeys.load(settings.data_dir)
    sender = Sender(settings, store, keys, People(store), Queries(store))
    sender.queries.online_for = online_for(sender)
    sender.people.ensure_admin(sender.now())
    discreet.learn(sender, Redactor([*settings.webhook_secrets, settings.git_token.get_secret_value()]))
    return sender


def make_app(sender: Sender, loops: dict[str, Loop] | None = None) -> Starlette:
    """`loops` run while the application does; all of them by default."""
    running = LOOPS if loops is None else loops
    files = assets.Assets(assets.load(pages.HERE / "static"))

    @contextlib.asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(_supervise(sender, name, loop)) for name, loop in running.items()]
        try:
            yield
        finally:
            sender.bell.close()
            await _end([*tasks, *sender.tasks])

    app = Starlette(
        routes=access.protect(_routes(sender, files)),
        middleware=[
            Middleware(SafeHeaders),
            Middleware(TakesNothingNewWhenLow, disk=sender.disk, refuse=_refuse),
        ],
        exception_handlers={TrainForgeError: _refuse, HTTPException: _refuse, Exception: _refuse},
        lifespan=lifespan,
    )
    app.state.sender, app.state.door = sender, make_door(sender)
    app.state.templates = pages.environment(sender.now, files.address)
    return app


def _routes(sender: Sender, files: assets.Assets) -> list[BaseRoute]:
    return [
        Route("/health", health),
        Mount("/api", routes=[*openapi.routes, *compat.routes, *people_api.routes, *api.routes]),
        Mount("/git", app=cast(ASGIApp, git_server(sender))),
        Mount("/static", app=files),
        *executor_api.routes,
        *webhooks.routes,
        *dashboard.routes,
        *pages.routes,
        *job_page.routes,
        *log_page.routes,
        *files_page.routes,
        *compare.routes,
        *github_routes.routes,
        *account.routes,
    ]


async def health(request: Request) -> Response:
    sender: Sender = request.app.state.sender
    return JSONResponse({"status": "ok", "version": __version__, "sender": sender.id})


async def _refuse(request: Request, error: Exception) -> Response:
    """For people a page, for programs a problem document."""
    first = "/" + request.url.path.split("/", 2)[1]
    if first in FOR_PROGRAMS or "text/html" not in request.headers.get("accept", ""):
        return problem_response(error)
    return pages.problem_page(request, error)


# --- loops --------------------------------------------------------------------------------------------


async def _core(sender: Sender) -> None:
    async with core_loops(sender):
        while not sender.stopping:
            await sender.bell.wait("end", LONG_S)


LOOPS: dict[str, Loop] = {
    "core": _core,
    "poll": watching.poll,
    "watch": watching.watch_local,
    "schedule": schedules.run,
    "notify": notifying.run,
    "github": github_teller.run,
    "github-deliveries": github_sweep.run,
    "results": missing.run,
    "visitors": registry.send_visitors_off,
}


async def _supervise(sender: Sender, name: str, loop: Loop) -> None:
    """A loop that fails is a bug; it is told, and the loop goes on from what is stored."""
    while not sender.stopping:
        try:
            await loop(sender)
        except Exception:  # process boundary: one loop's bug must not end the others
            log.exception("the %s loop failed; it starts again", name)
        await sender.bell.wait(f"again:{name}", TRY_AGAIN_S)


async def _end(tasks: list[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


# --- the built-in git server --------------------------------------------------------------------------


def git_server(sender: Sender) -> GitHttpApp:
    async def authorize(name: str, _scope: dict[str, Any], service: str, header: str) -> Access | None:
        access = await asyncio.to_thread(git_access, sender, name, header)
        if access is not None and service == "git-receive-pack" and not access.refs:
            sender.disk.refuse_when_low()  # but a job's result is part of what was taken on
        return access

    async def on_push(name: str) -> list[str]:
        try:
            repo = await asyncio.to_thread(watching.builtin, sender, name)
        except Exception:
            sender.spawn(watching.note_later(sender, name))
            raise
        sender.bell.ring(REPOSITORIES)
        return await actions.look(sender, repo.id, "push")

    return GitHttpApp(sender.git_root, authorize, on_push)


def git_access(sender: Sender, name: str, header: str) -> Access | None:
    """What the password in a request to the git server opens.

    Raises:
        Forbidden: a job's password for another repository than the job's.
    """
    scheme, _, bearer = header.partition(" ")
    secret = bearer.strip() if scheme.lower() == "bearer" else basic_password(header)
    if not secret or len(secret) > 512:
        return None
    person = sender.people.by_token(secret, sender.now())
    if person is not None:
        return Access(person.name, write=person.may("operator"), create=person.may("operator"))
    job = sender.queries.job_access(digest_secret(secret), sender.now())
    if job is None:
        return None
    if job.repository != f"builtin:{name}":
        raise Forbidden("this password is for another repository")
    refs = (f"refs/heads/{job.result_branch}", "refs/trainforge/")
    return Access(f"job-{job.job}", write=True, refs=refs)


# --- the process --------------------------------------------------------------------------------------


def run_sender(settings: SenderSettings, *, login_link: bool = False) -> None:
    """Run a sender until SIGTERM or SIGINT, and end with exit code 0.

    `login_link` has it print a link for the first admin even where people have passwords.

    Raises:
        SettingsError: the address or the database cannot be used. Conflict: a sender runs here already.
        GitTooOld: no usable git.
    """
    check_version()
    serve.log_to_stderr()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, serve.leave)
    with (
        serve.only_one(settings.data_dir),
        contextlib.closing(serve.listen(settings.host, settings.port)) as listener,
    ):
        sender = open_sender(settings)
        failpoint("02.sender.start")
        serve.note_settings(sender)
        sender.local_url = serve.local_url(settings.host, listener.getsockname()[1])
        sender.base_url = settings.public_url.rstrip("/") or sender.local_url
        about = settings.data_dir / "sender.json"

        def listening() -> None:
            serve.welcome(sender, login_link=login_link)
            serve.announce(about, sender)

        server = serve.make_server(make_app(sender), sender, listening)
        try:
            serve.end_for_certain(server, about)
            server.run(sockets=[listener])
        finally:
            about.unlink(missing_ok=True)
            sender.store.close()
