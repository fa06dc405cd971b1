"""Doors for hints: GitHub's webhook and the post-receive hook of repositories elsewhere.

Both only say "look there": the heads are read from the repository itself, so a delivery that is lost,
doubled, late or wrong changes nothing.
"""

from __future__ import annotations

import asyncio
import logging

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from trainforge.config.errors import NotFound
from trainforge.config.failpoints import failpoint
from trainforge.hooks import github, scripts
from trainforge.sender import actions
from trainforge.sender.context import Sender
from trainforge.sender.problems import read_body
from trainforge.sender.store_events import NewEvent, Noted, Repo
from trainforge.sender.strangers import strangers

log = logging.getLogger(__name__)
LOOK_TIMEOUT_S = 4.0  # the pusher waits for the hook's lines


def _known(sender: Sender, ids: tuple[str, ...]) -> Repo | None:
    for repository in ids:
        try:
            return sender.store.repository(repository)
        except NotFound:
            continue
    return None


async def on_github(request: Request) -> Response:
    """202 once the delivery is noted; looking at the repository comes after the answer."""
    sender: Sender = request.app.state.sender
    with strangers(request):
        body = await read_body(request, github.MAX_BODY_BYTES)
        signature = request.headers.get("x-hub-signature-256")
        github.verify_signature(sender.settings.webhook_secrets, body, signature)
    delivery = request.headers.get("x-github-delivery", "")
    hint = github.parse_push(request.headers.get("x-github-event", ""), delivery, body)
    failpoint("03.sender.webhook")
    if hint is None:
        return JSONResponse({"status": "ignored", "reason": "not a push"}, 202)
    repository = await asyncio.to_thread(_known, sender, hint.repository_ids)
    push = None
    if repository is not None and hint.after is not None:
        push = Noted(repository.id, hint.ref, hint.before or "", hint.after)
    if not await asyncio.to_thread(sender.store.first_delivery, "github", delivery, sender.now(), push):
        failpoint("07.sender.delivery_known")
        return JSONResponse({"status": "known", "reason": "this delivery has been here before"}, 202)
    if repository is None:
        refused = NewEvent(
            source="webhook", repository_id=hint.repository_ids[0], repository=hint.name, ref=hint.ref,
            decision="refused", reason="this repository is not watched here",
        )  # fmt: skip
        await asyncio.to_thread(sender.store.record_event, refused, sender.now())
        return JSONResponse({"status": "ignored", "reason": "this repository is not watched here"}, 202)
    failpoint("04.sender.delivery_noted")
    sender.spawn(_look_after_answer(sender, repository.id))
    return JSONResponse({"status": "accepted"}, 202)


async def _look_after_answer(sender: Sender, repository: str) -> None:
    failpoint("05.sender.delivery_answered")
    await actions.look(sender, repository, "webhook")


async def on_git_hook(request: Request) -> Response:
    """Answers with lines for the pusher's terminal."""
    sender: Sender = request.app.state.sender
    with strangers(request):
        body = await read_body(request, scripts.MAX_NOTICE_BYTES)
        signature = request.headers.get("x-hub-signature-256")
        github.verify_signature(sender.settings.webhook_secrets, body, signature)
    notice = scripts.parse_notice(body)
    repository = await asyncio.to_thread(_known, sender, (notice.repository_id,))
    if repository is None:
        raise NotFound(
            "this repository is not watched here", hint="`trainforge sender watch URL` has it watched"
        )
    looking = sender.spawn(actions.look(sender, repository.id, "hook"))
    done, _ = await asyncio.wait({looking}, timeout=LOOK_TIMEOUT_S)
    lines = looking.result() if done else ["TrainForge: looking; `trainforge events` says what comes of it"]
    return JSONResponse({"lines": lines})


routes = [
    Route("/webhooks/github", on_github, methods=["POST"]),
    Route("/hooks/git", on_git_hook, methods=["POST"]),
]
