"""What a connection to GitHub needs, asked of GitHub one thing at a time: each found, or said how to mend.

Nothing is changed at GitHub. That something may be written is tried with what cannot be: a status for a
commit that cannot exist, a pull request from a branch to itself. GitHub looks at the permission first (403,
or 404 where a classic token's scopes are too few) and at what is asked second (422).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

from trainforge.config.errors import NotFound, TrainForgeError
from trainforge.config.views import GitHubFinding
from trainforge.hooks.addresses import is_private
from trainforge.hooks.github_api import (
    GitHubApi,
    GitHubForbids,
    GitHubRefuses,
    permission_words,
    refusals,
    site_of,
)
from trainforge.sender.context import Sender
from trainforge.sender.github_access import api_of
from trainforge.sender.store_github import Connection
from trainforge.sender.text import ago

if TYPE_CHECKING:
    from github.Repository import Repository

NO_COMMIT = "0" * 40
SOME_BRANCH = "trainforge-check"  # there or not, nothing can be merged from it into itself
# What each kind of connection is for; the levels are GitHub's.
APP_PERMISSIONS = {
    "checks": "write",
    "contents": "write",
    "issues": "read",  # without it GitHub takes no manifest with `issue_comment`, of pull requests either
    "metadata": "read",
    "pull_requests": "write",
    "statuses": "write",
}
APP_EVENTS = (
    "push", "create", "delete", "repository", "pull_request", "issue_comment", "check_run", "check_suite",
    "workflow_dispatch", "repository_dispatch",
)  # fmt: skip
HOOK_EVENTS = ("push", "create", "delete", "repository", "pull_request", "issue_comment")
TOKEN_PERMISSIONS = {
    "contents": "write",  # results that no executor can publish
    "pull_requests": "write",
    "repository_hooks": "write",
    "statuses": "write",
}
RECENT = 30  # deliveries that are looked at
_LEVELS = {"": 0, "read": 1, "write": 2, "admin": 3}


def hook_url(sender: Sender) -> str:
    return f"{sender.base_url}/webhooks/github"


def out_of_reach(sender: Sender, api_url: str) -> bool:
    """Whether GitHub could never send anything here: it is outside, and this sender's address inside."""
    here, there = (urlsplit(url).hostname or "" for url in (sender.base_url, api_url))
    return is_private(here) and not is_private(there)


def good(what: Any, says: str) -> GitHubFinding:
    return GitHubFinding(what=what, ok=True, says=says)


def bad(what: Any, says: str, hint: str = "") -> GitHubFinding:
    return GitHubFinding(what=what, ok=False, says=says, hint=hint)


def refused(what: Any, error: TrainForgeError) -> GitHubFinding:
    return bad(what, error.message, error.hint)


def diagnose(sender: Sender, connection: Connection) -> list[GitHubFinding]:
    """Everything that can be told without changing anything; in a worker thread."""
    try:
        api = api_of(sender, connection)
    except NotFound as error:
        return [refused("access", error)]
    found = [_access(api, connection)]
    if not found[0].ok:
        return found
    found += permissions(api, connection)
    found.append(_repository(sender, connection))
    if connection.app_id is None:
        found += _hook(sender, api, connection)
    else:
        found += _app_hook(sender, api, connection)
    found.append(_rate(api, connection))
    return found


def _access(api: GitHubApi, connection: Connection) -> GitHubFinding:
    name = connection.full_name
    try:
        facts = api.facts(name)
    except TrainForgeError as error:
        return refused("access", error)
    if facts.number != connection.number:
        hint = f"`trainforge github connect {name}` connects the new one"
        return bad("access", f"{name} is another repository now than the one that was connected", hint)
    renamed = "" if facts.full_name == name else f"; it is called {facts.full_name} now"
    how = "an App" if connection.app_id is not None else "a token"
    return good("access", f"{name} is reached by {how}{renamed}")


# --- permissions ----------------------------------------------------------------------------------------


def permissions(api: GitHubApi, connection: Connection) -> list[GitHubFinding]:
    if connection.app_id is not None:
        return [_app_permissions(api, connection)]
    return [_token_permissions(api, connection.full_name)]


def _app_permissions(api: GitHubApi, connection: Connection) -> GitHubFinding:
    try:
        with api.app() as app:
            path = f"/repos/{connection.full_name}/installation"
            _, said = app.requester.requestJsonAndCheck("GET", path)
    except TrainForgeError as error:
        return refused("installation", error)
    where = str(said.get("html_url", ""))
    if said.get("suspended_at"):
        return bad("installation", "the App is suspended there", f"have {where} unsuspend it")
    has: Mapping[str, str] = said.get("permissions") or {}
    lacks = [
        permission_words(f"{name}={level}")
        for name, level in APP_PERMISSIONS.items()
        if _LEVELS.get(has.get(name, ""), 0) < _LEVELS[level]
    ]
    if lacks:
        hint = f"grant it at the App's own settings, then accept it at {where}"
        return bad("permissions", f"the App lacks {', '.join(lacks)}", hint)
    return good("permissions", "the App has " + ", ".join(sorted(APP_PERMISSIONS)))


# What may be read is tried by reading; a hook that could not be written is told where that is done.
_TRIED: dict[str, tuple[str, str, dict[str, Any] | None]] = {
    "repository_hooks": ("GET", "/hooks?per_page=1", None),
    "contents": ("POST", "/git/refs", {"ref": f"refs/heads/{SOME_BRANCH}", "sha": NO_COMMIT}),
    "pull_requests": ("POST", "/pulls", {"title": "a check", "head": SOME_BRANCH, "base": SOME_BRANCH}),
    "statuses": ("POST", f"/statuses/{NO_COMMIT}", {"state": "pending"}),
}


def _token_permissions(api: GitHubApi, name: str) -> GitHubFinding:
    try:
        with api.repository(name, {}) as repository:
            lacks = [needed for needed in _TRIED if not _may(repository, name, needed)]
            # Each answer to a classic token has its scopes.
            scopes = cast("list[str] | None", repository.requester.oauth_scopes)
    except TrainForgeError as error:
        return refused("permissions", error)
    if not lacks:
        words = "read webhooks and write contents, pull requests and statuses"
        return good("permissions", f"the token may {words}")
    words = ", ".join(permission_words(f"{one}={TOKEN_PERMISSIONS[one]}") for one in lacks)
    if scopes is None:
        return bad("permissions", f"the token lacks {words}", token_hint(api.api_url))
    words = f"the classic token lacks {words}; its scopes: {', '.join(filter(None, scopes)) or 'none'}"
    return bad("permissions", words, _scopes_hint(api, scopes))


def _may(repository: Repository, name: str, needed: str) -> bool:
    method, path, body = _TRIED[needed]
    try:
        with refusals(f"{name} at GitHub"):
            repository.requester.requestJsonAndCheck(method, f"/repos/{name}{path}", input=body)
    except (GitHubForbids, NotFound):
        return False
    except GitHubRefuses:
        return True  # and there is no such commit
    return True


def _scopes_hint(api: GitHubApi, scopes: Sequence[str]) -> str:
    if "repo" in scopes:
        return "the scopes suffice: whose token it is needs the role of an admin in the repository"
    return (
        f"give it the scope repo at {site_of(api.api_url)}/settings/tokens, or connect by a fine-grained one"
    )


def token_hint(api_url: str) -> str:
    wanted = ", ".join(permission_words(f"{name}={level}") for name, level in TOKEN_PERMISSIONS.items())
    return f"edit it at {site_of(api_url)}/settings/personal-access-tokens; it needs {wanted}"


def _repository(sender: Sender, connection: Connection) -> GitHubFinding:
    view = next((view for view in sender.queries.repositories() if view.id == connection.repository_id), None)
    if view is None:
        return bad("repository", "it is not watched", f"`trainforge github connect {connection.full_name}`")
    if view.error:
        return bad("repository", f"git cannot read it: {view.error}", "polling goes on trying")
    seen = f"read by git {ago(view.checked, sender.now())}" if view.checked else "not read by git yet"
    return good("repository", f"watched as {view.name}, {seen}")


# --- hooks ----------------------------------------------------------------------------------------------


def _hook(sender: Sender, api: GitHubApi, connection: Connection) -> list[GitHubFinding]:
    name, again = connection.full_name, f"`trainforge github connect {connection.full_name}` mends it"
    if connection.hook_id is None:
        return [bad("webhook", "there is none: pushes are found by polling", again)]
    path = f"/repos/{name}/hooks/{connection.hook_id}"
    try:
        with api.repository(name, {}) as repository:
            _, said = repository.requester.requestJsonAndCheck("GET", path)
            _, sent = repository.requester.requestJsonAndCheck("GET", f"{path}/deliveries?per_page={RECENT}")
    except NotFound:
        return [bad("webhook", "it was removed at GitHub", again)]
    except TrainForgeError as error:
        return [refused("webhook", error)]
    return [_hook_itself(sender, said, again), recent(sender, sent)]


def _hook_itself(sender: Sender, said: Mapping[str, Any], again: str) -> GitHubFinding:
    url = str(said["config"].get("url", ""))
    if not said["active"]:
        return bad("webhook", "it is switched off at GitHub", again)
    if url != hook_url(sender):
        return bad("webhook", f"it goes to {url}, this sender is at {hook_url(sender)}", again)
    if missing := sorted(set(HOOK_EVENTS) - set(said["events"])) if "*" not in said["events"] else []:
        return bad("webhook", f"it does not tell of {', '.join(missing)}", again)
    return good("webhook", f"it goes to {url}")


def _app_hook(sender: Sender, api: GitHubApi, connection: Connection) -> list[GitHubFinding]:
    again = f"`trainforge github connect {connection.full_name} --app` mends it"
    try:
        with api.app() as app:
            _, said = app.requester.requestJsonAndCheck("GET", "/app/hook/config")
            _, sent = app.requester.requestJsonAndCheck("GET", f"/app/hook/deliveries?per_page={RECENT}")
    except TrainForgeError as error:
        return [refused("webhook", error)]
    url = str(said.get("url", ""))
    if url != hook_url(sender):
        words = f"the App's webhook goes to {url or 'nowhere'}, this sender is at {hook_url(sender)}"
        return [bad("webhook", words, again), recent(sender, sent)]
    return [good("webhook", f"the App's webhook goes to {url}"), recent(sender, sent)]


def recent(sender: Sender, sent: Sequence[Mapping[str, Any]]) -> GitHubFinding:
    """What became of the newest deliveries; each counts as its last attempt."""
    last: dict[str, Mapping[str, Any]] = {}
    for one in sent:  # newest first
        last.setdefault(str(one["guid"]), one)
    if not last:
        return good("deliveries", "GitHub has sent nothing yet")
    failed = [one for one in last.values() if not arrived(one)]
    newest = next(iter(last.values()))
    when = ago(moment(newest), sender.now())
    if not failed:
        return good("deliveries", f"the last {len(last)} arrived, the newest {when}")
    worst = failed[0]
    words = (
        f"{len(failed)} of the last {len(last)} failed; {worst['event']} {ago(moment(worst), sender.now())}"
    )
    return bad("deliveries", f"{words}: {answer_words(worst)}", delivery_hint(sender, worst))


def arrived(delivery: Mapping[str, Any]) -> bool:
    return 200 <= int(delivery.get("status_code") or 0) < 300


def answer_words(delivery: Mapping[str, Any]) -> str:
    code = int(delivery.get("status_code") or 0)
    return f"it was answered with {code}" if code else str(delivery.get("status") or "no answer")[:200]


def delivery_hint(sender: Sender, delivery: Mapping[str, Any]) -> str:
    """What to do about a delivery that did not arrive, by what GitHub says of it."""
    code = int(delivery.get("status_code") or 0)
    if code == 401:
        return "the secrets differ: `trainforge github connect` again sets a new one on both sides"
    if code >= 500 or code == 429:
        return "look at the sender's log; what failed is asked for again"
    if code:
        return f"something else than this sender answers at {hook_url(sender)}: check proxies and public_url"
    return f"GitHub has to reach {hook_url(sender)}: check public_url, DNS, the firewall and the tunnel"


def moment(delivery: Mapping[str, Any]) -> float:
    """When it was sent; unix seconds."""
    text = str(delivery.get("delivered_at", "")).replace("Z", "+00:00")
    try:
        return datetime.fromisoformat(text).astimezone(UTC).timestamp()
    except ValueError:
        return 0.0


# --- limits ---------------------------------------------------------------------------------------------


def _rate(api: GitHubApi, connection: Connection) -> GitHubFinding:
    try:
        with api.repository(connection.full_name, {"metadata": "read"}) as repository:
            _, said = repository.requester.requestJsonAndCheck("GET", "/rate_limit")
    except TrainForgeError as error:
        return refused("rate limit", error)
    core = said["resources"]["core"]
    words = f"{core['remaining']} of {core['limit']} requests are left this hour"
    if int(core["remaining"]) * 10 < int(core["limit"]):
        return bad("rate limit", words, "somebody else uses the same token, or an App would have more")
    return good("rate limit", words)
