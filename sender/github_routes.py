"""Connections to GitHub below `/api/github`, and the two pages on the way to a GitHub App."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, SecretStr, StringConstraints
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from trainforge.hooks.github_api import GITHUB
from trainforge.sender import github_apps, github_connect
from trainforge.sender.actions import in_thread
from trainforge.sender.context import Sender
from trainforge.sender.github_connect import Wanted
from trainforge.sender.pages import guarded, render
from trainforge.sender.problems import dump, read_model, read_query
from trainforge.sender.query_forms import RepositoryQuery
from trainforge.sender.strangers import strangers

FullName = Annotated[str, StringConstraints(min_length=3, max_length=160)]
Address = Annotated[str, StringConstraints(max_length=2048)]


class _Ask(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)


class ConnectAsk(_Ask):
    """By a `token`, by the number of an `app`, or by what it was connected with before.

    `name` is what it is called here; without `hook` pushes are found by polling alone. `api_url` is GitHub's
    own where nothing else is said or known.
    """

    repository: FullName
    token: SecretStr = Field(default=SecretStr(""), max_length=1024)
    app: int | None = None
    api_url: Address = ""
    name: str = Field(default="", max_length=120)
    hook: bool = True


class CheckAsk(_Ask):
    """`repository` as at GitHub, or as it is called here."""

    repository: str = Field(min_length=1, max_length=2048)


class AppAsk(_Ask):
    """Of an `organization`, or of the person who agrees."""

    api_url: Address = GITHUB
    organization: str = Field(default="", max_length=80)


def _sender(request: Request) -> Sender:
    sender: Sender = request.app.state.sender
    return sender


async def list_connections(request: Request) -> Response:
    sender = _sender(request)

    def read() -> dict[str, Any]:
        connections = [github_connect.view(sender, one) for one in sender.store.connections()]
        apps = [github_apps.view(app) for app in sender.store.apps()]
        return {
            "connections": [one.model_dump(mode="json") for one in connections],
            "apps": [one.model_dump(mode="json") for one in apps],
        }

    return dump(await in_thread(read))


async def connect(request: Request) -> Response:
    ask, person = await read_model(request, ConnectAsk), request.state.person
    wanted = Wanted(
        ask.repository, ask.token.get_secret_value().strip(), ask.app, ask.api_url, ask.name, ask.hook
    )
    report = await github_connect.connect(
        _sender(request), wanted, by=person.name, actor=f"person:{person.name}"
    )
    return dump(report)


async def check(request: Request) -> Response:
    ask = await read_model(request, CheckAsk)
    return dump(await github_connect.check(_sender(request), ask.repository))


async def disconnect(request: Request) -> Response:
    named = read_query(request, RepositoryQuery).repository
    actor = f"person:{request.state.person.name}"
    return dump(await in_thread(github_connect.disconnect, _sender(request), named, actor))


async def begin_app(request: Request) -> Response:
    ask, sender = await read_model(request, AppAsk), _sender(request)
    by = request.state.person.name

    def begin() -> dict[str, Any]:
        url, expires = github_apps.begin(sender, api_url=ask.api_url, organization=ask.organization, by=by)
        return {"url": url, "expires": expires}

    return dump(await in_thread(begin))


# --- pages: whoever has the state that an admin was given --------------------------------------------------


async def app_form(request: Request) -> Response:
    sender, state = _sender(request), request.query_params.get("state", "")
    with strangers(request):
        found = await in_thread(github_apps.form, sender, state)
    request.state.form_action = found.site
    return render(request, "github_app.html", form=found)


async def app_made(request: Request) -> Response:
    """Where GitHub sends the browser: the App is kept, and its owner goes on to install it."""
    sender, query = _sender(request), request.query_params
    with strangers(request):
        app = await in_thread(github_apps.finish, sender, query.get("state", ""), query.get("code", ""))
    return RedirectResponse(github_apps.install_url(app), 303)


api_routes = [
    Route("/github", list_connections),
    Route("/github/connections", connect, methods=["POST"]),
    Route("/github/connections", disconnect, methods=["DELETE"]),
    Route("/github/check", check, methods=["POST"]),
    Route("/github/apps", begin_app, methods=["POST"]),
]
routes = [
    Route("/github/app/new", guarded(app_form)),
    Route("/github/app/made", guarded(app_made)),
]
