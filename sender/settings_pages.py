"""The pages of what an admin looks after: repositories, secrets, people, join tokens, the audit log."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from trainforge.config.errors import MessageInvalid, TrainForgeError
from trainforge.config.views import ROLES, AuditEntry
from trainforge.sender import actions, vault
from trainforge.sender.actions import in_thread
from trainforge.sender.api import RepositoryAsk
from trainforge.sender.context import Sender
from trainforge.sender.notices_api import AgainAsk, again
from trainforge.sender.pages import guarded, render
from trainforge.sender.people import INVITATION_LIFE_S, Person
from trainforge.sender.people_api import UserAsk
from trainforge.sender.secrets_api import SecretAsk
from trainforge.sender.trust_api import InviteAsk

Model = TypeVar("Model", bound=BaseModel)
AUDIT_ROWS = 100


def _of(request: Request) -> tuple[Sender, Person]:
    sender: Sender = request.app.state.sender
    person: Person = request.state.person
    return sender, person


def _form(request: Request) -> dict[str, str]:
    form: dict[str, str] = getattr(request.state, "form", {})
    return form


def _ask(model: type[Model], said: dict[str, Any]) -> Model:
    """Raises MessageInvalid."""
    try:
        return model.model_validate(said)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise MessageInvalid(f"{first['loc'][0] if first['loc'] else 'form'}: {first['msg']}") from None


async def _show(request: Request, part: str, read: Callable[[], dict[str, Any]], **said: Any) -> Response:
    _, person = _of(request)
    shown = {"problem": None, "hint": "", "done": "", "made": ""} | await in_thread(read) | said
    here = "/settings" + (f"/{part}" if part != "repositories" else "")
    return render(request, "settings.html", person=person, here="/settings", at=here, part=part, **shown)


def _wrong(error: TrainForgeError) -> dict[str, Any]:
    return {"problem": error.message, "hint": error.hint, "status": error.status}


# --- repositories -------------------------------------------------------------------------------------


async def repositories_page(request: Request, **said: Any) -> Response:
    sender, _ = _of(request)
    return await _show(
        request, "repositories", lambda: {"repositories": sender.queries.repositories()}, **said
    )


async def watch(request: Request) -> Response:
    sender, person = _of(request)
    form = _form(request)
    try:
        ask = _ask(RepositoryAsk, {"url": form.get("url", "").strip(), "name": form.get("name") or None})
        view = await actions.watch(sender, ask.url, ask.name, person.actor)
    except TrainForgeError as error:
        return await repositories_page(request, **_wrong(error))
    return await repositories_page(request, done=f"{view.name} is watched from now on.")


async def unwatch(request: Request) -> Response:
    sender, person = _of(request)
    try:
        view = await in_thread(actions.unwatch, sender, _form(request).get("repository", ""), person.actor)
    except TrainForgeError as error:
        return await repositories_page(request, **_wrong(error))
    return await repositories_page(request, done=f"{view.name} is no longer watched; its jobs stay.")


# --- secrets ------------------------------------------------------------------------------------------


async def secrets_page(request: Request, **said: Any) -> Response:
    sender, _ = _of(request)

    def read() -> dict[str, Any]:
        repositories = sender.queries.repositories()
        names = {one.id: one.name for one in repositories}
        return {"secrets": sender.store.secrets(), "names": names, "repositories": repositories}

    return await _show(request, "secrets", read, **said)


async def set_secret(request: Request) -> Response:
    """A value goes in here, and no page ever shows it."""
    sender, person = _of(request)
    form = _form(request)
    said = {name: form.get(name, "") for name in ("name", "repository", "value")}
    said["name"] = said["name"].strip()
    try:
        ask = _ask(SecretAsk, said | {"branches": form.get("branches", "").split()})
        put = partial(vault.put, sender, **ask.model_dump(), by=person.name, actor=person.actor)
        made, remarks = await in_thread(put)
    except TrainForgeError as error:
        return await secrets_page(request, **_wrong(error))
    return await secrets_page(request, done=" ".join([f"{made.name} is kept.", *remarks]))


async def remove_secret(request: Request) -> Response:
    sender, person = _of(request)
    form = _form(request)
    named = (form.get("name", ""), form.get("repository", ""))
    await in_thread(vault.remove, sender, *named, person.actor)
    return RedirectResponse("/settings/secrets", 303)


# --- notifications --------------------------------------------------------------------------------------


async def notices_page(request: Request, **said: Any) -> Response:
    sender, _ = _of(request)

    def read() -> dict[str, Any]:
        return {"notices": sender.store.unsent_notices(), "targets": sorted(sender.settings.notify)}

    return await _show(request, "notifications", read, **said)


async def send_again(request: Request) -> Response:
    sender, person = _of(request)
    form = _form(request)
    try:
        ask = _ask(AgainAsk, {name: form.get(name, "") for name in ("job", "occasion", "target")})
        view = await in_thread(again, sender, ask, person.actor)
    except TrainForgeError as error:
        return await notices_page(request, **_wrong(error))
    return await notices_page(request, done=f"It is sent to {view.target} again.")


# --- people and machines ------------------------------------------------------------------------------


async def people_page(request: Request, **said: Any) -> Response:
    sender, _ = _of(request)
    return await _show(request, "people", lambda: {"users": sender.people.users(), "roles": ROLES}, **said)


async def add_person(request: Request) -> Response:
    sender, person = _of(request)
    form = _form(request)
    try:
        ask = _ask(UserAsk, {name: form.get(name, "") for name in ("name", "role")})
        add = partial(sender.people.add_user, ask.name, ask.role, sender.now(), by=person.actor)
        view = await in_thread(add)
        return await people_page(request, made=await _link(request, view.name))
    except TrainForgeError as error:
        return await people_page(request, **_wrong(error))


async def new_link(request: Request) -> Response:
    try:
        return await people_page(request, made=await _link(request, _form(request).get("name", "")))
    except TrainForgeError as error:
        return await people_page(request, **_wrong(error))


async def _link(request: Request, name: str) -> str:
    """A one-time link to hand to somebody, shown this once."""
    sender, person = _of(request)
    make = partial(sender.people.new_link, sender.now(), name, INVITATION_LIFE_S, by=person.actor)
    return f"{sender.base_url}/login?link={await in_thread(make)}"


async def change_role(request: Request) -> Response:
    sender, person = _of(request)
    form = _form(request)
    try:
        ask = _ask(UserAsk, {name: form.get(name, "") for name in ("name", "role")})
        await in_thread(partial(sender.people.set_role, ask.name, ask.role, sender.now(), by=person.actor))
    except TrainForgeError as error:
        return await people_page(request, **_wrong(error))
    return RedirectResponse("/settings/people", 303)


async def remove_person(request: Request) -> Response:
    sender, person = _of(request)
    named = _form(request).get("name", "")
    try:
        await in_thread(partial(sender.people.remove_user, named, sender.now(), by=person.actor))
    except TrainForgeError as error:
        return await people_page(request, **_wrong(error))
    return RedirectResponse("/settings/people", 303)


async def new_join_token(request: Request) -> Response:
    sender, person = _of(request)
    form = _form(request)
    said: dict[str, Any] = {"approval": "approval" in form, "ephemeral": "ephemeral" in form}
    try:
        ask = _ask(InviteAsk, said | {"max_jobs": form.get("max_jobs") or None})
    except TrainForgeError as error:
        return await people_page(request, **_wrong(error))
    make = partial(actions.invite, sender, person.actor, **ask.model_dump())
    return await people_page(request, made=(await in_thread(make))["command"])


# --- the audit log ------------------------------------------------------------------------------------


async def audit_page(request: Request) -> Response:
    sender, _ = _of(request)
    text = request.query_params.get("before", "")
    before = int(text) if text.isascii() and text.isdigit() and len(text) < 16 else 0

    def read() -> dict[str, Any]:
        rows = sender.store.audit_rows(before=before, limit=AUDIT_ROWS)
        entries = [AuditEntry.model_validate(dict(row)) for row in rows]
        verdict = sender.store.verify_audit("") if "verify" in request.query_params else None
        older = min((entry.n for entry in entries), default=0) if len(entries) == AUDIT_ROWS else 0
        return {"entries": entries, "verdict": verdict, "older": older}

    return await _show(request, "audit", read)


_PEOPLE = "/settings/people"
routes = [
    Route("/settings", guarded(repositories_page)),
    Route("/settings/repositories", guarded(watch), methods=["POST"]),
    Route("/settings/repositories/remove", guarded(unwatch), methods=["POST"]),
    Route("/settings/secrets", guarded(secrets_page)),
    Route("/settings/secrets", guarded(set_secret), methods=["POST"]),
    Route("/settings/secrets/remove", guarded(remove_secret), methods=["POST"]),
    Route(_PEOPLE, guarded(people_page)),
    Route(_PEOPLE, guarded(add_person), methods=["POST"]),
    Route(f"{_PEOPLE}/role", guarded(change_role), methods=["POST"]),
    Route(f"{_PEOPLE}/link", guarded(new_link), methods=["POST"]),
    Route(f"{_PEOPLE}/remove", guarded(remove_person), methods=["POST"]),
    Route("/settings/join-tokens", guarded(new_join_token), methods=["POST"]),
    Route("/settings/notifications", guarded(notices_page)),
    Route("/settings/notifications", guarded(send_again), methods=["POST"]),
    Route("/settings/audit", guarded(audit_page)),
]
