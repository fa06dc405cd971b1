"""What is put right at GitHub now and then: deliveries that did not arrive, tokens that nobody needs now.

GitHub keeps deliveries for three days and does not send any again by itself. Pushes are found by polling
anyway; comments and buttons have no other way here.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

from trainforge.config.errors import TrainForgeError
from trainforge.hooks.github_api import AppAccess, GitHubApi, GitHubBusy
from trainforge.sender import sealed
from trainforge.sender.context import Sender
from trainforge.sender.github_access import api_of, app_secrets, take_back
from trainforge.sender.github_connect import forget_old_secrets
from trainforge.sender.github_diagnosis import arrived, moment
from trainforge.sender.github_hooks import rename
from trainforge.sender.store_github import App, Connection

log = logging.getLogger(__name__)
EVERY_S = 600.0
KEPT_S = 3 * 86_400.0
TRIES = 5  # what was refused as often is wrong, not late
MOST = 100  # of one hook, in one sweep
PAGES = 10

Ask = Callable[..., tuple[dict[str, Any], Any]]


async def run(sender: Sender) -> None:
    """On start, and from then on at intervals."""
    while not sender.stopping:
        rest = await asyncio.to_thread(sweep, sender)
        await sender.bell.wait("github-sweep", rest)


def sweep(sender: Sender) -> float:
    """Look at every hook once; how many seconds to rest."""
    rest = EVERY_S
    works: list[Callable[[], None]] = [partial(take_back, sender), *_connections(sender), *_apps(sender)]
    for work in works:
        try:
            work()
        except GitHubBusy as error:
            rest = max(rest, error.until - sender.now())
        except TrainForgeError as error:
            log.info("GitHub's deliveries were not looked at: %s", error)
    return min(rest, KEPT_S / 6)


def _connections(sender: Sender) -> Iterator[Callable[[], None]]:
    unread = {view.id for view in sender.queries.repositories() if view.error}
    for connection in sender.store.connections():
        if connection.repository_id in unread:
            yield partial(_follow, sender, connection)
        if connection.hook_id is not None:
            yield partial(_sweep_hook, sender, connection)


def _apps(sender: Sender) -> Iterator[Callable[[], None]]:
    for app in sender.store.apps():
        yield partial(_sweep_app, sender, app)


def _follow(sender: Sender, connection: Connection) -> None:
    """Git cannot read it: it may have been renamed, and the delivery that said so been lost."""
    facts = api_of(sender, connection).facts(connection.full_name)
    if facts.number == connection.number and facts.full_name != connection.full_name:
        repo = sender.store.repository(connection.repository_id)
        rename(sender, repo, connection, facts.full_name)


def _sweep_hook(sender: Sender, connection: Connection) -> None:
    forget_old_secrets(sender, connection)
    begun = sender.now()
    with api_of(sender, connection).repository(connection.full_name, {}) as repository:
        path = f"/repos/{connection.full_name}/hooks/{connection.hook_id}/deliveries"
        ask_again(repository.requester.requestJsonAndCheck, path, since=begun - KEPT_S)
    sender.store.note_connection(connection.repository_id, swept=begun)


def _sweep_app(sender: Sender, app: App) -> None:
    begun = sender.now()
    key = sealed.kept(sender, app_secrets(app.id)).get("private_key")
    if not key:
        return
    with GitHubApi(AppAccess(app.id, str(key)), app.api_url).app() as client:
        ask_again(client.requester.requestJsonAndCheck, "/app/hook/deliveries", since=begun - KEPT_S)
    sender.store.note_app(app.id, swept=begun)


def ask_again(ask: Ask, path: str, *, since: float) -> int:
    """Have GitHub deliver again what has never arrived; how many."""
    lost = never_arrived(_deliveries(ask, path, since))
    for number in lost[:MOST]:
        ask("POST", f"{path}/{number}/attempts")
    if lost:
        log.info("asked GitHub for %d deliveries again that had not arrived", min(len(lost), MOST))
    return len(lost)


def never_arrived(deliveries: Iterable[Mapping[str, Any]]) -> list[int]:
    """The newest attempt of each delivery none of whose attempts was taken, oldest first. Pure."""
    attempts: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for one in deliveries:  # newest first
        attempts[str(one["guid"])].append(one)
    lost = [
        tried[0]
        for tried in attempts.values()
        if len(tried) < TRIES and not any(arrived(one) for one in tried)
    ]
    return [int(one["id"]) for one in reversed(lost)]


def _deliveries(ask: Ask, path: str, since: float) -> Iterator[dict[str, Any]]:
    """Back to a moment, a page at a time; the `Link` header has the cursor."""
    address = f"{path}?per_page=100"
    for _ in range(PAGES):
        headers, sent = ask("GET", address)
        yield from (one for one in sent if moment(one) >= since)
        following = _next(headers.get("link", ""))
        if not following or not sent or moment(sent[-1]) < since:
            return
        address = following


def _next(link: str) -> str:
    for part in link.split(","):
        address, _, kind = part.partition(";")
        if 'rel="next"' in kind:
            return address.strip().strip("<>")
    return ""
