"""People's JSON API for trust: approving executors, the sender's key, the audit log."""

from __future__ import annotations

from functools import partial

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from trainforge.config.views import AuditEntry, AuditVerdict
from trainforge.sender import actions, keys, registry
from trainforge.sender.actions import in_thread
from trainforge.sender.context import Sender
from trainforge.sender.problems import dump, read_model, read_query
from trainforge.sender.query_forms import AuditQuery, AuditVerifyQuery

MOST_ROWS = 1000


class Ask(BaseModel):
    model_config = ConfigDict(extra="forbid")


class InviteAsk(Ask):
    """`ephemeral`: a visitor, forgotten when it has gone; `max_jobs`: how many jobs it may have at all."""

    approval: bool = False
    ephemeral: bool = False
    max_jobs: int | None = Field(default=None, ge=1, le=1_000_000)


class RotateAsk(Ask):
    """`withdraw`: the old key counts no more, at once, and every executor has to join again."""

    withdraw: bool = False


def _sender(request: Request) -> Sender:
    sender: Sender = request.app.state.sender
    return sender


async def new_join_token(request: Request) -> Response:
    ask = await read_model(request, InviteAsk)
    make = partial(actions.invite, _sender(request), request.state.person.actor, **ask.model_dump())
    return dump(await in_thread(make))


async def approve_executor(request: Request) -> Response:
    await read_model(request, Ask)
    sender, named = _sender(request), request.path_params["executor"]

    def approve() -> BaseModel:
        found = sender.queries.executor(named, sender.now())
        registry.approve_executor(sender, found.id, request.state.person.actor)
        return sender.queries.executor(found.id, sender.now())

    return dump(await in_thread(approve))


async def rotate_key(request: Request) -> Response:
    ask = await read_model(request, RotateAsk)
    sender = _sender(request)
    overlap = 0.0 if ask.withdraw else sender.settings.key_overlap
    await in_thread(partial(keys.rotate, sender, request.state.person.actor, overlap=overlap))
    return dump({"fingerprint": sender.key.id, "until": sender.keys.until if overlap else sender.now()})


async def list_audit(request: Request) -> Response:
    asked = read_query(request, AuditQuery)
    limit = max(1, min(asked.limit, MOST_ROWS))
    read = partial(_sender(request).store.audit_rows, before=asked.before, limit=limit)
    entries = [AuditEntry.model_validate(dict(row)) for row in await in_thread(read)]
    return dump({"entries": [entry.model_dump(mode="json") for entry in entries]})


async def verify_audit(request: Request) -> Response:
    head = read_query(request, AuditVerifyQuery).head
    verdict = await in_thread(_sender(request).store.verify_audit, head)
    view = AuditVerdict(rows=verdict.rows, head=verdict.head, problems=list(verdict.problems))
    return dump(view)


routes = [
    Route("/join-tokens", new_join_token, methods=["POST"]),
    Route("/executors/{executor}/approve", approve_executor, methods=["POST"]),
    Route("/sender/rotate-key", rotate_key, methods=["POST"]),
    Route("/audit", list_audit),
    Route("/audit/verify", verify_audit),
]
