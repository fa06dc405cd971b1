"""Repositories of GitHub, connected to a sender: by a token or an App, over real HTTP on both sides."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from support.github import GitHub, Repository, serving_github
from support.repositories import Project
from support.web import Web
from trainforge.config.errors import TrainForgeError
from trainforge.hooks.github_api import permission_words
from trainforge.sender import events, github_access, github_connect, github_sweep
from trainforge.sender.github_diagnosis import APP_EVENTS, APP_PERMISSIONS
from trainforge.sender.store_github import Connection

TOKEN = {
    "contents": "write",
    "repository_hooks": "write",
    "statuses": "write",
    "pull_requests": "write",
}


@pytest.fixture
def github(tmp_path: Path) -> Iterator[GitHub]:
    with serving_github(tmp_path / "github") as made:
        yield made


@pytest.fixture
def digits(github: GitHub, tmp_path: Path) -> Repository:
    made = github.add_repository("ada/digits", private=True)
    project = Project(tmp_path / "digits")
    project.commit({"notes.txt": "hello\n"})
    project.git("push", "--quiet", str(made.git), "main")
    github.heads[made.id] = made.refs()
    return made


def connect(site: Web, github: GitHub, token: str = "", status: int = 200, **more: Any) -> dict[str, Any]:
    asked = {"repository": "ada/digits", "api_url": github.api, "token": token} | more
    answer = site.ask("POST", "/api/github/connections", json=asked)
    assert answer.status_code == status, answer.text
    found: dict[str, Any] = answer.json()
    return found


def findings(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {one["what"]: one for one in report["findings"]}


def test_by_a_token_with_a_webhook_that_is_seen_to_arrive(
    site: Web, github: GitHub, digits: Repository
) -> None:
    token = github.token("ada", digits, **TOKEN)
    report = connect(site, github, token)
    assert report["ok"], report
    assert "arrived after" in findings(report)["ping"]["says"]
    (hook,) = digits.hooks.values()
    assert hook.url == f"{site.url}/webhooks/github"
    assert hook.deliveries[0]["status_code"] == 202
    first = hook.secret
    # Again: the same hook with a new secret, the token that is known, and where it is for.
    report = connect(site, github, api_url="")
    assert report["ok"], report
    assert list(digits.hooks.values()) == [hook]
    assert hook.secret != first
    listed = site.get("/api/github")["connections"]
    assert [(one["full_name"], one["repository"], one["webhook"]) for one in listed] == [
        ("ada/digits", "digits", True)
    ]
    for secret in (token, first, hook.secret):
        assert secret not in site.ask("GET", "/api/github").text
        assert secret.encode() not in (site.sender.data_dir / "trainforge.db").read_bytes()


def test_what_a_token_lacks_is_named_as_github_names_it(
    site: Web, github: GitHub, digits: Repository
) -> None:
    less = {"contents": "read", "statuses": "read", "pull_requests": "read"}
    report = connect(site, github, github.token("ada", digits, **less))
    found = findings(report)
    assert not report["ok"]
    assert "Webhooks: read and write" in found["webhook"]["hint"]
    assert found["permissions"]["says"] == (
        "the token lacks Webhooks: read and write, Contents: read and write, "
        "Pull requests: read and write, Commit statuses: read and write"
    )
    assert "settings/personal-access-tokens" in found["permissions"]["hint"]
    assert site.get("/api/github")["connections"][0]["problem"]
    # Whether there is a branch or not of the name that is tried: nothing of it remains.
    for name in TOKEN:
        digits.run("update-ref", "refs/heads/trainforge-check", digits.commit_of("main"))
        before = digits.refs()
        report = connect(site, github, github.token("ada", digits, **TOKEN | {name: "read"}))
        said = findings(report)["permissions"]
        assert said["ok"] is (name == "repository_hooks"), name  # which it may read
        assert said["ok"] or said["says"] == f"the token lacks {permission_words(f'{name}=write')}"
        assert (digits.refs(), digits.pulls, digits.statuses) == (before, {}, [])


def test_a_classic_token_is_told_its_scope(site: Web, github: GitHub, digits: Repository) -> None:
    connect(site, github, github.classic_token("ada", "public_repo", "admin:repo_hook"), status=404)
    assert connect(site, github, github.classic_token("ada", "repo"))["ok"]
    digits.private = False
    assert connect(site, github, github.classic_token("ada", "public_repo", "admin:repo_hook"))["ok"]
    said = findings(connect(site, github, github.classic_token("ada", "admin:repo_hook")))["permissions"]
    assert said["says"] == (
        "the classic token lacks Contents: read and write, Pull requests: read and write, "
        "Commit statuses: read and write; its scopes: admin:repo_hook"
    )
    assert "give it the scope repo at" in said["hint"] and said["hint"].count("/settings/tokens") == 1


def test_a_token_for_something_else_connects_nothing(site: Web, github: GitHub, digits: Repository) -> None:
    other = github.add_repository("ada/other", private=True)
    refused = connect(site, github, github.token("ada", other, **TOKEN), status=404)
    assert "was given this repository" in refused["hint"]
    refused = connect(site, github, "github_pat_nonsense", status=401)
    assert "github_pat_nonsense" not in str(refused)
    assert site.get("/api/github") == {"connections": [], "apps": []}


def test_a_ping_that_cannot_arrive_is_told_by_what_github_saw(
    site: Web, github: GitHub, digits: Repository
) -> None:
    site.sender.base_url = "http://127.0.0.1:9"  # where nobody listens
    report = connect(site, github, github.token("ada", digits, **TOKEN))
    ping = findings(report)["ping"]
    assert not ping["ok"]
    assert "failed to connect to host" in ping["says"]
    assert "http://127.0.0.1:9/webhooks/github" in ping["hint"]
    # Once it is mended, connecting again moves the hook.
    site.sender.base_url = site.url
    assert connect(site, github)["ok"]
    (hook,) = digits.hooks.values()
    assert hook.url == f"{site.url}/webhooks/github"


def test_check_tells_what_became_of_the_hook(site: Web, github: GitHub, digits: Repository) -> None:
    connect(site, github, github.token("ada", digits, **TOKEN))
    (hook,) = digits.hooks.values()

    def check() -> dict[str, dict[str, Any]]:
        answer = site.ask("POST", "/api/github/check", json={"repository": "ada/digits"})
        return findings(answer.json())

    found = check()
    assert all(one["ok"] for one in found.values()), found
    assert found["rate limit"]["says"].endswith("of 5000 requests are left this hour")
    hook.secret = "somebody changed it at GitHub"
    github.rename(digits, "numbers")
    github.settle()
    found = check()
    assert "1 of the last" in found["deliveries"]["says"]
    assert "answered with 401" in found["deliveries"]["says"]
    assert "the secrets differ" in found["deliveries"]["hint"]
    hook.active = False
    assert "switched off" in check()["webhook"]["says"]
    digits.hooks.clear()
    assert "removed at GitHub" in check()["webhook"]["says"]


def test_what_did_not_arrive_is_asked_for_again(site: Web, github: GitHub, digits: Repository) -> None:
    connect(site, github, github.token("ada", digits, **TOKEN))
    (hook,) = digits.hooks.values()
    right, hook.url = hook.url, "http://127.0.0.1:9/webhooks/github"
    github.page_size = 2
    for number in range(3):
        digits.run("update-ref", f"refs/heads/topic-{number}", digits.commit_of("main"))
    github.pushed(digits)
    github.settle()
    lost = {one["guid"] for one in hook.deliveries if not one["status_code"]}
    assert len(lost) == 6  # a push and a `create` for each
    hook.url = right
    github_sweep.sweep(site.sender)
    github.settle()
    assert lost == {one["guid"] for one in hook.deliveries if one["redelivery"] and one["status_code"] == 202}
    asked = len(github.asked("POST", "attempts$"))
    github_sweep.sweep(site.sender)
    assert len(github.asked("POST", "attempts$")) == asked == 6


def test_a_rename_is_followed_and_a_namesake_is_not(site: Web, github: GitHub, digits: Repository) -> None:
    connect(site, github, github.token("ada", digits, **TOKEN))
    github.rename(digits, "numbers")
    github.settle()
    (one,) = site.get("/api/github")["connections"]
    assert (one["full_name"], one["repository"]) == ("ada/numbers", "digits")
    (repo,) = [view for view in site.get("/api/repositories")["repositories"] if view["name"] == "digits"]
    assert repo["url"] == digits.clone_url
    assert connect(site, github, repository="ada/numbers")["ok"]


def test_a_rename_that_nobody_told_of_is_found(site: Web, github: GitHub, digits: Repository) -> None:
    connect(site, github, github.token("ada", digits, **TOKEN))
    (one,) = site.sender.store.connections()
    digits.hooks.clear()
    github.rename(digits, "numbers")
    github.settle()
    with pytest.raises(TrainForgeError):
        events.handle_hint(site.sender, one.repository_id, "poll")
    github_sweep.sweep(site.sender)
    events.handle_hint(site.sender, one.repository_id, "poll")
    assert site.get("/api/github")["connections"][0]["full_name"] == "ada/numbers"


def test_as_an_app_that_is_made_from_a_manifest(site: Web, github: GitHub, digits: Repository) -> None:
    begun = site.ask("POST", "/api/github/apps", json={"api_url": github.api}).json()
    with httpx2.Client(timeout=30, trust_env=False) as browser:
        page = browser.get(begun["url"], headers={"Accept": "text/html"})
        assert github.site in page.headers["content-security-policy"]
        where, manifest = _form(page.text)
        agreed = browser.post(where, data={"manifest": manifest})
        assert agreed.status_code == 302
        made = browser.get(agreed.headers["location"], headers={"Accept": "text/html"})
        again = browser.get(agreed.headers["location"], headers={"Accept": "text/html"})
    assert made.status_code == 303
    assert again.status_code == 404
    (app,) = github.apps.values()
    assert made.headers["location"].endswith(f"/apps/{app.slug}/installations/new")
    assert (app.permissions, app.events) == (APP_PERMISSIONS, list(APP_EVENTS))
    assert connect(site, github, app=app.id, status=404)["hint"]
    connect(site, github, github.token("ada", digits, **TOKEN))
    assert digits.hooks  # which the App's takes the place of
    installation = github.install(app, "ada", digits)
    github.settle()
    report = connect(site, github, app=app.id)
    assert report["ok"], report
    # Each token was for this repository alone, for one need, and was given back, but for the one that git
    # polls with.
    minted = [one for one in github.tokens.values() if one.installation == installation.id]
    assert all(one.repositories == {digits.id} for one in minted)
    assert [one.permissions for one in minted if not one.revoked] == [{"contents": "write"}]
    assert {"metadata": "read"} in [one.permissions for one in minted if one.revoked]
    assert not digits.hooks
    _lends_and_takes_back(site, github, digits)
    # A comment that did not arrive is asked for again by the App as well, and a rename found.
    right, app.hook.url = app.hook.url, "http://127.0.0.1:9/"
    digits.run("update-ref", "refs/heads/topic", digits.commit_of("main"))
    github.comment(digits, github.open_pull(digits, "topic", "ada"), "ada", "hello")
    github.settle()
    github.rename(digits, "numbers")
    github.settle()
    (connection,) = site.sender.store.connections()
    with pytest.raises(TrainForgeError):
        events.handle_hint(site.sender, connection.repository_id, "poll")
    github_sweep.sweep(site.sender)
    github.settle()
    assert site.get("/api/github")["connections"][0]["full_name"] == "ada/numbers"
    app.hook.url = right
    github_sweep.sweep(site.sender)
    github.settle()
    again = [one["event"] for one in app.hook.deliveries if one["redelivery"] and one["status_code"] == 202]
    assert sorted(again) == ["issue_comment", "pull_request", "repository"]
    github.uninstall(installation)
    assert site.get("/api/github")["connections"][0]["problem"] == "the App was uninstalled"


def _lends_and_takes_back(site: Web, github: GitHub, digits: Repository) -> None:
    """A job's machines get one token for its repository, which ends with the job."""
    sender, job = site.sender, site.add_job()
    (connection,) = sender.store.connections()
    about = (sender, job, connection.repository_id, digits.clone_url)
    lent = github_access.job_credential(*about)
    assert lent is not None and lent == github_access.job_credential(*about)
    token = github.tokens[lent.password]
    assert (token.permissions, token.repositories) == ({"contents": "write"}, {digits.id})
    github_access.take_back(sender)
    assert not token.revoked
    site.end(job)
    github_access.take_back(sender)
    assert token.revoked
    assert github_access.job_credential(sender, job, connection.repository_id, "http://x.org/a/b.git") is None


def _form(page: str) -> tuple[str, str]:
    import html  # noqa: PLC0415
    import re  # noqa: PLC0415

    where = re.search(r'<form method="post" action="([^"]+)"', page)
    manifest = re.search(r'name="manifest" value="([^"]+)"', page)
    assert where and manifest, page
    return html.unescape(where[1]), html.unescape(manifest[1])


def test_disconnecting_takes_the_hook_and_the_token_away(
    site: Web, github: GitHub, digits: Repository
) -> None:
    connect(site, github, github.token("ada", digits, **TOKEN))
    gone = site.ask("DELETE", "/api/github/connections", params={"repository": "ada/digits"})
    assert gone.status_code == 200
    assert not digits.hooks
    assert site.sender.store.documents("sealed") == {}
    assert connect(site, github, status=404)["code"] == "not_found"


def test_without_an_address_that_github_reaches_pushes_are_polled(site: Web) -> None:
    """No hook is made that could never arrive."""
    site.sender.base_url = "http://192.168.1.7:8420"
    connection = Connection("git:x", "ada/digits", 1, "https://api.github.com", None, None, "ada", 0.0)
    found = github_connect._hook(site.sender, connection, True)
    assert not found.ok
    assert "GitHub cannot reach http://192.168.1.7:8420" in found.says
    assert "public_url" in found.hint
    refused = site.ask("POST", "/api/github/apps", json={})
    assert (refused.status_code, refused.json()["code"]) == (409, "conflict")
    assert "public_url" in refused.json()["hint"]
