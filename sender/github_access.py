"""GitHub as a connected repository may use it: with its own token, or with one that its App makes."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from trainforge.config.errors import NotFound
from trainforge.config.messages import GitCredential
from trainforge.hooks.github_api import Access, AppAccess, GitHubApi, TokenAccess
from trainforge.sender import sealed
from trainforge.sender.context import Sender
from trainforge.sender.store_github import Connection

if TYPE_CHECKING:
    from github.Repository import Repository

GIT_USER = "x-access-token"
WRITE = {"contents": "write"}
RENEW_S = 600.0
LENT_S = 1800.0  # what is left of a token for a job at least, for large pushes
_minting = threading.Lock()  # one at a time: who comes meanwhile finds it made
LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


def connection_secrets(repository_id: str) -> str:
    """The name under which the sender keeps a connection's `token` and `hook_secrets`."""
    return f"github:{repository_id}"


def app_secrets(app_id: int) -> str:
    """The name under which the sender keeps an App's `private_key` and `hook_secrets`."""
    return f"github-app:{app_id}"


def api_of(sender: Sender, connection: Connection) -> GitHubApi:
    """Raises NotFound when its token or key is gone."""
    return GitHubApi(access_of(sender, connection), connection.api_url, connection.number)


def access_of(sender: Sender, connection: Connection) -> Access:
    if connection.app_id is not None:
        key = sealed.kept(sender, app_secrets(connection.app_id)).get("private_key")
        if key:
            return AppAccess(connection.app_id, str(key))
    else:
        token = sealed.kept(sender, connection_secrets(connection.repository_id)).get("token")
        if token:
            return TokenAccess(str(token))
    raise NotFound(
        f"the sender has no token for {connection.full_name}",
        hint=f"`trainforge github connect {connection.full_name}` sets one",
    )


@contextmanager
def asking(sender: Sender, connection: Connection, permissions: Mapping[str, str]) -> Iterator[Repository]:
    """The connected repository at GitHub, as PyGithub has it. For worker threads.

    `permissions` are all that an App's token is given (`{"checks": "write"}`). Errors leave as those of
    `hooks/github_api.py`: `GitHubBusy` says until when, `Unreachable` may be tried again, others not.
    """
    with api_of(sender, connection).repository(connection.full_name, permissions) as repository:
        yield repository


# --- git ------------------------------------------------------------------------------------------------


def git_credential(sender: Sender, repository_id: str, url: str) -> GitCredential | None:
    """What the sender reads a repository's git with, and pushes results that no executor can.

    A token that an App makes is kept in memory for most of its hour: polling would make one each time.

    Raises:
        TrainForgeError: the App's token cannot be had now.
    """
    if not _may_carry(url):
        return None
    connection = sender.store.connection(repository_id)
    if connection is None:
        secret = sender.settings.git_token.get_secret_value()
        return _credential(secret, sender.settings.git_username) if secret else None
    access = access_of(sender, connection)
    if isinstance(access, TokenAccess):
        return _credential(access.token)
    with _minting:
        kept = sender.minted.get(repository_id)
        if kept is None or kept.expires - sender.now() < RENEW_S:
            kept = api_of(sender, connection).mint(connection.full_name, WRITE)
            sender.minted[repository_id] = kept
    return _credential(kept.token)


def job_credential(sender: Sender, job: str, repository_id: str, url: str) -> GitCredential | None:
    """A token for the machines that run a job, where an App can make one; one serves until it ages."""
    connection = sender.store.connection(repository_id)
    if connection is None or connection.app_id is None or not _may_carry(url):
        return None
    with _minting:
        _, lent = sender.lent.get(job, ("", None))
        if lent is None or lent.expires - sender.now() < LENT_S:
            lent = api_of(sender, connection).mint(connection.full_name, WRITE)
            sender.lent[job] = (repository_id, lent)
    return GitCredential(username=GIT_USER, password=lent.token, expires=lent.expires)


def take_back(sender: Sender) -> None:
    """Have GitHub end the tokens of jobs that have ended; those of before a restart end by themselves."""
    for job, (repository_id, lent) in list(sender.lent.items()):
        if sender.store.job(job)["ended"] is None:
            continue
        del sender.lent[job]
        connection = sender.store.connection(repository_id)
        if connection is not None:
            api_of(sender, connection).revoke(lent)


def _credential(secret: str, username: str = "") -> GitCredential:
    return GitCredential(username=username or GIT_USER, password=secret)


def _may_carry(url: str) -> bool:
    """No password goes over a network in the clear."""
    parts = urlsplit(url)
    return parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in LOOPBACK)
