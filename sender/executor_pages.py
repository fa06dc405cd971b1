"""The pages of the executors: who is there, what each has and does, what is wrong with it, adding one."""

from __future__ import annotations

import shlex
from functools import partial
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from trainforge.config.errors import Conflict
from trainforge.config.messages import Name
from trainforge.config.views import ExecutorView
from trainforge.sender import actions, machines, registry, streams
from trainforge.sender.actions import in_thread
from trainforge.sender.context import Sender
from trainforge.sender.pages import guarded, render
from trainforge.sender.people import Person

STREAM = "/api/changes?page=executors"
VIEWS = ("grid", "table")
SOURCE = "https://github.com/trainforge/trainforge.git"
DOCKERFILE = "docs/examples/executor.Dockerfile"
VISITS = {"colab": "12h", "kaggle": "12h"}  # for how long a session goes on at most
VIEW = "executors-view"  # the document that remembers which one a person looks at


class AddAsk(BaseModel):
    """What the form for a new machine says."""

    model_config = ConfigDict(extra="ignore")

    name: Name
    kind: Literal["machine", "docker", "colab", "kaggle"] = "machine"
    approval: bool = False


def _of(request: Request) -> tuple[Sender, Person]:
    sender: Sender = request.app.state.sender
    person: Person = request.state.person
    return sender, person


def version(sender: Sender) -> str:
    return streams.version_of(*sender.queries.executors(sender.now()))


# --- all of them --------------------------------------------------------------------------------------


async def executors_page(request: Request) -> Response:
    sender, person = _of(request)
    view = request.query_params.get("view", "")
    if view in VIEWS:
        await in_thread(sender.store.put_document, VIEW, person.name, {"view": view}, sender.now())
    return await _list(request)


async def check_page(request: Request) -> Response:
    """Ask every machine for a sign of life, and say of each what is wrong."""
    return await _list(request, health=await machines.health_check(_of(request)[0]))


async def _list(request: Request, health: dict[str, Any] | None = None) -> Response:
    sender, person = _of(request)
    executors = await in_thread(sender.queries.executors, sender.now())
    kept = await in_thread(sender.store.document, VIEW, person.name)
    expected = [one for one in await in_thread(machines.everything, sender) if one["pending"]]
    return render(
        request, "executors.html", person=person, here="/executors", stream=STREAM,
        version=streams.version_of(*executors), executors=executors, expected=expected,
        view=(kept or {}).get("view", "grid"), health=health,
    )  # fmt: skip


# --- one ----------------------------------------------------------------------------------------------


async def executor_page(request: Request) -> Response:
    return await _one(request)


async def ping_page(request: Request) -> Response:
    sender, _ = _of(request)
    view = await _view(request)
    answer = await machines.ping(sender, view)
    fresh = await in_thread(sender.queries.executor, view.id, sender.now())
    return await _one(request, ping=answer, problems=machines.diagnose(fresh, answer, sender.now()))


async def _view(request: Request) -> ExecutorView:
    sender, _ = _of(request)
    return await in_thread(sender.queries.executor, request.path_params["executor"], sender.now())


async def _one(request: Request, **said: Any) -> Response:
    view = await _view(request)
    shown = {"ping": None, "problems": []} | said
    return render(
        request, "executor.html", person=_of(request)[1], here="/executors", stream=STREAM,
        version=streams.version_of(view), one=view, **shown,
    )  # fmt: skip


async def drain(request: Request) -> Response:
    """Also `undrain`, by the last part of the path."""
    sender, person = _of(request)
    drained = request.url.path.endswith("/drain")
    await in_thread(actions.drain_executor, sender, request.path_params["executor"], drained, person.actor)
    return _back(request)


async def approve(request: Request) -> Response:
    sender, person = _of(request)
    view = await _view(request)
    await in_thread(registry.approve_executor, sender, view.id, person.actor)
    return _back(request)


async def remove(request: Request) -> Response:
    sender, person = _of(request)
    await in_thread(actions.remove_executor, sender, request.path_params["executor"], person.actor)
    return RedirectResponse("/executors", 303)


def _back(request: Request) -> Response:
    return RedirectResponse(f"/executors/{request.path_params['executor']}", 303)


# --- adding one ---------------------------------------------------------------------------------------


async def add_page(request: Request) -> Response:
    return _form(request, {})


def _form(request: Request, said: dict[str, str], problem: str = "", status: int = 200) -> Response:
    return render(
        request, "executor_add.html", person=_of(request)[1], here="/executors", status=status,
        said={"name": "", "kind": "machine", "approval": ""} | said, problem=problem, line="",
        name="", joined=None, waiting=False,
    )  # fmt: skip


async def add(request: Request) -> Response:
    """Expect a machine, and show the line that has it join: once, as it holds a token."""
    sender, person = _of(request)
    form = getattr(request.state, "form", {})
    try:
        ask = AddAsk.model_validate(form)
    except ValidationError:
        return _form(request, form, "A name has letters, digits, dots and dashes, at most 63 of them.", 422)
    visits = ask.kind in VISITS
    try:
        kind: dict[str, Any] = {"actor": person.actor, "approval": ask.approval, "ephemeral": visits}
        added = await in_thread(partial(machines.expect, sender, ask.name, **kind))
    except Conflict as error:
        return _form(request, form, str(error), error.status)
    line = join_line(ask.kind, ask.name, added["command"])
    return render(
        request, "executor_add.html", person=person, here="/executors", stream=STREAM, version="",
        problem="", line=line, kind=ask.kind, name=ask.name, approval=ask.approval,
        expires=added["expires"], joined=None, waiting=True, again=f"/executors/add/{ask.name}",
        local=not sender.settings.public_url,
    )  # fmt: skip


async def arrival_page(request: Request) -> Response:
    """Whether an expected machine has come."""
    sender, person = _of(request)
    name = request.path_params["name"]
    found = await in_thread(machines.find, sender, name)
    joined = None if found["pending"] else await in_thread(sender.queries.executor, found["id"], sender.now())
    return render(
        request, "executor_add.html", person=person, here="/executors", stream=STREAM, version="", line="",
        problem="", name=name, joined=joined, waiting=joined is None,
    )  # fmt: skip


def join_line(kind: str, name: str, command: str) -> str:
    """What is pasted there: a shell's line, or a notebook's cell."""
    named = f"{command} --name {shlex.quote(name)}"
    if kind == "docker":
        kept = f"-v {shlex.quote(f'trainforge-{name}')}:/var/lib/trainforge trainforge-executor"
        lines = [
            f"docker build -t trainforge-executor -f {DOCKERFILE} {SOURCE}",
            f"docker run --rm {kept} {named.removeprefix('trainforge executor ')}",
            f"docker run -d --init --gpus all --restart unless-stopped --name {shlex.quote(name)} {kept}",
        ]
        return " &&\n".join(lines)
    if kind in VISITS:
        return f"!pip install -q trainforge\n!{named} --session-ends {VISITS[kind]}"
    return f"pip install trainforge && {named} && trainforge executor start"


_ONE = "/executors/{executor}"
routes = [
    Route("/executors", guarded(executors_page)),
    Route("/executors/check", guarded(check_page), methods=["POST"]),
    Route("/executors/add", guarded(add_page)),
    Route("/executors/add", guarded(add), methods=["POST"]),
    Route("/executors/add/{name}", guarded(arrival_page)),
    Route(_ONE, guarded(executor_page)),
    Route(f"{_ONE}/ping", guarded(ping_page), methods=["POST"]),
    Route(f"{_ONE}/drain", guarded(drain), methods=["POST"]),
    Route(f"{_ONE}/undrain", guarded(drain), methods=["POST"]),
    Route(f"{_ONE}/approve", guarded(approve), methods=["POST"]),
    Route(f"{_ONE}/remove", guarded(remove), methods=["POST"]),
]
