"""What we ask of GitHub, asked of Prism: each call is as described, and GitHub's own examples can be read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from support.prism import Prism, serving_prism
from support.web import Web
from trainforge.config.gates import Verdict
from trainforge.hooks.github_api import GitHubApi, GitHubRefuses, TokenAccess
from trainforge.hooks.github_calls import Calls
from trainforge.hooks.github_comment import MARKER, PlannedManifest, PullPlan, comment
from trainforge.hooks.github_report import Report, check_run, status
from trainforge.sender import github_connect, github_sweep

NAME, COMMIT = "octocat/Hello-World", "c" * 40
TOKEN = TokenAccess("github_pat_x")


@pytest.fixture(scope="module")
def _started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prism]:
    with serving_prism(tmp_path_factory.mktemp("prism")) as made:
        yield made


@pytest.fixture
def prism(_started: Prism) -> Iterator[Prism]:
    """The one of all tests here; each sees to it that nothing was refused."""
    before = len(_started.refused())
    yield _started
    assert _started.refused()[before:] == []


def report(**changes: Any) -> Report:
    usual: dict[str, Any] = {
        "job": "abcdefgh" + "z" * 18, "project": "digits", "commit": COMMIT, "state": "running",
        "manifest_path": "trainforge.yaml", "created": 1_795_000_000.0, "job_url": "https://tf.example/jobs/x",
    }  # fmt: skip
    return Report(**usual | changes)


PROBLEM = {"message": "expected a number", "place": "trainforge.yaml:3:5"}
REPORTS = [
    report(state="pending", waiting={"alpha": "is busy"}),
    report(machines=["alpha"]),
    report(state="failed", code="manifest_invalid", problems=[PROBLEM]),
    report(
        state="completed", started=1_795_000_001.0, ended=1_795_000_013.0, metrics={"acc": 0.95},
        gates=[Verdict(metric="acc", passed=True, words="acc is 0.95: at least 0.9")],
    ),
]  # fmt: skip


def test_jobs_and_pull_requests_are_told(prism: Prism) -> None:
    plan = PullPlan(head=COMMIT, base="main", manifests=[PlannedManifest(path="trainforge.yaml")])
    with GitHubApi(TOKEN, prism.url).repository(NAME, {}) as repository:
        calls = Calls(repository, NAME)
        for one in REPORTS:
            calls.set_status(COMMIT, status(one))
            calls.update_check_run(calls.create_check_run(check_run(one)), check_run(one))
        assert calls.find_check_run(COMMIT, "trainforge", REPORTS[0].job) is None
        calls.update_comment(calls.create_comment(1347, comment(plan, REPORTS)), comment(plan, REPORTS))
        assert calls.find_comment(1347, "Me too") == 1
        assert calls.find_comment(1347, MARKER) is None
        calls.react(1, "rocket")
        assert calls.may_write("monalisa")
        pull = calls.pull(1347)
        assert (pull.number, pull.head_ref, pull.base_ref, pull.fork) == (1347, "new-topic", "master", False)
        assert [one.number for one in calls.open_pulls()] == [1347]


@pytest.fixture(autouse=True)
def _no_ping_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(github_connect, "PING_WAIT_S", 0)


def connect(site: Web, prism: Prism, **more: Any) -> dict[str, Any]:
    asked = {"repository": NAME, "api_url": prism.url} | more
    answer = site.ask("POST", "/api/github/connections", json=asked)
    assert answer.status_code == 200, answer.text
    return {one["what"]: one for one in answer.json()["findings"]}


def test_a_repository_is_connected_and_looked_after(site: Web, prism: Prism) -> None:
    found = connect(site, prism, token=TOKEN.token)
    assert "made at GitHub" in found["webhook"]["says"]
    assert found["permissions"]["says"].startswith("the token may read webhooks and write")
    assert found["rate limit"]["says"] == "4999 of 5000 requests are left this hour"
    assert "given a new secret" in connect(site, prism)["webhook"]["says"]
    github_sweep.sweep(site.sender)
    with GitHubApi(TOKEN, prism.url).repository(NAME, {}) as repository:
        ask, path = repository.requester.requestJsonAndCheck, f"/repos/{NAME}/hooks/12345678/deliveries"
        assert github_sweep.ask_again(ask, path, since=0) == 0
        ask("POST", f"{path}/12345678/attempts")
    gone = site.ask("DELETE", "/api/github/connections", params={"repository": NAME}).json()
    assert "webhook" not in gone["problem"]


def test_an_app_is_made_and_works_by_tokens_for_one_need(site: Web, prism: Prism) -> None:
    begun = site.ask("POST", "/api/github/apps", json={"api_url": prism.url}).json()
    made = site.ask("GET", begun["url"].removeprefix(site.url).replace("/new", "/made") + "&code=12345678")
    assert made.status_code == 303, made.text
    (app,) = site.get("/api/github")["apps"]
    assert app["slug"] == "octoapp"
    found = connect(site, prism, app=app["id"])
    assert found["access"]["ok"]
    assert "with a new secret" in found["webhook"]["says"]


def test_a_wrong_call_is_refused(_started: Prism) -> None:
    wrong: list[tuple[str, str, dict[str, Any], str]] = [
        ("POST", f"/statuses/{COMMIT}", {"state": "finished"}, "property state must be equal to one of"),
        ("POST", "/check-runs", {"name": "trainforge"}, "must have required property 'head_sha'"),
        ("PATCH", "/check-runs/4", {"status": "running"}, "property status must be equal to one of"),
        ("POST", "/issues/1347/comments", {"text": "hello"}, "must have required property 'body'"),
        ("POST", "/issues/comments/1/reactions", {"content": "shrug"}, "property content must be equal to"),
        ("POST", "/hooks", {"events": "push"}, "property events must be array"),
    ]
    with GitHubApi(TOKEN, _started.url).repository(NAME, {}) as repository:
        for method, path, body, words in wrong:
            before = len(_started.refused())
            with pytest.raises(GitHubRefuses, match="422"):
                Calls(repository, NAME)._call(method, path, body)
            assert words in " ".join(_started.refused()[before:])
