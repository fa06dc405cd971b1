"""Secrets as people handle them, below `/api/secrets`: their values go in and never come out."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from trainforge.config.views import SecretView
from trainforge.sender import vault
from trainforge.sender.actions import in_thread
from trainforge.sender.context import Sender
from trainforge.sender.problems import dump, read_model, read_query
from trainforge.sender.query_forms import RepositoryQuery
from trainforge.sender.store_secrets import StoredSecret

Repository = Annotated[str, StringConstraints(min_length=1, max_length=2048)]
Glob = Annotated[str, StringConstraints(min_length=1, max_length=255)]


class SecretAsk(BaseModel):
    """`branches` are globs; without any the secret is for the repository's default branch."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    name: str = Field(min_length=1, max_length=128)
    repository: Repository
    value: str = Field(max_length=64 * 1024, repr=False)
    branches: list[Glob] = Field(default=[], max_length=50)


class Nothing(BaseModel):
    model_config = ConfigDict(extra="forbid")


def _sender(request: Request) -> Sender:
    sender: Sender = request.app.state.sender
    return sender


def _by(request: Request) -> tuple[str, str]:
    """Who asks, and as the audit log names them."""
    name = str(request.state.person.name)
    return name, f"person:{name}"


def _views(sender: Sender, secrets: list[StoredSecret]) -> list[dict[str, Any]]:
    names = {repo.id: repo.name for repo in sender.store.repositories()}
    views = [
        SecretView(
            name=secret.name,
            repository=names.get(secret.repository_id, secret.repository_id),
            branches=secret.branches,
            changed=secret.changed,
            by=secret.by,
        )
        for secret in secrets
    ]
    return [view.model_dump(mode="json") for view in views]


async def list_secrets(request: Request) -> Response:
    sender, named = _sender(request), read_query(request, RepositoryQuery).repository

    def read() -> list[dict[str, Any]]:
        repository = vault.repository_of(sender, named) if named else ""
        return _views(sender, sender.store.secrets(repository))

    return dump({"secrets": await in_thread(read)})


async def set_secret(request: Request) -> Response:
    ask = await read_model(request, SecretAsk, vault.MAX_BYTES * 8)
    sender, (by, actor) = _sender(request), _by(request)

    def write() -> dict[str, Any]:
        made, remarks = vault.put(sender, **ask.model_dump(), by=by, actor=actor)
        return _views(sender, [made])[0] | {"remarks": remarks}

    return dump(await in_thread(write))


async def remove_secret(request: Request) -> Response:
    sender, name = _sender(request), request.path_params["secret"]
    repository, actor = read_query(request, RepositoryQuery).repository, _by(request)[1]

    def drop() -> dict[str, Any]:
        return _views(sender, [vault.remove(sender, name, repository, actor)])[0]

    return dump(await in_thread(drop))


async def rotate_key(request: Request) -> Response:
    await read_model(request, Nothing)
    return dump({"secrets": await in_thread(vault.rotate, _sender(request), _by(request)[1])})


routes = [
    Route("/secrets", list_secrets),
    Route("/secrets", set_secret, methods=["POST"]),
    Route("/secrets/rotate-key", rotate_key, methods=["POST"]),
    Route("/secrets/{secret}", remove_secret, methods=["DELETE"]),
]
