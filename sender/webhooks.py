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
from trainforge.hooks import forges, github
from trainforge.hooks.github import PushHint
from trainforge.hooks.github_deliveries import (
    Delivery,
    Moved,
    Other,
    RefMoved,
    RepositoryDispatch,
    WorkflowDispatch,
    parse_delivery,
)
from trainforge.sender import actions, github_dispatch, github_events, github_hooks
from trainforge.sender.context import Sender
from trainforge.sender.github_hooks import Source, github_key
from trainforge.sender.problems import read_body
from trainforge.sender.store_events import NewEvent, Noted, Repo
from trainforge.sender.strangers import strangers

log = logging.getLogger(__name__)
LOOK_TIMEOUT_S = 4.0  # the pusher waits for the hook's lines
LOOKED = RefMoved | Moved | WorkflowDispatch | RepositoryDispatch  # after which the refs are read
UNKNOWN = "this repository is not watched here"


async def on_github(request: Request) -> Response:
    """Answered once what it says is noted; looking at the repository comes after the answer."""
    sender: Sender = request.app.state.sender
    with strangers(request):
        body = await read_body(request, github.MAX_BODY_BYTES)
        source = await asyncio.to_thread(github_hooks.source_of, sender, dict(request.headers))
        github.verify_signature(source.secrets, body, request.headers.get("x-hub-signature-256"))
    event, guid = request.headers.get("x-github-event", ""), request.headers.get("x-github-delivery", "")
    delivery = parse_delivery(event, guid, body)
    failpoint("03.sender.webhook")
    repo = await asyncio.to_thread(github_hooks.repository_of, sender, source, delivery)
    if isinstance(delivery.about, PushHint):
        return await _on_push(sender, source, repo, delivery)
    status, answer = await asyncio.to_thread(_note, sender, source, repo, delivery)
    sender.bell.ring(github_key(repo.id if repo else ""))
    if repo is not None and isinstance(delivery.about, LOOKED) and status != "known":
        sender.spawn(_look_after_answer(sender, repo.id))
    return JSONResponse({"status": status, "reason": answer}, 202)


def _note(sender: Sender, source: Source, repo: Repo | None, delivery: Delivery) -> tuple[str, str]:
    """Whatever is no push; first noted, then remembered, so that a crash between loses nothing."""
    if sender.store.knows_delivery("github", delivery.id):
        return "known", "this delivery has been here before"
    github_hooks.note_seen(sender, source, repo, delivery)
    answer = _follow(sender, source, repo, delivery)
    sender.store.first_delivery("github", delivery.id, sender.now())
    return answer


def _follow(sender: Sender, source: Source, repo: Repo | None, delivery: Delivery) -> tuple[str, str]:
    about = delivery.about
    if isinstance(about, Other) and delivery.event != "ping":
        return "ignored", github_events.IGNORED
    if repo is None and delivery.repository is not None and delivery.event != "ping":
        return "ignored", UNKNOWN
    if isinstance(about, Other | RefMoved):
        return "accepted", ""
    if repo is not None and isinstance(about, WorkflowDispatch | RepositoryDispatch):
        return github_dispatch.note(sender, source, repo, delivery)
    words = github_hooks.note(sender, source, repo, delivery)
    if not words and repo is not None:
        words = github_events.note(sender, repo, delivery)
    return ("ignored" if words == github_events.IGNORED else "accepted"), words


async def _on_push(sender: Sender, source: Source, repo: Repo | None, delivery: Delivery) -> Response:
    hint, push = delivery.about, None
    assert isinstance(hint, PushHint)  # noqa: S101
    if repo is not None and hint.after is not None:
        push = Noted(repo.id, hint.ref, hint.before or "", hint.after)
    if not await asyncio.to_thread(sender.store.first_delivery, "github", delivery.id, sender.now(), push):
        failpoint("07.sender.delivery_known")
        return JSONResponse({"status": "known", "reason": "this delivery has been here before"}, 202)
    if repo is None:
        refused = NewEvent(
            source="webhook", repository_id=hint.repository_ids[0], repository=hint.name, ref=hint.ref,
            decision="refused", reason=UNKNOWN,
        )  # fmt: skip
        await asyncio.to_thread(sender.store.record_event, refused, sender.now())
        return JSONResponse({"status": "ignored", "reason": UNKNOWN}, 202)
    failpoint("04.sender.delivery_noted")
    await asyncio.to_thread(github_hooks.note_seen, sender, source, repo, delivery)
    sender.spawn(_look_after_answer(sender, repo.id))
    return JSONResponse({"status": "accepted"}, 202)


async def _look_after_answer(sender: Sender, repository: str) -> None:
    failpoint("05.sender.delivery_answered")
    await actions.look(sender, repository, "webhook")


def _named(sender: Sender, pushed: forges.Pushed) -> Repo | None:
    repo = github_hooks.known(sender, pushed.ids)
    if repo is not None or not pushed.tail:
        return repo
    ending = [one for one in sender.store.repositories() if one.id.lower().endswith(pushed.tail)]
    return ending[0] if len(ending) == 1 else None


async def on_git_hook(request: Request) -> Response:
    """Of our own hook in bare repositories, and of GitLab, Gitea, Forgejo and Bitbucket.

    Answers with lines for the pusher's terminal.
    """
    sender: Sender = request.app.state.sender
    with strangers(request):
        body = await read_body(request, forges.MAX_BYTES)
        forges.verify(sender.settings.webhook_secrets, body, request.headers, sender.now())
    pushed = forges.read(body, request.headers)
    if pushed is None:
        return JSONResponse({"lines": ["TrainForge: nothing was pushed"]})
    repository = await asyncio.to_thread(_named, sender, pushed)
    if repository is None:
        raise NotFound(UNKNOWN, hint="`trainforge sender watch URL` has it watched")
    looking = sender.spawn(actions.look(sender, repository.id, "hook"))
    done, _ = await asyncio.wait({looking}, timeout=LOOK_TIMEOUT_S)
    lines = looking.result() if done else ["TrainForge: looking; `trainforge events` says what comes of it"]
    return JSONResponse({"lines": lines})


routes = [
    Route("/webhooks/github", on_github, methods=["POST"]),
    Route("/hooks/git", on_git_hook, methods=["POST"]),
]
