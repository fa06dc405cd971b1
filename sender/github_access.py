"""GitHub's API as a connected repository may use it: with its own token, or one made by the App."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from trainforge.config.errors import NotFound
from trainforge.hooks.github_api import Access, AppAccess, GitHubApi, TokenAccess
from trainforge.sender import sealed
from trainforge.sender.context import Sender
from trainforge.sender.store_github import Connection

if TYPE_CHECKING:
    from github.Repository import Repository


def connection_secrets(repository_id: str) -> str:
    """The name under which the sender keeps a connection's `token` and `hook_secrets`."""
    return f"github:{repository_id}"


def app_secrets(app_id: int) -> str:
    """The name under which the sender keeps an App's `private_key` and `hook_secrets`."""
    return f"github-app:{app_id}"


def api_of(sender: Sender, connection: Connection) -> GitHubApi:
    """Raises NotFound when its token or key is gone."""
    return GitHubApi(access_of(sender, connection), connection.api_url)


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
