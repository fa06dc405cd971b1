"""A private repository of GitHub's, trained by machines that have no password for it: the App makes one."""

from __future__ import annotations

import html
import re
from pathlib import Path

import httpx2

from support.fleet import Fleet
from support.github import App, GitHub, Repository, serving_github
from support.waiting import wait_for

TRAIN = 'import json\nprint("PROGRESS: " + json.dumps({"loss": 0.5}), flush=True)\n'
MANIFEST = "project: {name: digits}\ntraining: {script: train.py, launcher: python}\n"


def _make_app(fleet: Fleet, github: GitHub) -> App:
    """What the browser of an admin does."""
    begun = fleet.api("POST", "/api/github/apps", json={"api_url": github.api})
    with httpx2.Client(timeout=30, trust_env=False, headers={"Accept": "text/html"}) as browser:
        page = browser.get(begun["url"]).text
        form = re.search(r'action="([^"]+)"', page)
        manifest = re.search(r'name="manifest" value="([^"]+)"', page)
        assert form and manifest, page
        agreed = browser.post(html.unescape(form[1]), data={"manifest": html.unescape(manifest[1])})
        browser.get(agreed.headers["location"])
    (made,) = github.apps.values()
    return made


def test_machines_get_a_token_for_the_jobs_repository_alone(fleet: Fleet, tmp_path: Path) -> None:
    with serving_github(tmp_path / "github") as github:
        digits = github.add_repository("ada/digits", private=True)
        other = github.add_repository("ada/other", private=True)
        fleet.start_sender(poll_interval=600)
        fleet.add_executor("alpha")
        app = _make_app(fleet, github)
        installation = github.install(app, "ada", digits, other)
        asked = {"repository": "ada/digits", "api_url": github.api, "app": app.id}
        report = fleet.api("POST", "/api/github/connections", json=asked)
        assert report["ok"], report
        mine = github.token("ada", digits, contents="write")
        work = fleet.root / "work"
        work.mkdir()
        fleet.git("init", "-q", "-b", "main", cwd=work)
        commit = fleet.commit(work, {"train.py": TRAIN, "trainforge.yaml": MANIFEST})
        remote = digits.clone_url.replace("://", f"://ada:{mine}@")
        fleet.git("push", "-q", remote, "main", cwd=work)
        ended = fleet.wait_ended(fleet.the_job())
        assert (ended["state"], ended["commit"]) == ("completed", commit), ended
        assert "[skip ci]" in digits.run("log", "-1", "--format=%s", "trainforge-results")
        run = wait_for(
            "a check run that has ended",
            lambda: next((one for one in digits.check_runs.values() if one["conclusion"]), None),
            60,
            fleet.logs,
        )
        assert run["conclusion"] == "success"

        def left() -> list[dict[str, str]]:
            minted = [one for one in github.tokens.values() if one.installation == installation.id]
            assert all(one.repositories == {digits.id} for one in minted)
            return [one.permissions for one in minted if not one.revoked]

        # One that the sender polls with, and one that the machine had; each of the others was given back.
        wait_for("tokens given back", lambda: left() == [{"contents": "write"}] * 2, 20, lambda: str(left()))
        _what_a_program_asks_for(fleet, github, mine)
        _what_came_while_it_was_down(fleet, github, digits, app)
        fleet.close()
        everything = b"".join(p.read_bytes() for p in (fleet.root / "alpha").rglob("*") if p.is_file())
        assert not [text for text in github.tokens if text.encode() in everything]


def _what_a_program_asks_for(fleet: Fleet, github: GitHub, token: str) -> None:
    """It cannot be had, and the events say why."""
    asked = {"event_type": "trainforge", "client_payload": {"manifest": "other.yaml"}}
    headers = {"Authorization": f"Bearer {token}"}
    url = f"{github.api}/repos/ada/digits/dispatches"
    assert httpx2.post(url, json=asked, headers=headers, trust_env=False).status_code == 204

    def came() -> dict[str, str] | None:
        events = fleet.api("GET", "/api/events")["events"]
        return next((one for one in events if one["source"] == "repository_dispatch"), None)

    event = wait_for("what came of it", came, 30, fleet.logs)
    assert (event["decision"], "other.yaml" in event["reason"]) == ("refused", True), event


def _what_came_while_it_was_down(fleet: Fleet, github: GitHub, digits: Repository, app: App) -> None:
    """A sender that starts asks for the deliveries that it missed."""
    fleet.kill("sender")
    digits.run("update-ref", "refs/heads/later", digits.commit_of("main"))
    github.pushed(digits)
    github.settle()
    (missed,) = [
        one["guid"] for one in app.hook.deliveries if one["event"] == "push" and not one["status_code"]
    ]
    fleet.start_sender(poll_interval=600)

    def again() -> bool:
        sent = [one for one in app.hook.deliveries if one["guid"] == missed and one["redelivery"]]
        return any(one["status_code"] == 202 for one in sent)

    wait_for("delivery that was missed", again, 30, fleet.logs)
