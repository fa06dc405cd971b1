"""Connecting a repository of GitHub's: watched, with a webhook that has a secret of its own, seen to work."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterator, Set
from dataclasses import dataclass
from typing import Any

from trainforge.config.errors import NotFound, TrainForgeError
from trainforge.config.views import GitHubConnectionView, GitHubFinding, GitHubReport
from trainforge.hooks.addresses import validate_url
from trainforge.hooks.github_api import (
    GITHUB,
    Access,
    AppAccess,
    GitHubApi,
    GitHubForbids,
    TokenAccess,
    check_api_url,
    check_name,
)
from trainforge.sender import actions, sealed
from trainforge.sender import github_diagnosis as diagnosis
from trainforge.sender.actions import in_thread
from trainforge.sender.context import Sender
from trainforge.sender.github_access import access_of, api_of, app_secrets, connection_secrets
from trainforge.sender.github_diagnosis import bad, good, refused
from trainforge.sender.github_hooks import github_key
from trainforge.sender.notify import REPOSITORIES
from trainforge.sender.store_github import Connection

log = logging.getLogger(__name__)
PING_WAIT_S = 15.0
LOOK_EVERY_S = 1.5
OLD_SECRET_S = 3600.0  # deliveries that were signed with it have come by then


@dataclass(frozen=True)
class Wanted:
    """`token` empty: the one that is known, or `app`, the number of an App. `hook` False: polling alone.

    `api_url` empty: where it was connected before, else GitHub's own.
    """

    full_name: str
    token: str = ""
    app: int | None = None
    api_url: str = ""
    name: str = ""
    hook: bool = True


async def connect(sender: Sender, wanted: Wanted, *, by: str, actor: str) -> GitHubReport:
    """Connect, or connect anew with a fresh secret; what is missing is in the report.

    Raises:
        TrainForgeError: GitHub cannot be asked, or does not show this repository to the token or App.
    """
    connection = await in_thread(_store, sender, wanted, by, actor)
    sender.bell.ring(REPOSITORIES)
    await actions.look(sender, connection.repository_id, "watch")
    findings: list[GitHubFinding] = []
    with sender.bell.listen(github_key(connection.repository_id), github_key("")) as listener:
        before = await in_thread(_deliveries, sender, connection)
        made = await in_thread(_hook, sender, connection, wanted.hook)
        findings.append(made)
        if made.ok and wanted.hook:
            waited = 0.0
            old = {int(one["id"]) for one in before}
            ping = await in_thread(_ping_seen, sender, connection, old)
            while ping is None and waited < PING_WAIT_S:
                waited += LOOK_EVERY_S
                await listener.wait(LOOK_EVERY_S)
                ping = await in_thread(_ping_seen, sender, connection, old)
            findings.append(ping or _no_ping(sender))
    return await in_thread(_report, sender, connection.repository_id, findings)


async def check(sender: Sender, named: str) -> GitHubReport:
    """Raises NotFound when there is no such connection."""
    return await in_thread(_checked, sender, named)


def _checked(sender: Sender, named: str) -> GitHubReport:
    connection = find(sender, named)
    findings = diagnosis.diagnose(sender, connection)
    return GitHubReport(
        connection=view(sender, connection), ok=all(one.ok for one in findings), findings=findings
    )


def _report(sender: Sender, repository_id: str, done: list[GitHubFinding]) -> GitHubReport:
    """What was just seen of the hook, and everything else as it is now."""
    connection = find(sender, repository_id)
    known = {one.what for one in done}
    others = [one for one in diagnosis.diagnose(sender, connection) if one.what not in known | {"deliveries"}]
    findings = [*others, *done]
    problem = next((one.says for one in findings if not one.ok), "")
    sender.store.note_connection(repository_id, problem=problem)
    connection = find(sender, repository_id)
    return GitHubReport(connection=view(sender, connection), ok=not problem, findings=findings)


def disconnect(sender: Sender, named: str, actor: str) -> GitHubConnectionView:
    """Forget the token, and take the webhook away as far as GitHub lets us; the repository stays watched."""
    connection = find(sender, named)
    shown = view(sender, connection)
    if remains := _remove_hook(sender, connection):
        shown = shown.model_copy(update={"problem": remains})
    sender.store.disconnect(connection.repository_id, actor, sender.now())
    sealed.forget(sender, connection_secrets(connection.repository_id))
    return shown


def find(sender: Sender, named: str) -> Connection:
    """By the name at GitHub, the name here, or the id. Raises NotFound."""
    names = {repo.id: repo.name for repo in sender.store.repositories()}
    for one in sender.store.connections():
        if (
            named in (one.repository_id, names.get(one.repository_id))
            or named.lower() == one.full_name.lower()
        ):
            return one
    raise NotFound(
        f"{named[:200]} is not connected to GitHub", hint="`trainforge github connect OWNER/REPO` does that"
    )


def view(sender: Sender, connection: Connection) -> GitHubConnectionView:
    names = {repo.id: repo.name for repo in sender.store.repositories()}
    app = sender.store.app(connection.app_id) if connection.app_id is not None else None
    return GitHubConnectionView(
        repository=names.get(connection.repository_id, connection.repository_id),
        full_name=connection.full_name,
        api_url=connection.api_url,
        app=app.slug if app else "",
        webhook=connection.hook_id is not None or connection.app_id is not None,
        by=connection.by,
        connected=connection.connected,
        delivered=connection.delivered,
        pinged=connection.pinged,
        problem=connection.problem,
    )


# --- the connection itself ------------------------------------------------------------------------------


def _store(sender: Sender, wanted: Wanted, by: str, actor: str) -> Connection:
    """Ask GitHub what it is, watch it, and note how it is reached."""
    name, known = check_name(wanted.full_name), _known(sender, wanted.full_name)
    access, api_url = _access(sender, wanted, known)
    facts = GitHubApi(access, api_url).facts(name)
    before = sender.store.connection_of_number(facts.number)
    if before is not None:
        repository_id = before.repository_id
    else:
        url = validate_url(facts.clone_url).text  # somebody else's word: no path of this machine
        repository_id = actions.register(sender, url, wanted.name or None).id
    app = access.app_id if isinstance(access, AppAccess) else None
    if before is not None and app is not None:
        _remove_hook(sender, before)  # the App's own takes its place
    connection = Connection(
        repository_id, facts.full_name, facts.number, api_url, app,
        before.hook_id if before and app is None else None, by, sender.now(),
        delivered=before.delivered if before else None, swept=sender.now(),
    )  # fmt: skip
    name = connection_secrets(repository_id)
    kept = {"hook_secrets": sealed.kept(sender, name).get("hook_secrets", [])}
    token = {"token": access.token} if isinstance(access, TokenAccess) else {}
    sealed.keep(sender, name, kept | token)
    sender.minted.pop(repository_id, None)
    sender.store.connect(connection, actor)
    return connection


def _known(sender: Sender, full_name: str) -> Connection | None:
    try:
        return find(sender, full_name)
    except NotFound:
        return None


def _access(sender: Sender, wanted: Wanted, known: Connection | None) -> tuple[Access, str]:
    """What to ask with, and where: a token goes nowhere but where it was meant for."""
    if wanted.app is not None:
        app = sender.store.app(wanted.app)
        key = sealed.kept(sender, app_secrets(wanted.app)).get("private_key")
        if app is None or not key:
            raise NotFound(f"the sender has no App {wanted.app}", hint="`trainforge github connect --app`")
        return AppAccess(wanted.app, str(key)), app.api_url
    if wanted.token:
        return TokenAccess(wanted.token), check_api_url(
            wanted.api_url or (known.api_url if known else GITHUB)
        )
    if known is None:
        raise NotFound(f"{wanted.full_name} is not connected yet", hint="give a token, or connect by an App")
    return access_of(sender, known), known.api_url


# --- its webhook ----------------------------------------------------------------------------------------


def _hook(sender: Sender, connection: Connection, wanted: bool) -> GitHubFinding:
    """Create the webhook, or give the one that there is a new secret, and have GitHub ping it."""
    if not wanted:
        return good("webhook", "none was wanted: pushes are found by polling")
    url = diagnosis.hook_url(sender)
    if diagnosis.out_of_reach(sender, connection.api_url):
        return bad(
            "webhook",
            f"none was made, as GitHub cannot reach {sender.base_url}: pushes are found by polling",
            "set the sender's public_url to where the internet reaches it, then connect again",
        )
    try:
        if connection.app_id is not None:
            return _app_hook(sender, connection, url)
        return _own_hook(sender, connection, url)
    except GitHubForbids as error:
        return bad("webhook", error.message, diagnosis.token_hint(connection.api_url))
    except TrainForgeError as error:
        return refused("webhook", error)


def _own_hook(sender: Sender, connection: Connection, url: str) -> GitHubFinding:
    secret, name = secrets.token_urlsafe(32), connection_secrets(connection.repository_id)
    kept = sealed.kept(sender, name)
    sealed.keep(sender, name, kept | {"hook_secrets": [secret, *kept.get("hook_secrets", [])][:2]})
    config = {"url": url, "content_type": "json", "insecure_ssl": "0", "secret": secret}
    body: dict[str, Any] = {"config": config, "events": list(diagnosis.HOOK_EVENTS), "active": True}
    path = f"/repos/{connection.full_name}/hooks"
    with api_of(sender, connection).repository(connection.full_name, {}) as repository:
        ask = repository.requester.requestJsonAndCheck
        known = {int(hook["id"]): hook["config"].get("url") for hook in _hooks(ask, path)}
        there = [number for number, at in known.items() if at == url]
        number = connection.hook_id if connection.hook_id in known else next(iter(there), None)
        if number is None:
            _, made = ask("POST", path, input=body | {"name": "web"})
            sender.store.note_connection(connection.repository_id, hook_id=int(made["id"]))
            return good("webhook", f"made at GitHub, to {url}")
        # Noted before it is changed: what is signed with the new secret may come before the answer.
        sender.store.note_connection(connection.repository_id, hook_id=number)
        ask("PATCH", f"{path}/{number}", input=body)
        ask("POST", f"{path}/{number}/pings")
    return good("webhook", f"given a new secret, to {url}")


def _remove_hook(sender: Sender, connection: Connection) -> str:
    """Why it is still there, if it is."""
    if connection.hook_id is None:
        return ""
    try:
        with api_of(sender, connection).repository(connection.full_name, {}) as repository:
            path = f"/repos/{connection.full_name}/hooks/{connection.hook_id}"
            repository.requester.requestJsonAndCheck("DELETE", path)
    except NotFound:
        return ""
    except TrainForgeError as error:
        return f"its webhook stays at GitHub: {error.message}"
    return ""


def _hooks(ask: Any, path: str) -> Iterator[dict[str, Any]]:
    for page in range(1, 11):
        headers, hooks = ask("GET", path, parameters={"per_page": 100, "page": page})
        yield from hooks
        if 'rel="next"' not in headers.get("link", ""):
            return


def _app_hook(sender: Sender, connection: Connection, url: str) -> GitHubFinding:
    """An App's webhook is for all its repositories, so its secret is left as it is where it serves."""
    assert connection.app_id is not None  # noqa: S101
    name = app_secrets(connection.app_id)
    with api_of(sender, connection).app() as app:
        ask = app.requester.requestJsonAndCheck
        _, said = ask("GET", "/app/hook/config")
        if said.get("url") == url:
            return good("webhook", f"the App's goes to {url}")
        secret, kept = secrets.token_urlsafe(32), sealed.kept(sender, name)
        sealed.keep(sender, name, kept | {"hook_secrets": [secret, *kept.get("hook_secrets", [])][:2]})
        ask("PATCH", "/app/hook/config", input={"url": url, "content_type": "json", "secret": secret})
    return good("webhook", f"the App's goes to {url} now, with a new secret")


def _ping_seen(sender: Sender, connection: Connection, old: Set[int]) -> GitHubFinding | None:
    """That a ping has come since; or what GitHub says of one that has not. `old` are earlier deliveries."""
    now = find(sender, connection.repository_id)
    if connection.app_id is not None:
        app = sender.store.app(connection.app_id)
        seen = app.pinged if app else None
        return good("ping", "the App's webhook has arrived here") if seen or now.delivered else None
    if now.pinged is not None and now.pinged >= connection.connected:
        took = max(0.0, now.pinged - connection.connected)
        return good("ping", f"GitHub's ping arrived after {took:.1f} s")
    sent = _deliveries(sender, now)
    pings = [one for one in sent if one["event"] == "ping" and int(one["id"]) not in old]
    if not pings or diagnosis.arrived(pings[0]):
        return None
    words = f"GitHub's ping did not arrive: {diagnosis.answer_words(pings[0])}"
    return bad("ping", words, diagnosis.delivery_hint(sender, pings[0]))


def _deliveries(sender: Sender, connection: Connection) -> list[dict[str, Any]]:
    """The newest of the repository's own hook; none where they cannot be read."""
    if connection.hook_id is None:
        return []
    path = f"/repos/{connection.full_name}/hooks/{connection.hook_id}/deliveries?per_page=10"
    try:
        with api_of(sender, connection).repository(connection.full_name, {}) as repository:
            _, sent = repository.requester.requestJsonAndCheck("GET", path)
    except TrainForgeError:
        return []
    return list(sent)


def _no_ping(sender: Sender) -> GitHubFinding:
    return bad(
        "ping",
        f"no ping of GitHub's arrived within {PING_WAIT_S:.0f} s",
        f"GitHub has to reach {diagnosis.hook_url(sender)}; `trainforge github check` tells what it sees",
    )


def forget_old_secrets(sender: Sender, connection: Connection) -> None:
    """The secret before this one counts for deliveries that were on their way, not for ever."""
    name = connection_secrets(connection.repository_id)
    kept = sealed.kept(sender, name)
    old = len(kept.get("hook_secrets", [])) > 1 and sender.now() - connection.connected > OLD_SECRET_S
    if old and connection.pinged is not None and connection.pinged >= connection.connected:
        sealed.keep(sender, name, kept | {"hook_secrets": kept["hook_secrets"][:1]})
