"""The pages of logging in and of one's own account; without any script, like all pages."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from trainforge.config.errors import MessageInvalid, NotFound, NotTrusted, TooMany
from trainforge.config.views import ROLES
from trainforge.sender import people_api
from trainforge.sender.actions import in_thread
from trainforge.sender.auth import (
    CSRF_FIELD,
    check_csrf,
    check_origin,
    clear_session,
    client_address,
    session_secret,
    set_session,
)
from trainforge.sender.context import Sender
from trainforge.sender.pages import guarded, render
from trainforge.sender.passwords import check_password
from trainforge.sender.people import Person
from trainforge.sender.people_api import TokenAsk
from trainforge.sender.problems import read_form, retry_header


def _of(request: Request) -> tuple[Sender, Person]:
    sender: Sender = request.app.state.sender
    person: Person = request.state.person
    return sender, person


# --- logging in -----------------------------------------------------------------------------------------


async def login_page(request: Request) -> Response:
    """Opening a link changes nothing: programs open links too."""
    sender: Sender = request.app.state.sender
    link = request.query_params.get("link", "")
    name = await in_thread(sender.people.link_name, link, sender.now()) if link else ""
    wanted = local_page(request.query_params.get("next"))
    return render(request, "login.html", link=link, next=wanted, name=name, problem="")


async def login(request: Request) -> Response:
    """By a one-time link, name and password, or an access token."""
    check_origin(request)
    sender: Sender = request.app.state.sender
    form = await read_form(request)
    wanted = local_page(form.get("next"))
    try:
        name, how = await _prove(request, sender, form)
        old = session_secret(request)
        start = sender.people.new_session
        secret = await in_thread(lambda: start(name, sender.now(), how=how, replaces=old))
    except (NotTrusted, NotFound, TooMany, MessageInvalid) as error:
        link = form.get("link", "") if isinstance(error, MessageInvalid) else ""
        said = f"{error.message}; {error.hint}" if error.hint else error.message
        name = form.get("username" if link else "name", "")[:80]
        shown = {"link": link, "next": wanted, "name": name, "problem": said}
        status = 401 if isinstance(error, NotFound) else error.status
        page = render(request, "login.html", status=status, **shown)
        page.headers.update(retry_header(error))
        return page
    response = RedirectResponse(wanted, 303)
    set_session(request, response, secret)
    return response


async def _prove(request: Request, sender: Sender, form: dict[str, str]) -> tuple[str, str]:
    """Whose account it is, and by what that was shown. Who has a link may set a password with it."""
    address, password = client_address(request), form.get("password", "")
    if link := form.get("link", ""):
        if password:
            check_password(password, "")
        name = await sender.logins.by_link(sender, link)
        if password:
            await sender.logins.set_password(sender, name, password, by=f"person:{name}")
        return name, "link"
    if token := form.get("token", "").strip():
        return await sender.logins.by_token(sender, token, address), "token"
    return await sender.logins.by_password(sender, form.get("name", ""), password, address), "password"


async def logout(request: Request) -> Response:
    check_origin(request)
    sender: Sender = request.app.state.sender
    form, secret = await read_form(request), session_secret(request)
    person = await in_thread(sender.people.by_session, secret, sender.now()) if secret else None
    if person is not None:
        check_csrf(person, request.headers.get("x-csrf-token", "") or form.get(CSRF_FIELD, ""))
        await in_thread(sender.people.end_session, secret)
    response = RedirectResponse("/login", 303)
    clear_session(request, response)
    return response


def local_page(path: str | None) -> str:
    """Where to go next, if that is a page of ours."""
    parts = urlsplit(path or "")
    plain = not parts.scheme and not parts.netloc and parts.path.startswith("/")
    odd = "\\" in (path or "") or (path or "").startswith("//")
    return str(path) if plain and not odd else "/jobs"


# --- one's own account ----------------------------------------------------------------------------------


async def account_page(request: Request) -> Response:
    return await _show(request)


async def _show(request: Request, **said: Any) -> Response:
    sender, person = _of(request)
    tokens = await in_thread(people_api.visible_tokens, sender, person)
    account = await in_thread(sender.people.account, person.name) if person.user is not None else None
    shown = {"made": "", "problem": "", "done": "", "roles": [role for role in ROLES if person.may(role)]}
    return render(
        request, "account.html", person=person, here="/account", tokens=tokens,
        has_password=bool(account and account.password), **shown | said,
    )  # fmt: skip


async def change_password(request: Request) -> Response:
    """Every session ends with the old password, this one too; so it is followed by a new one."""
    sender, person = _of(request)
    form = _form(request)
    if form.get("password", "") != form.get("again", ""):
        return await _show(request, status=422, problem="The two passwords differ.")
    try:
        await people_api.own_password(request, person, form.get("password", ""), form.get("current", ""))
    except (MessageInvalid, NotTrusted, TooMany) as error:
        status = 403 if isinstance(error, NotTrusted) else error.status
        said = "This is not your current password." if isinstance(error, NotTrusted) else str(error)
        page = await _show(request, status=status, problem=said)
        page.headers.update(retry_header(error))
        return page
    response = RedirectResponse("/account", 303)
    if person.cookie:
        start = sender.people.new_session
        secret = await in_thread(lambda: start(person.name, sender.now(), how="password"))
        set_session(request, response, secret)
    return response


async def make_token(request: Request) -> Response:
    form = _form(request)
    try:
        said = {name: form[name] for name in ("name", "role", "days") if form.get(name)}
        ask = TokenAsk.model_validate(said)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        return await _show(request, status=422, problem=f"{first['loc'][0]}: {first['msg']}")
    return await _show(request, made=await in_thread(people_api.make_token, *_of(request), ask))


async def revoke_token(request: Request) -> Response:
    await in_thread(people_api.revoke, *_of(request), request.path_params["token"])
    return RedirectResponse("/account", 303)


async def log_out_everywhere(request: Request) -> Response:
    sender, person = _of(request)
    end = sender.people.end_sessions
    await in_thread(lambda: end(person.name, sender.now(), by=person.actor))
    response = RedirectResponse("/login", 303)
    clear_session(request, response)
    return response


def _form(request: Request) -> dict[str, str]:
    """What the guard has read; a bearer token comes without a form."""
    form: dict[str, str] = getattr(request.state, "form", {})
    return form


routes = [
    Route("/login", guarded(login_page)),
    Route("/login", guarded(login), methods=["POST"]),
    Route("/logout", guarded(logout), methods=["POST"]),
    Route("/account", guarded(account_page)),
    Route("/account/password", guarded(change_password), methods=["POST"]),
    Route("/account/tokens", guarded(make_token), methods=["POST"]),
    Route("/account/tokens/{token:int}/revoke", guarded(revoke_token), methods=["POST"]),
    Route("/account/logout", guarded(log_out_everywhere), methods=["POST"]),
]
