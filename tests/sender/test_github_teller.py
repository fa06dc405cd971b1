"""Telling GitHub of jobs: each change once, over restarts and through whatever GitHub says to it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from support.github_site import GATED, MANIFEST, Hub, hub
from trainforge.hooks.github_deliveries import CheckRun
from trainforge.sender.github_teller import Teller
from trainforge.sender.schema_reports import github_reports

MISSED = [{"metric": "accuracy", "passed": False, "words": "accuracy is 0.5, wanted at least 0.9"}]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Hub]:
    with hub(tmp_path) as made:
        yield made


@pytest.fixture
def job(site: Hub) -> str:
    return site.job(site.push({"trainforge.yaml": GATED, "train.py": ""}))


def test_a_token_sets_a_status_for_each_change_and_no_more(site: Hub, job: str) -> None:
    site.connect()
    site.look()
    site.look()
    assert site.statuses() == [("pending", "queued")]
    site.change(job, state="running")
    Teller(site.sender).look()  # as after a restart
    site.look()
    site.change(job, state="completed", gates=MISSED)
    site.look()
    site.ahead += 3600
    Teller(site.sender).look()
    assert site.statuses() == [
        ("failure", "gate missed: accuracy is 0.5, wanted at least 0.9"),
        ("pending", "training"),
        ("pending", "queued"),
    ]
    where = site.found.statuses[0]["target_url"]
    assert where.startswith(f"{site.github.site}/ada/digits/tree/trainforge-results/jobs/")
    assert site.github.asked("POST", "check-runs") == []


def test_jobs_from_before_the_connection_and_tries_of_people_are_not_told(site: Hub, job: str) -> None:
    site.ahead += 100
    site.connect()
    commit = site.push({"trainforge.yaml": MANIFEST})
    site.job(commit, overrides={"seed": 3})
    site.look()
    assert site.statuses() == []
    site.job(commit)
    site.look()
    assert len(site.statuses()) == 1


def test_an_app_has_a_check_run_with_summary_and_buttons(site: Hub, job: str) -> None:
    app = site.connect_app()
    site.look()
    (run,) = site.found.check_runs.values()
    assert (run["status"], run["external_id"]) == ("queued", job)
    site.change(job, state="completed", metrics={"accuracy": 0.95, "loss": 0.1})
    later = site.job(site.push({"trainforge.yaml": GATED, "x": "1"}))
    site.change(later, state="completed", metrics={"accuracy": 0.97, "loss": 0.2}, gates=MISSED)
    site.look()
    first, second = site.found.check_runs.values()
    assert (first["conclusion"], second["conclusion"]) == ("success", "failure")
    assert "+0.02" in second["output"]["summary"], "compared with the result before it"
    assert first["output"]["title"] == "completed in 12 s"
    made = [token for token in site.github.tokens.values() if token.app == app.id]
    assert all(token.revoked for token in made if "contents" not in token.permissions), "but the one for git"


def test_a_manifest_that_cannot_be_used_is_annotated_once(site: Hub) -> None:
    site.connect_app()
    job = site.job(site.push({"trainforge.yaml": "project: {name: p}\ntraining: {}\n"}))
    site.look()
    site.change(job, state="failed", code="manifest_invalid", reason="it cannot be used", ended=site.now)
    site.look()
    told = [one.body["output"] for one in site.github.requests if "check-runs" in one.path and one.body]
    assert [len(one.get("annotations", [])) for one in told] == [0, 1]
    assert told[1]["annotations"][0]["start_line"] == 2


def test_a_crash_after_telling_makes_no_second_check_run(site: Hub, job: str) -> None:
    site.connect_app()
    site.look()
    with site.sender.store.write() as c:  # what was told is not written down
        c.execute(sa.update(github_reports).values(remote_id=None, told=""))
    site.change(job, state="running")
    Teller(site.sender).look()
    (run,) = site.found.check_runs.values()
    assert run["status"] == "in_progress"


def test_patience_is_kept_and_nothing_is_lost(site: Hub, job: str) -> None:
    site.connect()
    site.github.slow_down(120)
    site.look()
    asked = len(site.github.requests)
    site.look()
    assert len(site.github.requests) == asked, "GitHub said when to come back"
    assert "rate limit" in site.sender.store.connections()[0].problem
    site.ahead += 121
    site.github.slow_down(60)
    site.look()
    asked = len(site.github.requests)
    site.ahead += 121
    site.look()
    assert len(site.github.requests) == asked, "once more too busy: longer than the last time"
    site.ahead += 121
    site.look()
    assert site.statuses() == [("pending", "queued")]
    assert site.sender.store.connections()[0].problem == ""
    site.github.use_up_rate(300)
    site.change(job, state="running")
    site.look()
    assert len(site.statuses()) == 1
    site.ahead += 302
    site.github.rate.remaining = 5000
    site.look()
    assert len(site.statuses()) == 2


def test_a_job_that_came_and_went_while_github_was_away_is_told(site: Hub, job: str) -> None:
    site.connect()
    site.github.fail(502, times=99)
    site.look()
    site.change(job, state="completed")
    for _ in range(3):
        site.ahead += 600
        Teller(site.sender).look()
    assert site.statuses() == []
    site.github.troubles.clear()
    Teller(site.sender).look()
    assert site.statuses() == [("success", "completed in 12 s")]


def test_what_a_token_may_not_do_leaves_it_the_rest(site: Hub, job: str) -> None:
    site.connect()
    for token in site.github.tokens.values():
        del token.permissions["pull_requests"], token.permissions["issues"]
    site.look()
    site.change(job, state="running")
    site.look()
    assert len(site.statuses()) == 2
    assert "Pull requests" in site.sender.store.connections()[0].problem


def test_a_commit_that_github_does_not_have_stands_in_no_ones_way(site: Hub, job: str) -> None:
    site.connect()
    site.github.fail(422, "No commit found for SHA", path=f"statuses/{site.jobs()[0].commit}", times=99)
    other = site.job(site.push({"trainforge.yaml": MANIFEST, "y": "2"}))
    site.look()
    assert [one["description"] for one in site.found.statuses] == ["queued"]
    for _ in range(12):
        site.ahead += 1000
        site.look()
    asked = len(site.github.asked("POST", "statuses"))
    site.ahead += 1000
    site.look()
    assert len(site.github.asked("POST", "statuses")) == asked, "given up"
    site.change(other, state="running")
    site.look()
    assert site.statuses()[0] == ("pending", "training")


def test_a_missing_permission_is_said_at_the_connection(site: Hub, job: str) -> None:
    site.connect()
    for token in site.github.tokens.values():
        token.permissions["statuses"] = "read"
    site.look()
    assert "Commit statuses" in site.sender.store.connections()[0].problem
    assert site.sender.store.job(job)["state"] == "pending"


def test_buttons_stop_and_run_again(site: Hub, job: str) -> None:
    app = site.connect_app()
    commit = site.jobs()[0].commit
    site.look()
    (number,) = site.found.check_runs

    def press(action: str, delivery: str, login: str = "grace", **more: str) -> None:
        run = CheckRun(action, number, "trainforge", commit, job, more.pop("app", app.id), **more)  # type: ignore[arg-type]
        site.hear(run, delivery, login)
        site.look()

    press("requested_action", "1", "mallory", identifier="stop")
    assert site.sender.store.job(job)["stop_requested"] is None, "only who may push"
    press("requested_action", "2", identifier="stop")
    assert site.sender.store.job(job)["stop_reason"] == "stopped by grace on GitHub"
    site.change(job, state="cancelled", code="stopped", ended=site.now)
    press("rerequested", "3")
    press("rerequested", "3")
    site.hear(CheckRun("rerequested", number, "trainforge", commit, job, app.id + 1), "4", "grace")
    site.look()
    again = [one for one in site.jobs() if one.rerun_of == job]
    assert len(again) == 1, "once for one press, and not for another App's"
    site.look()
    assert [one["conclusion"] for one in site.found.check_runs.values()] == ["cancelled", None]
