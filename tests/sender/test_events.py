"""From pushes to jobs on real git: once each, whoever says so, and with a reason where there is none."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa

from support.core import MANIFEST, make_sender
from support.core import Core as Desk
from support.repositories import Project
from trainforge.config.errors import ManifestError, NotFound, TrainForgeError
from trainforge.hooks.addresses import validate_url
from trainforge.sender import events
from trainforge.sender.store_events import Noted, Repo


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    """A sender's memory without its loops: jobs are made and stay pending."""
    sender = make_sender(tmp_path)
    yield Desk(sender, "")
    sender.store.close()


@pytest.fixture
def project(desk: Desk, tmp_path: Path) -> Project:
    project = desk.add_project(tmp_path)
    desk.announce()
    return project


def reasons(desk: Desk) -> list[str]:
    return [row[9] or row[8] for row in desk.dump()["events"]]


def push(project: Project, *args: str) -> None:
    project.git("push", "--quiet", "--force", "origin", *(args or ("HEAD",)))


def test_the_first_push_makes_a_job(desk: Desk, project: Project) -> None:
    (job,) = desk.jobs()
    row = desk.job(job)
    assert (row["project"], row["ref"], row["subject"], row["author"]) == (
        "digits",
        "refs/heads/main",
        "Start",
        "Ada",
    )
    assert row["result_path"].endswith(job)


def test_three_sources_make_one_job(desk: Desk, project: Project) -> None:
    project.commit({"trainforge.yaml": MANIFEST + "seed: 1\n"})
    push(project)
    with ThreadPoolExecutor(8) as pool:
        sources = ["webhook", "poll", "watch"] * 4
        said = list(pool.map(lambda source: events.handle_hint(desk.sender, "digits", source), sources))
    assert all("queued" in lines[-1] for lines in said), "whoever is late hears the same"
    assert len(desk.jobs()) == 2
    assert len(desk.dump()["events"]) == 2


def test_a_push_that_touches_no_manifest_says_so(desk: Desk, project: Project) -> None:
    project.commit({"README.md": "hello"})
    push(project)
    assert desk.announce() == ["TrainForge: no job: no manifest changed"]
    assert len(desk.jobs()) == 1
    assert reasons(desk)[-1] == "no manifest changed"


def test_a_new_branch_compares_with_where_it_left(desk: Desk, project: Project) -> None:
    project.git("checkout", "--quiet", "-b", "topic")
    project.commit({"notes.txt": "x"})
    push(project)
    assert desk.announce() == ["TrainForge: no job: no manifest changed"]
    project.git("checkout", "--quiet", "-b", "other")
    project.commit({"trainforge.yaml": MANIFEST + "seed: 2\n"})
    push(project)
    assert len(desk.announce()) == 1
    assert len(desk.jobs()) == 2


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_rewritten_branch_is_recorded_and_one_that_grew_is_not(
    desk: Desk, project: Project, elsewhere: bool
) -> None:
    if elsewhere:  # read through a mirror that holds the new head alone
        url = str(desk.sender.git_root / "digits.git")
        repo = Repo(validate_url(url, allow_file=True).repository_id, "far", url, "local")
        desk.sender.store.add_repository(repo, 0)
        desk.announce("far")
    name = "far" if elsewhere else "digits"
    for seed in (1, 2, 3):
        project.commit({"trainforge.yaml": MANIFEST + f"seed: {seed}\n"})
    push(project)
    desk.announce(name)
    assert "rewritten" not in reasons(desk)[-1]
    project.git("reset", "--quiet", "--hard", "HEAD~2")
    project.commit({"trainforge.yaml": MANIFEST + "seed: 4\n"})
    push(project)
    desk.announce(name)
    assert reasons(desk)[-1] == "the branch was rewritten (forced push)"
    assert len(desk.jobs()) == 3


def test_a_rewritten_branch_compares_with_its_old_head(desk: Desk, project: Project) -> None:
    project.git("commit", "--quiet", "--amend", "-m", "Start again")
    push(project)
    assert desk.announce() == ["TrainForge: no job: no manifest changed"]
    assert len(desk.jobs()) == 1


def test_deleting_a_branch_is_noted(desk: Desk, project: Project) -> None:
    push(project, "HEAD:refs/heads/topic")
    desk.announce()
    push(project, ":refs/heads/topic")
    desk.announce()
    assert reasons(desk)[-1] == "the branch was deleted"
    assert "refs/heads/topic" not in desk.sender.store.heads("builtin:digits")


def note(desk: Desk, delivery: str, before: str, commit: str) -> None:
    push = Noted("builtin:digits", "refs/heads/main", before, commit)
    assert desk.sender.store.first_delivery("github", delivery, desk.sender.now(), push)


def test_an_acknowledged_push_makes_its_job_though_the_branch_has_moved_on(
    desk: Desk, project: Project
) -> None:
    (start,) = (desk.job(job)["commit"] for job in desk.jobs())
    passed = project.commit({"trainforge.yaml": MANIFEST + "seed: 1\n"})
    newest = project.commit({"trainforge.yaml": MANIFEST + "seed: 2\n"})
    push(project)
    note(desk, "d1", start, passed)
    note(desk, "d2", passed, newest)
    desk.announce()
    assert {desk.job(job)["commit"] for job in desk.jobs()} == {start, passed, newest}
    assert desk.sender.store.noted_pushes("builtin:digits") == []
    desk.announce()
    assert len(desk.jobs()) == 3


def test_results_and_submitted_branches_pass_in_silence(desk: Desk, project: Project) -> None:
    before = len(desk.dump()["events"])
    project.commit({"jobs/2026/11/x/trainforge.yaml": MANIFEST})
    push(project, "HEAD:refs/heads/trainforge-results", "HEAD:refs/heads/trainforge/submit/ada-1")
    assert desk.announce() == []
    assert len(desk.dump()["events"]) == before
    assert len(desk.jobs()) == 1


def test_several_manifests_make_several_jobs(desk: Desk, project: Project) -> None:
    project.commit({"a/trainforge.yaml": MANIFEST, "big.trainforge.yaml": MANIFEST})
    push(project)
    assert len(desk.announce()) == 2
    assert len(desk.jobs()) == 3


def test_every_fault_of_a_manifest_is_kept(desk: Desk, project: Project) -> None:
    project.commit({"trainforge.yaml": "project: {nmae: x}\ntraining: {script: t.py}\nsede: 1\n"})
    push(project)
    desk.announce()
    problems = [desk.job(job)["problems"] for job in desk.jobs()]
    places = [problem["place"] for many in problems for problem in many]
    assert any(place.startswith("trainforge.yaml:1") for place in places)
    assert any(place.startswith("trainforge.yaml:3") for place in places)


def test_a_manifest_of_a_megabyte_is_refused_unread(desk: Desk, project: Project) -> None:
    project.commit({"trainforge.yaml": MANIFEST + "#" * 2_000_000})
    push(project)
    desk.announce()
    rows = [desk.job(job) for job in desk.jobs()]
    assert [row["manifest_text"] == "" for row in rows if row["problems"]] == [True]


# --- other remotes --------------------------------------------------------------------------------------


@pytest.fixture
def watched(desk: Desk, tmp_path: Path) -> Project:
    """A repository on this disk that existed before it was watched."""
    project = Project(tmp_path / "elsewhere")
    project.commit({"trainforge.yaml": MANIFEST})
    address = validate_url(str(project.path), allow_file=True)
    repo = Repo(address.repository_id, "elsewhere", address.text, "local")
    desk.sender.store.add_repository(repo, desk.sender.now())
    return project


def test_what_existed_before_a_repository_was_watched_makes_no_job(desk: Desk, watched: Project) -> None:
    assert desk.announce("elsewhere") == []
    assert desk.jobs() == []
    assert "existed before" in reasons(desk)[-1]


def test_a_watched_repository_makes_jobs_from_then_on(desk: Desk, watched: Project) -> None:
    desk.announce("elsewhere")
    watched.commit({"trainforge.yaml": MANIFEST + "seed: 1\n"})
    assert len(desk.announce("elsewhere")) == 1
    watched.git("checkout", "--quiet", "-b", "topic")
    watched.commit({"notes.txt": "x"})
    assert desk.announce("elsewhere") == ["TrainForge: no job: no manifest changed"]
    assert len(desk.jobs()) == 1


def test_a_repository_that_cannot_be_read_says_so(desk: Desk, watched: Project) -> None:
    watched.path.rename(watched.path.with_name("gone"))
    with pytest.raises(TrainForgeError):
        desk.announce("elsewhere")
    (repo,) = desk.sender.queries.repositories()
    assert repo.error


# --- asking for jobs --------------------------------------------------------------------------------------


def test_the_same_request_makes_the_same_job(desk: Desk, project: Project) -> None:
    commit = project.git("rev-parse", "HEAD").stdout.strip()
    plain = events.request_job(desk.sender, "digits", commit)
    assert [plain] == desk.jobs()
    wide = {"training.launcher": "torchrun"}
    first = events.request_job(desk.sender, "digits", commit, overrides=wide)
    assert events.request_job(desk.sender, "digits", commit, overrides=wide) == first != plain
    assert len(desk.jobs()) == 2


def test_impossible_requests_are_refused(desk: Desk, project: Project) -> None:
    commit = project.git("rev-parse", "HEAD").stdout.strip()
    with pytest.raises(NotFound, match="no commit"):
        events.request_job(desk.sender, "digits", "b" * 40)
    with pytest.raises(TrainForgeError):
        events.request_job(desk.sender, "digits", commit, manifest_path="nowhere/trainforge.yaml")
    with pytest.raises(NotFound, match="no executor"):
        events.request_job(desk.sender, "digits", commit, executors=["nobody"])
    with pytest.raises(ManifestError):
        events.request_job(desk.sender, "digits", commit, overrides={"resources.nodse": 2})
    assert len(desk.jobs()) == 1


def test_a_retry_is_a_new_job_that_names_the_old(desk: Desk, project: Project) -> None:
    (old,) = desk.jobs()
    first, second = events.retry_job(desk.sender, old), events.retry_job(desk.sender, old)
    assert len({old, first, second}) == 3
    assert desk.job(second)["rerun_of"] == old


MATRIX = MANIFEST + (
    "strategy: {matrix: {lr: [0.1, 0.01], depth: [1, 2]}, exclude: [{lr: 0.1, depth: 2}]}\n"
    "concurrency: {group: sweep, cancel_in_progress: true}\n"
)


def test_a_matrix_makes_a_job_of_each_cell(desk: Desk, project: Project) -> None:
    (alone,) = desk.jobs()
    commit = project.commit({"trainforge.yaml": MATRIX})
    push(project)
    said = desk.announce()
    jobs = [job for job in desk.jobs() if job != alone]
    rows = [desk.job(job) for job in jobs]
    cells = [{"lr": 0.1, "depth": 1}, {"lr": 0.01, "depth": 1}, {"lr": 0.01, "depth": 2}]
    assert [row["cell"] for row in rows] == cells
    assert rows[0]["overrides"] == {"training.params.lr": 0.1, "training.params.depth": 1}
    (matrix,) = {row["matrix"] for row in rows}
    assert matrix not in {*jobs, ""}
    assert {(row["concurrency"], row["cancels"]) for row in rows} == {("sweep", True)}
    assert said[0].endswith("queued (digits, trainforge.yaml, lr=0.1, depth=1)")
    assert events.request_job(desk.sender, "digits", commit) == jobs[0], "asked for again, made once"
    assert len(desk.jobs()) == 4


def test_one_cell_of_a_matrix_is_tried_again_alone(desk: Desk, project: Project) -> None:
    project.commit({"trainforge.yaml": MATRIX})
    push(project)
    desk.announce()
    old = desk.jobs()[-1]
    again = desk.job(events.retry_job(desk.sender, old))
    assert (again["cell"], again["matrix"], again["rerun_of"]) == ({"lr": 0.01, "depth": 2}, "", old)
    assert again["overrides"] == desk.job(old)["overrides"]
    assert len(desk.jobs()) == 5


def test_what_the_group_and_the_matrix_hold_against_a_job(desk: Desk, project: Project) -> None:
    project.commit({"trainforge.yaml": MATRIX})
    push(project)
    desk.announce()
    store = desk.sender.store
    first, second, third = desk.jobs()[1:]
    assert store.facts(first)[0].company.older == (), "the cells of a matrix do not wait for each other"
    with store.write() as c:
        c.execute(sa.text("UPDATE jobs SET state = 'running' WHERE id = :id"), {"id": first})
        c.execute(sa.text("UPDATE jobs SET ending = 'failed' WHERE id = :id"), {"id": third})
    mind = store.facts(second)[0].company
    assert mind.placed == (f"job {first[:8]} (lr=0.1, depth=1)",)
    assert mind.failed == f"job {third[:8]} (lr=0.01, depth=2)"
    newer = events.retry_job(desk.sender, third)
    assert store.facts(newer)[0].company.older == tuple(
        f"job {job[:8]} ({cell})" for job, cell in ((first, "lr=0.1, depth=1"), (second, "lr=0.01, depth=1"))
    )
    assert store.facts(first)[0].company.newer == f"job {newer[:8]} (lr=0.01, depth=2)"
    store.request_stop(newer, "stopped", "", 1.0)
    assert store.facts(first)[0].company.newer == ""


# --- loops, and commits that are nobody's ----------------------------------------------------------------


def test_a_commit_on_no_branch_is_not_trained(desk: Desk, project: Project) -> None:
    commit = project.commit({"trainforge.yaml": MANIFEST + "seed: 8\n"})
    project.git("push", "--quiet", "origin", "HEAD:refs/heads/passing")
    project.git("push", "--quiet", "origin", ":refs/heads/passing")
    before = desk.jobs()
    with pytest.raises(NotFound, match="on a branch or tag"):
        events.request_job(desk.sender, "digits", commit, ref="refs/heads/main")
    assert desk.jobs() == before


def test_results_and_own_commits_start_nothing(desk: Desk, project: Project) -> None:
    before = desk.jobs()
    project.git("config", "user.email", "trainforge@users.noreply.invalid")
    own = {"GIT_AUTHOR_EMAIL": "trainforge@users.noreply.invalid"}
    for number in range(24):
        (project.path / "trainforge.yaml").write_text(f"{MANIFEST}seed: {number}\n")
        project.git("commit", "--quiet", "-am", "Result", **own)
        branch = ("trainforge-results", "trainforge-executors", "main")[number % 3]
        project.git("push", "--quiet", "--force", "origin", f"HEAD:refs/heads/{branch}")
        if number % 3 == 2:
            desk.announce()
    assert desk.jobs() == before
    assert reasons(desk)[-1] == "TrainForge made this commit itself"


def test_a_repository_that_goes_round_in_circles_is_stopped(tmp_path: Path) -> None:
    sender = make_sender(tmp_path, triggers_per_hour=3)
    desk = Desk(sender, "")
    project = desk.add_project(tmp_path)
    desk.announce()
    for number in range(5):
        project.commit({"trainforge.yaml": MANIFEST + f"seed: {number}\n"})
        push(project)
        said = desk.announce()
    assert len(desk.jobs()) == 3
    assert "3 pushes to this repository led to jobs within the hour" in reasons(desk)[-1]
    assert "no job: 3 pushes" in said[0]
    commit = project.git("rev-parse", "HEAD").stdout.strip()
    assert events.request_job(sender, "digits", commit, ref="refs/heads/main")  # who asks by hand gets it
    sender.store.close()
