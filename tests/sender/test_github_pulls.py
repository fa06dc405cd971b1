"""Pull requests: one comment with plan and results, commands of who may push, and forks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from support.github import Repository
from support.github_site import GATED, Hub, hub
from trainforge.hooks.github_deliveries import Comment, PullRequest
from trainforge.sender.github_teller import Teller
from trainforge.sender.schema_reports import github_pulls

CHANGED = GATED.replace("python}", "python, params: {lr: 0.2}}")


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Hub]:
    with hub(tmp_path) as made:
        made.push({"trainforge.yaml": GATED, "train.py": ""})
        made.connect()
        yield made


def opened(site: Hub, files: dict[str, str] | None = None, source: Repository | None = None) -> int:
    """A pull request, and its delivery."""
    site.push(files or {"trainforge.yaml": CHANGED}, "change", to=source)
    number = site.github.open_pull(site.found, "change", "grace", head_repository=source)
    hear(site, number)
    return number


def head(site: Hub, number: int) -> str:
    return str(site.found.pulls[number]["head_sha"])


def hear(site: Hub, number: int, *, open_: bool = True) -> None:
    about = PullRequest(
        "opened", number, "", "grace", "change", head(site, number), "main", "b" * 40, fork=False, open=open_
    )
    site.hear(about)
    site.look()


def say(site: Hub, number: int, login: str, body: str) -> None:
    comment = site.github.comment(site.found, number, login, body)
    site.hear(Comment("created", number, comment, login, body, pull=True))
    site.look()


def ours(site: Hub) -> list[str]:
    return [body for body in site.comments() if not body.startswith("/trainforge")]


# --- the comment --------------------------------------------------------------------------------------------


def test_one_comment_has_the_plan_and_then_the_results(site: Hub) -> None:
    base = site.job(site.found.commit_of("main"))
    site.change(base, state="completed", metrics={"accuracy": 0.9, "loss": 0.5})
    number = opened(site)
    (planned,) = ours(site)
    assert "| <code>training&#46;params&#46;lr</code> |  | <code>0&#46;2</code> |" in planned
    assert "would have to wait now; about 12 s by past jobs" in planned
    site.look()
    Teller(site.sender).look()
    assert len(site.github.asked("PATCH", "issues/comments")) == 0, "nothing has changed"
    job = site.job(head(site, number), "refs/heads/change")
    site.change(job, state="completed", metrics={"accuracy": 0.95, "loss": 0.25})
    site.look()
    (told,) = ours(site)
    assert "| <code>loss</code> | 0.25 | 0.5 | -0.25 |" in told
    assert "✅" in told
    assert "plan for" in told


def test_a_new_push_is_planned_in_the_same_comment(site: Hub) -> None:
    number = opened(site)
    site.push({"trainforge.yaml": CHANGED.replace("0.2", "0.3")}, "change")
    hear(site, number)
    (told,) = ours(site)
    assert "0&#46;3" in told
    assert head(site, number)[:10] in told


def test_a_pull_request_without_a_manifest_is_left_alone(site: Hub) -> None:
    number = opened(site, {"notes.txt": "hello"})
    assert ours(site) == []
    say(site, number, "grace", "/trainforge plan")
    (told,) = ours(site)
    assert "No manifest differs" in told
    assert site.reactions() == ["+1"]


def test_off_and_run(site: Hub) -> None:
    opened(site, {"trainforge.yaml": CHANGED + "on: {pull_request: off}\n"})
    assert ours(site) == []
    assert site.jobs() == []
    site.github.close_pull(site.found, 1, "grace")
    hear(site, 1, open_=False)
    number = opened(site, {"trainforge.yaml": CHANGED + "on: {pull_request: run}\n"})
    assert [job.commit for job in site.jobs()] == [head(site, number)]


def test_the_comment_of_a_closed_pull_request_goes_on_until_its_jobs_have_ended(site: Hub) -> None:
    number = opened(site)
    job = site.job(head(site, number), "refs/heads/change")
    site.look()
    site.github.close_pull(site.found, number, "grace")
    hear(site, number, open_=False)
    (told,) = ours(site)
    assert "⏳" in told
    site.ahead += 2000  # until the open ones are listed again
    Teller(site.sender).look()
    site.change(job, state="completed", metrics={"accuracy": 0.95})
    Teller(site.sender).look()
    (told,) = ours(site)
    assert "✅" in told and "0.95" in told
    for verb in ("run", "plan", "retry"):
        say(site, number, "grace", f"/trainforge {verb}")
        assert ours(site)[-1] == "@grace this pull request is not open"
    assert [one.id for one in site.jobs()] == [job], "nothing is begun for it"
    asked = len(site.github.asked("PATCH", "issues/comments"))
    site.job(head(site, number), "refs/heads/change", rerun="1")
    Teller(site.sender).look()
    assert len(site.github.asked("PATCH", "issues/comments")) == asked, "it has come to its end"


def test_nothing_is_written_at_a_pull_request_that_was_closed_before(site: Hub) -> None:
    number = opened(site, {"notes.txt": "hello"})
    site.github.close_pull(site.found, number, "grace")
    site.job(head(site, number), "refs/heads/change")
    hear(site, number, open_=False)
    assert ours(site) == []


def test_pull_requests_are_found_without_deliveries(site: Hub) -> None:
    site.push({"trainforge.yaml": CHANGED}, "change")
    site.github.open_pull(site.found, "change", "grace")
    site.look()
    assert len(ours(site)) == 1


def test_a_comment_that_was_deleted_comes_back_and_one_that_was_lost_is_found(site: Hub) -> None:
    number = opened(site)
    with site.sender.store.write() as c:  # a crash between writing the comment and noting it
        c.execute(sa.update(github_pulls).values(remote_id=None, told=""))
    site.look()
    assert len(ours(site)) == 1
    site.found.comments.clear()
    site.job(head(site, number), "refs/heads/change")
    site.look()
    site.ahead += 60
    site.look()
    assert len(ours(site)) == 1


def test_a_manifest_that_cannot_be_used_is_said_in_the_plan(site: Hub) -> None:
    opened(site, {"trainforge.yaml": "project: {name: p}\ntraining: {skript: x}\n"})
    (told,) = ours(site)
    assert "cannot be used" in told
    assert "did you mean script?" in told


# --- commands -----------------------------------------------------------------------------------------------


def test_only_who_may_push_gives_orders(site: Hub) -> None:
    number = opened(site)
    say(site, number, "mallory", "/trainforge run")
    assert (site.jobs(), site.reactions()) == ([], ["-1"])
    assert len(ours(site)) == 1, "a stranger gets no reply"
    say(site, number, "grace", "/trainforge run")
    (job,) = site.jobs()
    assert (job.commit, job.ref, job.source) == (head(site, number), "refs/heads/change", "github")
    say(site, number, "grace", "/trainforge run")
    assert len(site.jobs()) == 1, "the same commit is the same job"
    say(site, number, "grace", "/trainforge dance")
    assert site.reactions() == ["-1", "rocket", "rocket", "confused"]
    assert "@grace this is none of them" in ours(site)[-1]


def test_stop_and_retry(site: Hub) -> None:
    number = opened(site)
    say(site, number, "grace", "/trainforge stop")
    assert "no job of this pull request is under way" in ours(site)[-1]
    job = site.job(head(site, number), "refs/heads/change")
    say(site, number, "grace", "/trainforge stop")
    assert site.sender.store.job(job)["stop_reason"] == "stopped by grace on GitHub"
    site.change(job, state="cancelled", ended=site.now)
    comment = site.github.comment(site.found, number, "grace", "/trainforge retry")
    for _ in range(2):  # delivered twice
        site.hear(Comment("created", number, comment, "grace", "/trainforge retry", pull=True))
        site.look()
    assert [one.rerun_of for one in site.jobs() if one.id != job] == [job]


def test_what_was_done_before_a_crash_is_not_done_again_but_answered(site: Hub) -> None:
    number = opened(site)
    site.github.fail(502, path="reactions")
    say(site, number, "grace", "/trainforge run")
    assert (len(site.jobs()), site.reactions()) == (1, [])
    site.ahead += 1000
    Teller(site.sender).look()
    assert (len(site.jobs()), site.reactions()) == (1, ["rocket"])


def test_comments_that_are_no_orders_cost_nothing(site: Hub) -> None:
    number = opened(site)
    asked = len(site.github.requests)
    for body in ("please /trainforge run", "> /trainforge run", "nice"):
        say(site, number, "grace", body)
    site.hear(Comment("edited", number, 5, "grace", "/trainforge run", pull=True))
    site.hear(Comment("created", number, 6, "grace", "/trainforge run", pull=False))
    site.hear(Comment("created", number, 7, "some[bot]", "/trainforge run", pull=True, bot=True))
    site.look()
    assert len(site.github.requests) == asked
    assert site.jobs() == []


# --- forks --------------------------------------------------------------------------------------------------


def test_a_fork_runs_only_when_its_commit_is_named(site: Hub) -> None:
    fork = site.github.add_repository("mallory/digits", fork_of=site.found)
    number = opened(site, {"trainforge.yaml": CHANGED + "on: {pull_request: run}\n"}, fork)
    (told,) = ours(site)
    assert f"/trainforge run {head(site, number)}" in told
    say(site, number, "mallory", f"/trainforge run {head(site, number)}")
    say(site, number, "grace", "/trainforge run")
    assert site.jobs() == []
    assert "has to be named" in ours(site)[-1]
    seen = head(site, number)
    site.push({"trainforge.yaml": CHANGED.replace("0.2", "0.9")}, "change", to=fork)
    say(site, number, "grace", f"/trainforge run {seen}")
    assert site.jobs() == [], "the fork has moved on"
    say(site, number, "grace", f"/trainforge run {head(site, number)}")
    assert site.reactions()[-1] == "rocket", ours(site)[-1]
    (job,) = site.jobs()
    assert (job.commit, job.ref) == (head(site, number), f"refs/trainforge/approved/{head(site, number)}")
    assert site.found.refs()[job.ref] == job.commit
    told = [entry["action"] for entry in site.sender.store.audit_rows()]
    assert "github.fork_approved" in told


def test_a_fork_does_not_choose_where_results_go(site: Hub) -> None:
    fork = site.github.add_repository("mallory/digits", fork_of=site.found)
    number = opened(site, {"trainforge.yaml": CHANGED + "results: {branch: release}\n"}, fork)
    say(site, number, "grace", f"/trainforge run {head(site, number)}")
    assert site.jobs() == []
    assert "results branch" in ours(site)[-1]
