"""The API of accounts and tokens: `/api/users`, `/api/tokens`, `/api/me`."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

from pydantic import Field, SecretStr
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from trainforge.config.errors import Forbidden, NotFound
from trainforge.config.messages import Name
from trainforge.config.views import Role, TokenView
from trainforge.sender.actions import in_thread
from trainforge.sender.api import Ask
from trainforge.sender.auth import client_address
from trainforge.sender.context import Sender
from trainforge.sender.passwords import check_password
from trainforge.sender.people import INVITATION_LIFE_S, LINK_LIFE_S, Person, account_name, grantable
from trainforge.sender.problems import dump, read_model

DAY_S = 24 * 3600
Secret = Annotated[SecretStr, Field(max_length=1024)]


class UserAsk(Ask):
    """Without a password, the answer has a link with which they set one."""

    name: str = Field(min_length=1, max_length=80)
    role: Role
    password: Secret | None = None


class RoleAsk(Ask):
    role: Role


class PasswordAsk(Ask):
    password: Secret


class OwnPasswordAsk(Ask):
    """Who came by a one-time link and has no password yet has none to give as the `current` one."""

    password: Secret
    current: Secret = SecretStr("")


class TokenAsk(Ask):
    """`role` is one's own by default; `days` none for a token without an end; `user` whose it shall be."""

    name: Name
    role: Role | None = None
    days: float | None = Field(default=None, gt=0, le=3650)
    user: str = Field(default="", max_length=80)


def _of(request: Request) -> tuple[Sender, Person]:
    sender: Sender = request.app.state.sender
    person: Person = request.state.person
    return sender, person


# --- accounts, for admins -------------------------------------------------------------------------------


async def list_users(request: Request) -> Response:
    sender, _ = _of(request)
    views = await in_thread(sender.people.users)
    return dump({"users": [view.model_dump(mode="json") for view in views]})


async def add_user(request: Request) -> Response:
    (sender, person), ask = _of(request), await read_model(request, UserAsk)
    if ask.password is not None:
        check_password(ask.password.get_secret_value(), account_name(ask.name))
    add = partial(sender.people.add_user, ask.name, ask.role, sender.now(), by=person.actor)
    view = await in_thread(add)
    answer: dict[str, Any] = view.model_dump(mode="json")
    if ask.password is not None:
        word = ask.password.get_secret_value()
        await sender.logins.change_password(sender, view.name, word, by=person.actor)
        return dump(answer | {"password": True})
    return dump(answer | await in_thread(_link, sender, view.name, person, INVITATION_LIFE_S))


async def change_role(request: Request) -> Response:
    (sender, person), ask = _of(request), await read_model(request, RoleAsk)
    named = request.path_params["user"]
    change = partial(sender.people.set_role, named, ask.role, sender.now(), by=person.actor)
    return dump(await in_thread(change))


async def remove_user(request: Request) -> Response:
    sender, person = _of(request)
    named = request.path_params["user"]
    remove = partial(sender.people.remove_user, named, sender.now(), by=person.actor)
    return dump(await in_thread(remove))


async def set_password(request: Request) -> Response:
    (sender, person), ask = _of(request), await read_model(request, PasswordAsk)
    account = await in_thread(sender.people.account, request.path_params["user"])
    word = ask.password.get_secret_value()
    await sender.logins.change_password(sender, account.name, word, by=person.actor)
    return dump({"name": account.name})


async def new_link(request: Request) -> Response:
    """Logs one browser in as that account, once, where a password can be set."""
    sender, person = _of(request)
    named = request.path_params["user"]
    return dump(await in_thread(_link, sender, named, person, INVITATION_LIFE_S))


async def new_own_link(request: Request) -> Response:
    """For the account of the token that asks; a token without one asks for the first admin."""
    sender, person = _of(request)
    return dump(await in_thread(_link, sender, person.name if person.user else "", person, LINK_LIFE_S))


def _link(sender: Sender, name: str, person: Person, life_s: float) -> dict[str, Any]:
    now = sender.now()
    secret = sender.people.new_link(now, name, life_s, by=person.actor)
    return {"url": f"{sender.base_url}/login?link={secret}", "expires": now + life_s}


async def log_out(request: Request) -> Response:
    """Everywhere: their own sessions for `/api/me`, else those of the account named."""
    sender, person = _of(request)
    named = request.path_params.get("user", person.name)
    await in_thread(partial(sender.people.end_sessions, named, sender.now(), by=person.actor))
    return dump({"name": named})


# --- one's own account ----------------------------------------------------------------------------------


async def show_me(request: Request) -> Response:
    _, person = _of(request)
    return dump({"name": person.name, "role": person.role, "account": person.user is not None})


async def change_own_password(request: Request) -> Response:
    (_, person), ask = _of(request), await read_model(request, OwnPasswordAsk)
    await own_password(request, person, ask.password.get_secret_value(), ask.current.get_secret_value())
    return dump({"name": person.name})


async def own_password(request: Request, person: Person, password: str, current: str) -> None:
    """Only whoever has no password yet need not give it.

    Raises:
        Forbidden: the token belongs to no account. Others as `Logins.change_password`.
    """
    sender: Sender = request.app.state.sender
    if person.user is None:
        raise Forbidden("this token belongs to no account", hint="log in as the account it is about")
    account = await in_thread(sender.people.account, person.name)
    await sender.logins.change_password(
        sender,
        person.name,
        password,
        by=person.actor,
        current=current if account.password else None,
        address=client_address(request),
    )


# --- tokens ---------------------------------------------------------------------------------------------


async def list_tokens(request: Request) -> Response:
    views = await in_thread(visible_tokens, *_of(request))
    return dump({"tokens": [view.model_dump(mode="json") for view in views]})


def visible_tokens(sender: Sender, person: Person) -> list[TokenView]:
    """One's own; an admin sees all."""
    if person.may("admin"):
        return sender.people.tokens()
    return sender.people.tokens(person.user) if person.user is not None else []


async def add_token(request: Request) -> Response:
    """The only answer that has the secret."""
    ask = await read_model(request, TokenAsk)
    return dump({"name": ask.name, "token": await in_thread(make_token, *_of(request), ask)})


def make_token(sender: Sender, person: Person, ask: TokenAsk) -> str:
    """Raises Forbidden: more than one may do, or for somebody else. NotFound: no such account."""
    if ask.user and account_name(ask.user) != person.name and not person.may("admin"):
        raise Forbidden("only an admin makes tokens for others")
    account = sender.people.account(ask.user) if ask.user else None
    role = grantable(person, ask.role or (account.role if account else person.role))
    owner = account.id if account else person.user
    life = ask.days * DAY_S if ask.days else None
    return sender.people.new_token(ask.name, sender.now(), life, role=role, user=owner, by=person.actor)


async def revoke_token(request: Request) -> Response:
    await in_thread(revoke, *_of(request), request.path_params["token"])
    return dump({"id": request.path_params["token"]})


def revoke(sender: Sender, person: Person, number: int) -> None:
    """Raises NotFound, also for a token of somebody else."""
    if person.may("admin"):
        sender.people.revoke(number, sender.now(), owner=None, by=person.actor)
    elif person.user is not None:
        sender.people.revoke(number, sender.now(), owner=person.user, by=person.actor)
    else:
        raise NotFound(f"there is no token {number}")


routes = [
    Route("/users", list_users),
    Route("/users", add_user, methods=["POST"]),
    Route("/users/{user}", change_role, methods=["PATCH"]),
    Route("/users/{user}", remove_user, methods=["DELETE"]),
    Route("/users/{user}/password", set_password, methods=["PUT"]),
    Route("/users/{user}/link", new_link, methods=["POST"]),
    Route("/users/{user}/logout", log_out, methods=["POST"]),
    Route("/login-links", new_own_link, methods=["POST"]),
    Route("/me", show_me),
    Route("/me/password", change_own_password, methods=["PUT"]),
    Route("/me/logout", log_out, methods=["POST"]),
    Route("/tokens", list_tokens),
    Route("/tokens", add_token, methods=["POST"]),
    Route("/tokens/{token:int}", revoke_token, methods=["DELETE"]),
]
