"""The executors' door, `/v1`: every request is signed by the executor's key, and only once.

Bodies are read whole and checked against their signature before anything in them is believed.
"""

from __future__ import annotations

import asyncio
import secrets

from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from trainforge.config.errors import MessageInvalid
from trainforge.config.failpoints import failpoint
from trainforge.config.messages import (
    Claim,
    GitCredential,
    JoinRequest,
    JournalAck,
    JournalBatch,
    KeyChange,
    Left,
    NodeKey,
    PushTurn,
    SecretsAsk,
)
from trainforge.config.trust import digest_secret
from trainforge.sender import dispatch, journals, publisher, registry, vault
from trainforge.sender.context import Sender
from trainforge.sender.github_access import job_credential
from trainforge.sender.pace import push_turn
from trainforge.sender.problems import dump, parse, read_body
from trainforge.sender.registry import Heard, Said
from trainforge.sender.store_members import Member
from trainforge.sender.strangers import strangers

BODY_LIMIT = 8 * 1024 * 1024
JOIN_LIMIT = 256 * 1024  # nobody is known yet
CREDENTIAL_LIFE_S = 3600.0


def _path(request: Request) -> str:
    """What was signed as path: as sent, with the query."""
    raw: bytes = request.scope.get("raw_path") or request.url.path.encode()
    query: bytes = request.scope.get("query_string", b"")
    return raw.decode("ascii", "replace") + (f"?{query.decode('ascii', 'replace')}" if query else "")


async def _let_in(request: Request, *, beats: bool = False) -> tuple[Sender, Heard, bytes]:
    """What is to be believed, and which executor says it."""
    body = await read_body(request, BODY_LIMIT)
    authorization = request.headers.get("authorization", "")
    said = Said(authorization, request.method, _path(request), body, beats)
    return request.app.state.sender, await request.app.state.door.do(said), body


async def _authenticated(request: Request) -> tuple[Sender, Member, bytes]:
    sender, heard, body = await _let_in(request)
    return sender, heard.member, body


def _node_key(request: Request) -> NodeKey:
    try:
        return NodeKey.model_validate(dict(request.path_params))
    except ValidationError as error:
        raise MessageInvalid("the path names no node") from error


async def join(request: Request) -> Response:
    sender: Sender = request.app.state.sender
    with strangers(request):
        body = await read_body(request, JOIN_LIMIT)
        said = parse(JoinRequest, body)
        authorization = request.headers.get("authorization", "")
        reply = await asyncio.to_thread(
            registry.join, sender, said, authorization=authorization, path=_path(request), body=body
        )
    return dump(reply)


async def heartbeat(request: Request) -> Response:
    _, heard, _ = await _let_in(request, beats=True)
    assert heard.reply is not None  # noqa: S101 - it is a heartbeat's
    return dump(heard.reply)


async def change_key(request: Request) -> Response:
    sender, member, body = await _authenticated(request)
    return dump(await asyncio.to_thread(registry.change_key, sender, member, parse(KeyChange, body)))


async def leave(request: Request) -> Response:
    sender, member, _ = await _authenticated(request)
    await asyncio.to_thread(registry.remove_executor, sender, member.id, f"executor:{member.id}")
    return dump(Left(executor=member.id))


async def claims(request: Request) -> Response:
    sender, member, body = await _authenticated(request)
    return dump(await dispatch.claim(sender, member, parse(Claim, body)))


async def journal(request: Request) -> Response:
    sender, member, body = await _authenticated(request)
    key = _node_key(request)

    def store() -> JournalAck:
        batch, ttl = parse(JournalBatch, body), sender.settings.lease_ttl
        stored = sender.store.append_journal(member.id, key, batch, sender.now(), ttl)
        failpoint("50.sender.journal_stored")
        if stored.intake is not None:
            journals.announce(sender, key, stored.intake, first=batch.after == 0)
        return JournalAck(acknowledged=stored.acknowledged)

    return dump(await asyncio.to_thread(store))


async def credential(request: Request) -> Response:
    """A password for the job's own repository, where the sender can make one: at its own git server, and
    at GitHub where an App of the sender's is installed; elsewhere the executor has its own."""
    sender, member, _ = await _authenticated(request)
    key = _node_key(request)

    def make() -> GitCredential:
        store = sender.store
        store.check_node(member.id, key)
        repo = store.repository(store.job(key.job)["repository_id"])
        if repo.kind != "builtin":
            return job_credential(sender, key.job, repo.id, repo.url) or GitCredential()
        secret = f"tfg_{secrets.token_urlsafe(32)}"
        now = sender.now()
        expires = now + CREDENTIAL_LIFE_S
        store.add_job_credential(
            digest_secret(secret),
            job=key.job,
            executor=member.id,
            repository=repo.id,
            now=now,
            expires=expires,
        )
        return GitCredential(username="job", password=secret, expires=expires)

    return dump(await asyncio.to_thread(make))


async def turn(request: Request) -> Response:
    """When the job's result may be pushed; whoever's turn it is pushes all that it has."""
    sender, member, _ = await _authenticated(request)
    key = _node_key(request)

    def ask() -> PushTurn:
        sender.store.check_node(member.id, key)
        repository = sender.store.job(key.job)["repository_id"]
        return PushTurn(wait_s=push_turn(sender, repository, member.id))

    return dump(await asyncio.to_thread(ask))


async def secret_values(request: Request) -> Response:
    sender, member, body = await _authenticated(request)
    ask = parse(SecretsAsk, body)
    return dump(await asyncio.to_thread(vault.give, sender, member.id, _node_key(request), ask))


async def record(request: Request) -> Response:
    """All that the sender knows of the job, for rank 0 to publish."""
    sender, member, _ = await _authenticated(request)
    key = _node_key(request)
    await asyncio.to_thread(sender.store.check_node, member.id, key)
    return dump(await asyncio.to_thread(publisher.record_of, sender, key.job))


_NODE = "/v1/nodes/{job}/{attempt:int}/{rank:int}"
routes = [
    Route("/v1/join", join, methods=["POST"]),
    Route("/v1/heartbeat", heartbeat, methods=["POST"]),
    Route("/v1/executors/me", leave, methods=["DELETE"]),
    Route("/v1/executors/me/key", change_key, methods=["POST"]),
    Route("/v1/claims", claims, methods=["POST"]),
    Route(f"{_NODE}/journal", journal, methods=["POST"]),
    Route(f"{_NODE}/credential", credential, methods=["POST"]),
    Route(f"{_NODE}/turn", turn, methods=["POST"]),
    Route(f"{_NODE}/secrets", secret_values, methods=["POST"]),
    Route(f"{_NODE}/record", record, methods=["GET"]),
]
