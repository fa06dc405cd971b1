"""GitHub's REST API through PyGithub: who asks, how patiently, and what a refusal means.

PyGithub is imported where it is used: most senders never talk to GitHub's API. Nothing here keeps state but
a client; errors never carry a token, as GitHub does not repeat one and headers are not told.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urljoin, urlsplit

from trainforge.config.errors import Conflict, Forbidden, NotFound, NotTrusted, TrainForgeError, Unreachable
from trainforge.hooks.addresses import AddressRefused
from trainforge.hooks.outward import check_url

if TYPE_CHECKING:
    from github import Auth, Github, GithubIntegration
    from github.GithubException import GithubException
    from github.Repository import Repository

log = logging.getLogger(__name__)
GITHUB = "https://api.github.com"
TIMEOUT_S = 15
TRIES, MOST_MOVES = 4, 3
BACKOFF_S = 0.25  # doubled with each try
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,38})/[A-Za-z0-9._-]{1,100}\Z")
_SECONDARY = ("secondary rate limit", "abuse detection")


class GitHubBusy(Unreachable):
    """GitHub asks for patience: nothing may be asked until `until` (unix seconds)."""

    def __init__(self, message: str, until: float, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.until = until


class GitHubForbids(Forbidden):
    """The token or App lacks a permission; `needs` names it as GitHub does (`statuses=write`)."""

    def __init__(self, message: str, needs: str = "", *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.needs = needs


class GitHubRefuses(Conflict):
    """GitHub understood and will not do it; asking the same again changes nothing."""


@dataclass(frozen=True)
class TokenAccess:
    """A fine-grained (or classic) personal access token."""

    token: str = field(repr=False)


@dataclass(frozen=True)
class AppAccess:
    """A GitHub App: its tokens are made for one repository and one need, and given back after it."""

    app_id: int
    private_key: str = field(repr=False)


Access = TokenAccess | AppAccess
Client = TypeVar("Client", "Github", "GithubIntegration")


@dataclass(frozen=True)
class Minted:
    """A token for git or for a few requests; `expires` is 0 for one that nobody gives back."""

    token: str = field(repr=False)
    expires: float = 0.0


def check_name(full_name: str) -> str:
    """`OWNER/REPO`. Raises AddressRefused."""
    if not _NAME.match(full_name) or full_name.endswith((".git", "/.", "/..")):
        raise AddressRefused(f"{full_name[:160]!a} is not OWNER/REPO", hint="as in octocat/hello-world")
    return full_name


def check_api_url(url: str) -> str:
    """Where the API is: GitHub's own, or `https://HOST/api/v3` of a GitHub Enterprise Server.

    Raises:
        AddressRefused: not an HTTP address; plain HTTP only to this machine.
    """
    host = check_url(url, allow_private=True)
    if not url.startswith("https://") and host not in ("127.0.0.1", "localhost", "::1"):
        raise AddressRefused(f"{url[:200]!a} would carry a token in the clear", hint=f"as in {GITHUB}")
    return url.rstrip("/")


@dataclass(frozen=True)
class Facts:
    """A repository as GitHub has it now; `number` survives renames."""

    number: int
    full_name: str
    clone_url: str


class GitHubApi:
    """GitHub's API for one token or App. Every method raises the errors of this module on a refusal.

    With the `number` of a repository an App's tokens are for that one, whatever it is called by now.
    """

    def __init__(self, access: Access, api_url: str = GITHUB, number: int | None = None) -> None:
        self.access, self.api_url, self.number = access, api_url, number

    @contextmanager
    def repository(self, full_name: str, permissions: Mapping[str, str]) -> Iterator[Repository]:
        """A repository to ask about and write to, as PyGithub has it; refusals within leave as our errors.

        `permissions` (as in `{"statuses": "write"}`) are what an App's token is made with; it is for this
        one repository and revoked at the end. A personal token is used as it is.
        """
        check_name(full_name)
        with self._token(full_name, permissions) as token, refusals(f"{full_name} at GitHub"):
            client = self._client(token, lazy=True)
            try:
                yield client.get_repo(full_name)
            finally:
                client.close()

    def facts(self, full_name: str) -> Facts:
        """What a repository is called, and where git finds it. Raises as `repository` does."""
        with self.repository(full_name, {"metadata": "read"}) as repository:
            _, said = repository.requester.requestJsonAndCheck("GET", f"/repos/{full_name}")
        try:
            return Facts(int(said["id"]), check_name(str(said["full_name"])), str(said["clone_url"]))
        except (KeyError, TypeError, ValueError):
            raise GitHubRefuses(
                f"{self.api_url} answers, but not as GitHub's API does",
                hint="that of a GitHub Enterprise Server ends in /api/v3",
            ) from None

    @contextmanager
    def app(self) -> Iterator[GithubIntegration]:
        """GitHub as the App itself, by its key."""
        from github import GithubIntegration  # noqa: PLC0415

        if not isinstance(self.access, AppAccess):
            raise GitHubRefuses("this is a token, not an App", hint="connect by an App for that")
        with refusals("GitHub, asked as an App,"):
            made = GithubIntegration(auth=self._app_auth(), **_options(self.api_url))
            client = _following(made, self.api_url)
            try:
                yield client
            finally:
                client.close()

    def mint(self, full_name: str, permissions: Mapping[str, str]) -> Minted:
        """A token for one repository; the personal one, or a new one of the App's, good for an hour."""
        if isinstance(self.access, TokenAccess):
            return Minted(self.access.token)
        owner, _, name = check_name(full_name).partition("/")
        with self.app() as app:
            path = f"/repos/{owner}/{name}/installation"
            _, installation = app.requester.requestJsonAndCheck("GET", path)
            chosen = {"repositories": [name]} if self.number is None else {"repository_ids": [self.number]}
            body = chosen | {"permissions": dict(permissions)}
            path = f"/app/installations/{int(installation['id'])}/access_tokens"
            _, made = app.requester.requestJsonAndCheck("POST", path, input=body)
        return Minted(str(made["token"]), time.time() + 3600)

    def revoke(self, minted: Minted) -> None:
        """Give a token of an App back; it ends by itself within the hour where that fails."""
        if isinstance(self.access, TokenAccess):
            return
        try:
            with refusals("GitHub"):
                client = self._client(minted.token)
                client.requester.requestJsonAndCheck("DELETE", "/installation/token")
                client.close()
        except TrainForgeError as error:
            log.info("a token was not given back, it ends by itself: %s", error)

    @contextmanager
    def _token(self, full_name: str, permissions: Mapping[str, str]) -> Iterator[str]:
        minted = self.mint(full_name, permissions)
        try:
            yield minted.token
        finally:
            self.revoke(minted)

    def _client(self, token: str, *, lazy: bool = False) -> Github:
        from github import Auth, Github  # noqa: PLC0415

        return _following(Github(auth=Auth.Token(token), lazy=lazy, **_options(self.api_url)), self.api_url)

    def _app_auth(self) -> Auth.AppAuth:
        from github import Auth  # noqa: PLC0415

        assert isinstance(self.access, AppAccess)  # noqa: S101
        return Auth.AppAuth(self.access.app_id, self.access.private_key)


def convert_manifest(code: str, api_url: str = GITHUB) -> dict[str, Any]:
    """The App that somebody just made from a manifest of ours: its id, `pem`, `webhook_secret`, ...

    Raises:
        NotFound: the code was used, is older than an hour, or is none.
    """
    from github import Github  # noqa: PLC0415

    if not re.fullmatch(r"[A-Za-z0-9_-]{8,128}", code):
        raise NotFound(
            "this is no code of GitHub's", hint="start again with `trainforge github connect --app`"
        )
    with refusals("GitHub"):
        client = _following(Github(**_options(api_url)), api_url)
        try:
            _, made = client.requester.requestJsonAndCheck("POST", f"/app-manifests/{code}/conversions")
        finally:
            client.close()
    return dict(made)


# --- patience -------------------------------------------------------------------------------------------


def _options(api_url: str) -> dict[str, Any]:
    from github.Consts import DEFAULT_USER_AGENT  # noqa: PLC0415

    from trainforge.hooks.github_patience import Patience  # noqa: PLC0415

    return {
        "base_url": api_url,
        "timeout": TIMEOUT_S,
        "user_agent": f"trainforge {DEFAULT_USER_AGENT}",
        "per_page": 100,
        "retry": Patience(total=TRIES - 1, backoff_factor=BACKOFF_S),
        # Its pauses between requests are for scripts: ours are few, and what GitHub asks for is kept to.
        "seconds_between_requests": 0,
        "seconds_between_writes": 0,
    }


def _following(client: Client, api_url: str) -> Client:
    """Have a client go where GitHub says that something is now, as after a repository was renamed.

    PyGithub by itself loses the query on its way there, and takes a 307, which GitHub answers to changes,
    for success.
    """
    from trainforge.hooks.github_patience import Moved  # noqa: PLC0415

    requester = client.requester
    plain, home = requester.requestJsonAndCheck, urlsplit(api_url)

    def ask(verb: str, url: str, parameters: Any = None, *more: Any, **named: Any) -> Any:
        for _ in range(MOST_MOVES):
            try:
                return plain(verb, url, parameters, *more, **named)
            except Moved as moved:
                there = urlsplit(urljoin(f"{api_url}/", moved.location))
                same = (there.scheme, there.hostname, there.port) == (home.scheme, home.hostname, home.port)
                if not (same and moved.location):
                    raise GitHubRefuses(
                        f"{api_url} sends on to {moved.location[:100]!a}",
                        hint="no token is sent there: check the address of the API",
                    ) from None
                url, parameters = there.geturl(), None
        raise GitHubRefuses(f"{api_url} sends from one address to the next")

    requester.requestJsonAndCheck = ask  # type: ignore[method-assign]
    return client


# --- refusals -------------------------------------------------------------------------------------------


@contextmanager
def refusals(what: str) -> Iterator[None]:
    """Have PyGithub's errors, and those of the network below it, leave the block as ours."""
    import requests  # noqa: PLC0415
    from github import GithubException  # noqa: PLC0415

    try:
        yield
    except GithubException as error:
        raise _refusal(what, error) from None
    except requests.RequestException as error:
        raise Unreachable(
            f"{what} cannot be reached ({type(error).__name__})", hint="it is tried again"
        ) from None
    except json.JSONDecodeError:
        raise GitHubRefuses(f"{what} answered with something that is no JSON") from None
    except AssertionError as error:  # PyGithub follows no address off the API's host
        raise GitHubRefuses(f"{what} answered with an address elsewhere: {str(error)[:100]}") from None


def _refusal(what: str, error: GithubException) -> TrainForgeError:
    status = int(error.status)
    headers = {str(name).lower(): str(value) for name, value in (error.headers or {}).items()}
    said = _said(error)
    if (until := _busy_until(status, headers, said)) is not None:
        wait = max(0, round(until - time.time()))
        return GitHubBusy(f"GitHub's rate limit is used up for {wait} s more", until, hint="it is tried then")
    if status == 401:
        return NotTrusted(
            f"{what}: the token or key is not accepted ({said})",
            hint="it may have expired or been revoked: `trainforge github connect` takes a new one",
        )
    if status == 403:
        needs = headers.get("x-accepted-github-permissions", "")
        hint = f"give it {permission_words(needs)}" if needs else "give the token or App what it needs"
        return GitHubForbids(f"{what} forbids this ({said})", needs, hint=hint)
    if status == 404:
        return NotFound(
            f"{what} has no such thing, or hides it from this token",
            hint="check the name, and that the token or App was given this repository",
        )
    if status >= 500 or status == 0:
        return Unreachable(f"{what} answered with status {status}", hint="it is tried again")
    return GitHubRefuses(f"{what} refuses this with status {status}: {said}")


def _said(error: GithubException) -> str:
    data = error.data if isinstance(error.data, dict) else {}
    parts = [str(data.get("message") or "no reason given")]
    errors = data.get("errors")
    for one in errors if isinstance(errors, list) else []:
        parts.append(str(one.get("message") or one.get("code") or "") if isinstance(one, dict) else str(one))
    return "; ".join(part for part in parts if part)[:500]


def _busy_until(status: int, headers: Mapping[str, str], said: str) -> float | None:
    """When it may be asked again (GitHub: "Rate limits for the REST API"); None if that is not why."""
    if status not in (403, 429):
        return None
    after = headers.get("retry-after", "")
    if after.isdigit():
        return time.time() + int(after)
    reset = headers.get("x-ratelimit-reset", "")
    if headers.get("x-ratelimit-remaining") == "0" and reset.isdigit():
        return float(reset) + 1
    if status == 429 or any(word in said.lower() for word in _SECONDARY):
        return time.time() + 60
    return None


_PERMISSIONS = {
    "repository_hooks": "Webhooks", "statuses": "Commit statuses", "checks": "Checks", "contents": "Contents",
    "pull_requests": "Pull requests", "issues": "Issues", "metadata": "Metadata", "actions": "Actions",
}  # fmt: skip


def permission_words(needs: str) -> str:
    """`statuses=write` as GitHub's page for tokens calls it: `Commit statuses: read and write`."""
    words = []
    for one in re.split(r"[;,]\s*", needs):
        name, _, level = one.strip().partition("=")
        known = _PERMISSIONS.get(name, name.replace("_", " ").capitalize())
        words.append(f"{known}: {'read and write' if level == 'write' else level or 'read'}")
    return " or ".join(dict.fromkeys(words))[:300]


def site_of(api_url: str) -> str:
    """Where people see what the API is about."""
    if api_url == GITHUB:
        return "https://github.com"
    parts = urlsplit(api_url)
    return f"{parts.scheme}://{parts.netloc}"
