"""Whose secret a delivery of GitHub's has to be signed with, and which repository it may speak of.

A connected repository has a hook with a secret of its own, an App one for all where it is installed, and
`webhook_secret` of the settings is for hooks that people made by hand. Headers only choose the secret; what
signs is believed about its own repositories alone.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from trainforge.config.errors import NotFound
from trainforge.hooks.github_deliveries import Delivery, Installed, Moved
from trainforge.sender import sealed
from trainforge.sender.context import Sender
from trainforge.sender.github_access import app_secrets, connection_secrets
from trainforge.sender.store_events import Repo
from trainforge.sender.store_github import App, Connection

log = logging.getLogger(__name__)
NOTED_EVERY_S = 60.0
# An App that is not installed at a repository any more, by the actions that say so.
_GONE = {"deleted": "the App was uninstalled", "suspend": "the App was suspended"}


def github_key(repository_id: str) -> str:
    """Rung when a delivery about this repository has come; without an id, one of an App."""
    return f"github:{repository_id}"


@dataclass(frozen=True)
class Source:
    """Where a delivery says it comes from, and what it is to be signed with."""

    secrets: tuple[str, ...]
    connection: Connection | None = None
    app: App | None = None


def source_of(sender: Sender, headers: Mapping[str, str]) -> Source:
    """By what GitHub says the hook is at: an App (`integration`), or a repository, whose id outlives hooks.

    The hook's own id serves where a server does not say; a hook that was just made is not known by it yet.
    """
    by_hand = tuple(sender.settings.webhook_secrets)
    target = _number(headers.get("x-github-hook-installation-target-id", ""))
    kind = headers.get("x-github-hook-installation-target-type", "")
    if kind == "integration" and target is not None:
        found = sender.store.app(target)
        if found is not None:
            return Source(_secrets(sender, app_secrets(found.id)), app=found)
    connection = None
    if kind == "repository" and target is not None:  # an organization may have the same number
        connection = sender.store.connection_of_number(target)
    hook = _number(headers.get("x-github-hook-id", ""))
    if connection is None and hook is not None:
        connection = sender.store.connection_of_hook(hook)
    if connection is None:
        return Source(by_hand)
    own = _secrets(sender, connection_secrets(connection.repository_id))
    return Source((*own, *by_hand), connection=connection)


def _secrets(sender: Sender, name: str) -> tuple[str, ...]:
    """The newest first; the one before it counts until the new one has signed something."""
    return tuple(str(one) for one in sealed.kept(sender, name).get("hook_secrets", []) if one)


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else None


def repository_of(sender: Sender, source: Source, delivery: Delivery) -> Repo | None:
    """The repository that a delivery speaks of, if it is watched and the signer may speak of it."""
    said = delivery.repository
    if said is None:
        return None
    connection = source.connection or sender.store.connection_of_number(said.number)
    if connection is not None:
        its_own = connection.number == said.number
        its_app = source.app is None or connection.app_id == source.app.id
        return sender.store.repository(connection.repository_id) if its_own and its_app else None
    if source.app is not None:
        return None
    repo = known(sender, said.ids)
    # Connected under another number: somebody else's repository has taken this one's name.
    return None if repo is None or sender.store.connection(repo.id) is not None else repo


def known(sender: Sender, ids: tuple[str, ...]) -> Repo | None:
    for repository in ids:
        try:
            return sender.store.repository(repository)
        except NotFound:
            continue
    return None


def note_seen(sender: Sender, source: Source, repo: Repo | None, delivery: Delivery) -> None:
    """When something came, to the minute, and that a ping did."""
    now, ping = sender.now(), delivery.event == "ping"
    if source.app is not None and (source.app.pinged or 0) < now - NOTED_EVERY_S:
        sender.store.note_app(source.app.id, pinged=now)
    connection = sender.store.connection(repo.id) if repo is not None else None
    if connection is not None and (ping or (connection.delivered or 0) < now - NOTED_EVERY_S):
        pinged = {"pinged": now, "problem": ""} if ping else {}
        sender.store.note_connection(connection.repository_id, delivered=now, **pinged)


def note(sender: Sender, source: Source, repo: Repo | None, delivery: Delivery) -> str:
    """What concerns the connection itself; gives words on it, none if it is for others to note."""
    about = delivery.about
    if isinstance(about, Moved) and repo is not None and delivery.repository is not None:
        connection = sender.store.connection(repo.id)
        if connection is None:
            return ""
        return rename(sender, repo, connection, delivery.repository.full_name)
    if isinstance(about, Installed):
        return _installed(sender, source, about)
    return ""


def rename(sender: Sender, repo: Repo, connection: Connection, full_name: str) -> str:
    """Follow the repository to its new name at GitHub; gives words on it."""
    if connection.full_name != full_name:
        url = repo.url.replace(connection.full_name, full_name)
        sender.store.rename_connection(repo.id, full_name, url, sender.now())
        log.info("%s is called %s at GitHub now", connection.full_name, full_name)
    return f"known as {full_name} from now on"


def _installed(sender: Sender, source: Source, about: Installed) -> str:
    if source.app is None or source.app.id != about.app:
        return "not an App of this sender"
    problem = _GONE.get(about.action, "")
    for connection in sender.store.connections():
        owner = connection.full_name.partition("/")[0]
        if connection.app_id == about.app and owner.lower() == about.account.lower():
            sender.store.note_connection(connection.repository_id, problem=problem)
    return f"installation {about.action}"
