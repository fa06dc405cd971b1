"""What is started at GitHub without a push: `repository_dispatch`, workflows by hand, all checks again."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest

from support.github import App, GitHub, Repository, serving_github
from support.repositories import Project
from support.web import Web, web
from trainforge.config.errors import MessageInvalid
from trainforge.hooks.github import sign
from trainforge.sender import events, github_dispatch, sealed
from trainforge.sender.github_access import app_secrets
from trainforge.sender.github_diagnosis import APP_EVENTS, APP_PERMISSIONS
from trainforge.sender.github_teller import Teller
from trainforge.sender.store_commands import Asked
from trainforge.sender.store_events import Repo
from trainforge.sender.store_github import App as KnownApp
from trainforge.sender.store_github import Connection

BY_HAND = "set by hand"
MANIFEST = "project: {name: digits}\ntraining: {script: train.py, launcher: python}\n"


class Desk:
    """A sender whose repository is connected by an App; `main` and `topic` were there before."""

    def __init__(self, folder: Path, github: GitHub, site: Web) -> None:
        self.github, self.site = github, site
        self.found = github.add_repository("ada/digits", private=True, grace="write", mallory="read")
        self.project = Project(folder / "work")
        self.commits = {"topic": self.push("topic", {"sub/trainforge.yaml": MANIFEST})}
        self.commits["main"] = self.push("main", {"trainforge.yaml": MANIFEST, "train.py": ""})
        self.push("trainforge-results", {})
        self.app = github.add_app(
            "tf", dict(APP_PERMISSIONS), list(APP_EVENTS), f"{site.url}/webhooks/github", "the app's"
        )
        github.install(self.app, "ada", self.found)
        self.repo = self._connect(self.app)
        self.token = github.token("grace", self.found, contents="write", metadata="read")
        self.teller = Teller(site.sender)
        events.handle_hint(site.sender, self.repo.id, "poll")  # what is there was there before

    def _connect(self, app: App) -> Repo:
        sender, now, url = self.site.sender, self.site.sender.now(), self.found.clone_url
        name = url.removeprefix("http://").removesuffix(".git")
        repo = sender.store.add_repository(Repo(f"git:{name}", "digits", url, "remote"), now)
        sender.store.add_app(KnownApp(app.id, self.github.api, app.slug, "", "ada", now), "ada")
        sealed.keep(
            sender, app_secrets(app.id), {"private_key": app.private_key, "hook_secrets": ["the app's"]}
        )
        made = Connection(
            repo.id, "ada/digits", self.found.id, self.github.api, app.id, None, "ada", now - 60
        )
        sender.store.connect(made, "ada")
        return repo

    def push(self, branch: str, files: dict[str, str], *, to: Repository | None = None) -> str:
        commit = self.project.commit({"notes.txt": branch} | files)
        target = to or self.found
        self.project.git("push", "--quiet", "--force", str(target.git), f"HEAD:refs/heads/{branch}")
        self.github.heads[target.id] = target.refs()  # nobody is told
        return commit

    def dispatch(self, event_type: str = "trainforge", **payload: Any) -> dict[str, Any]:
        """As `gh api repos/ada/digits/dispatches` does; what came of it."""
        answer = httpx2.post(
            f"{self.github.api}/repos/ada/digits/dispatches",
            headers={"Authorization": f"Bearer {self.token}"},
            json={"event_type": event_type, "client_payload": payload},
            trust_env=False,
        )
        assert answer.status_code == 204, answer.text
        return self.newest("repository_dispatch")

    def newest(self, source: str) -> dict[str, Any]:
        self.settle()
        return self.events(source)[0]

    def settle(self) -> None:
        self.github.settle()
        assert self.app.hook.deliveries[0]["status_code"] == 202, self.app.hook.deliveries[0]
        self.teller.look()

    def events(self, source: str) -> list[dict[str, Any]]:
        found = self.site.get("/api/events", params={"limit": 200})["events"]
        return [one for one in found if one["source"] == source]

    def job(self, event: dict[str, Any]) -> dict[str, Any]:
        assert (event["decision"], len(event["jobs"])) == ("job", 1), event
        found: dict[str, Any] = self.site.get(f"/api/jobs/{event['jobs'][0]}")
        return found

    def jobs(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.site.get("/api/jobs", params={"limit": 200})["jobs"]
        return found


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    folder = tmp_path_factory.mktemp("dispatch")
    with serving_github(folder / "github") as github, web(folder, webhook_secret=BY_HAND) as site:
        yield Desk(folder, github, site)


def test_a_dispatch_trains_what_it_asks_for_once(desk: Desk) -> None:
    event = desk.dispatch()
    job = desk.job(event)
    assert (job["commit"], job["ref"], job["source"]) == (
        desk.commits["main"], "refs/heads/main", "repository_dispatch"
    )  # fmt: skip
    assert event["reason"] == "asked for by grace"
    sent = next(one for one in desk.app.hook.deliveries if one["event"] == "repository_dispatch")
    assert sent["response"]["payload"].endswith('"trainforge.yaml at refs/heads/main is noted"}')
    before = (len(desk.jobs()), len(desk.events("repository_dispatch")))
    desk.github.redeliver(desk.found.id, desk.app.hook, sent)
    desk.settle()
    assert (len(desk.jobs()), len(desk.events("repository_dispatch"))) == before
    again = desk.dispatch()
    assert (again["decision"], again["jobs"]) == ("ignored", [])
    assert again["reason"] == f"job {job['id'][:8]} is the same; `rerun` trains it again"
    once_more = desk.job(desk.dispatch(rerun=True))
    assert (once_more["commit"], once_more["id"] == job["id"]) == (job["commit"], False)


def test_a_dispatch_names_branch_commit_manifest_keys_and_executors(desk: Desk) -> None:
    desk.site.add_executor("alpha")
    asked = {"manifest": "sub/trainforge.yaml", "set": {"training.params.lr": 0.5}, "executors": ["!alpha"]}
    job = desk.job(desk.dispatch(ref="topic", **asked))
    assert (job["ref"], job["commit"], job["manifest_path"]) == (
        "refs/heads/topic", desk.commits["topic"], "sub/trainforge.yaml"
    )  # fmt: skip
    row = desk.site.sender.store.job(job["id"])
    assert (row["overrides"], len(row["executors"])) == ({"training.params.lr": 0.5}, 1)
    older = desk.job(desk.dispatch(commit=desk.commits["topic"], manifest="sub/trainforge.yaml"))
    assert (older["ref"], older["commit"]) == ("", desk.commits["topic"])


@pytest.mark.parametrize(
    ("words", "payload"),
    [
        ("client_payload has an unknown key, set.x; it takes ref, commit, ", {"set.x": 1}),
        ("client_payload.set: Input should be a valid dictionary", {"set": "resources.nodes=2"}),
        ("client_payload.commit is not the whole id", {"commit": "HEAD"}),
        ("client_payload.rerun: ", {"rerun": "yes"}),
        ("client_payload.executors: ", {"executors": "alpha"}),
        ("client_payload.ref: ", {"ref": None}),
        ("refs/pull/9/head is neither a branch nor a tag", {"ref": "refs/pull/9/head"}),
        ("not a full ref name", {"ref": "../main"}),
        ("not a full ref name", {"ref": "main\nrefs/heads/x"}),
        ("not a usable path", {"manifest": "../../etc/passwd"}),
        ("client_payload has more than 65536 bytes", {"set": {"training.params.x": "y" * 66_000}}),
    ],
)
def test_a_payload_that_cannot_be_meant_is_refused(words: str, payload: dict[str, Any]) -> None:
    with pytest.raises(MessageInvalid) as caught:
        github_dispatch.read_request(payload, "main")
    assert words in str(caught.value)
    assert len(str(caught.value)) < 600


def test_a_dispatch_that_cannot_be_is_refused_with_its_reason(desk: Desk) -> None:
    fork = desk.github.add_repository("mallory/digits", fork_of=desk.found)
    strange = desk.push("main", {"x": "1"}, to=fork)
    desk.found.run("fetch", "--quiet", str(fork.git), f"{strange}:refs/pull/9/head")
    desk.project.git("reset", "--quiet", "--hard", desk.commits["main"])
    before = len(desk.jobs())
    for words, payload in {
        "unknown key, branch; it takes ref, commit": {"branch": "main"},
        "digits has no refs/heads/nowhere": {"ref": "nowhere"},
        "this is the results branch": {"ref": "trainforge-results"},
        "there is no other.yaml at ": {"manifest": "other.yaml"},
        "resources.node: unknown key; did you mean nodes?": {"set": {"resources.node": 2}},
        "no executor nobody is known": {"executors": ["nobody"]},
        "is on no branch or tag": {"commit": strange},
    }.items():
        event = desk.dispatch(**payload)
        assert (event["decision"], words in event["reason"]) == ("refused", True), event["reason"]
    assert len(desk.jobs()) == before


def test_a_loop_of_dispatches_comes_to_an_end(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = desk.site.sender.settings.model_copy(update={"triggers_per_hour": 0})
    monkeypatch.setattr(desk.site.sender, "settings", settings)
    event = desk.dispatch(rerun=True)
    assert (event["decision"], "triggers_per_hour" in event["reason"]) == ("refused", True)


def test_what_starts_nothing_says_so(desk: Desk) -> None:
    before = len(desk.jobs())
    event = desk.dispatch("deploy", manifest=7)
    assert (event["decision"], event["reason"]) == (
        "ignored", "the event type is deploy; trainforge alone starts a job"
    )  # fmt: skip
    desk.github.start_workflow(desk.found, desk.app, "grace")
    event = desk.newest("workflow_dispatch")
    assert (event["decision"], event["ref"]) == ("ignored", "refs/heads/main")
    assert event["reason"].startswith(".github/workflows/train.yml was started by hand by grace; a workflow")
    assert len(desk.jobs()) == before


def test_the_secret_for_hooks_made_by_hand_starts_nothing(desk: Desk) -> None:
    body = json.dumps({
        "action": "trainforge", "branch": "main", "client_payload": {"rerun": True},
        "repository": desk.found.simple_json(), "sender": {"login": "grace"},
    }).encode()  # fmt: skip
    headers = {
        "X-GitHub-Event": "repository_dispatch", "X-GitHub-Delivery": str(uuid.uuid4()),
        "X-Hub-Signature-256": sign(BY_HAND, body), "Content-Type": "application/json",
    }  # fmt: skip
    answer = desk.site.ask("POST", "/webhooks/github", content=body, headers=headers)
    assert (answer.status_code, answer.json()) == (
        202, {"status": "ignored", "reason": github_dispatch.NOT_BY_APP}
    )  # fmt: skip
    desk.teller.look()
    assert desk.events("repository_dispatch")[0]["reason"] == github_dispatch.NOT_BY_APP


def test_a_dispatch_counts_once_over_a_crash(desk: Desk) -> None:
    """Its event, its jobs and that it was done are written at once."""
    sender = desk.site.sender
    request = github_dispatch.read_request({"rerun": True}, "main")
    asked = Asked(desk.repo.id, "dispatch:crash", "grace", request.model_dump_json())
    assert sender.store.add_command(asked, sender.now())
    github_dispatch.start(sender, asked)
    before = (len(desk.jobs()), len(desk.events("repository_dispatch")))
    github_dispatch.start(sender, replace(asked))
    desk.teller.look()
    assert (len(desk.jobs()), len(desk.events("repository_dispatch"))) == before


def test_all_checks_again(desk: Desk) -> None:
    files = {f"{name}/trainforge.yaml": MANIFEST for name in ("a", "b")}
    commit = desk.push("checks", files)

    def rerequest(app: App = desk.app, login: str = "grace") -> list[dict[str, Any]]:
        """The jobs that came of it."""
        known = {job["id"] for job in desk.jobs()}
        desk.github.rerequest_all(desk.found, app, commit, login)
        desk.settle()
        return [job for job in desk.jobs() if job["id"] not in known]

    events.handle_hint(desk.site.sender, desk.repo.id, "poll")
    first = [row["id"] for row in desk.site.sender.store.jobs_at(desk.repo.id, commit)]
    assert len(first) == 2
    tried = desk.dispatch(ref="checks", manifest="a/trainforge.yaml", set={"seed": 3})["jobs"][0]
    assert rerequest() == []
    (nothing,) = [one for one in desk.events("github") if one["new"] == commit]
    assert nothing["reason"] == "grace asked for all checks again, and no job of this commit has ended"
    desk.site.end(first[0])
    desk.site.end(tried, "failed")
    (again,) = rerequest()
    assert again["rerun_of"] == first[0], "all that have ended, but what somebody has tried has no check"
    desk.site.end(again["id"])
    desk.site.end(first[1], "completed", gates=[{"metric": "loss", "passed": False, "words": "loss is 1"}])
    assert rerequest(login="mallory") == []
    other = desk.github.add_app("other", dict(APP_PERMISSIONS), [], desk.app.hook.url, "the app's")
    desk.github.install(other, "ada", desk.found)
    desk.github.settle()
    assert rerequest(replace(other, hook=desk.app.hook)) == []
    (failed,) = rerequest()
    assert failed["rerun_of"] == first[1], "what failed alone, where something did"
    desk.site.end(failed["id"])
    assert {job["rerun_of"] for job in rerequest()} == {again["id"], failed["id"]}
    runs = [run for run in desk.found.check_runs.values() if run["head_sha"] == commit]
    assert {run["name"] for run in runs} == {
        "trainforge / a/trainforge.yaml",
        "trainforge / b/trainforge.yaml",
    }
