"""Cron schedules on real git and the real store, by a clock that the test sets."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from support.core import MANIFEST, make_sender
from support.core import Core as Desk
from support.repositories import Project
from trainforge.hooks.addresses import validate_url
from trainforge.sender.schedules import LONGEST_REST_S, Scheduler
from trainforge.sender.store_events import Repo

NIGHTLY = MANIFEST + 'on: {schedule: [{cron: "*/5 * * * *"}, {cron: "0 * * * *"}]}\n'


def at(text: str) -> float:
    return datetime.fromisoformat(f"2026-11-21T{text}").replace(tzinfo=UTC).timestamp()


class Clock:
    def __init__(self, desk: Desk) -> None:
        self.moment = at("12:01:00")
        desk.sender.clock = lambda: self.moment

    def set(self, text: str) -> None:
        self.moment = at(text)


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    sender = make_sender(tmp_path)
    yield Desk(sender, "")
    sender.store.close()


@pytest.fixture
def clock(desk: Desk) -> Clock:
    return Clock(desk)


@pytest.fixture
def project(desk: Desk, clock: Clock, tmp_path: Path) -> Project:
    project = desk.add_project(tmp_path, manifest=NIGHTLY)
    desk.announce()
    return project


def slots(desk: Desk) -> list[str]:
    rows = [desk.job(job) for job in desk.jobs()]
    return [row["rerun"].removeprefix("schedule:") for row in rows if row["source"] == "schedule"]


def test_a_time_makes_one_job_and_not_before_it_comes(desk: Desk, clock: Clock, project: Project) -> None:
    scheduler = Scheduler(desk.sender)
    assert scheduler.look() == LONGEST_REST_S
    clock.set("12:04:59")
    assert scheduler.look() == 1
    assert slots(desk) == []
    clock.set("12:05:00")
    scheduler.look()
    scheduler.look()
    assert slots(desk) == ["2026-11-21T12:05Z"]
    (event,) = [event for event in desk.sender.queries.events() if event.source == "schedule"]
    assert (event.decision, event.reason) == ("job", "trainforge.yaml at 2026-11-21T12:05Z")
    assert event.jobs == [desk.jobs()[-1]]
    clock.set("13:00:00")
    scheduler.look()
    assert slots(desk)[1:] == ["2026-11-21T13:00Z"], "both of its times come: one job"


def test_of_the_times_missed_while_no_sender_ran_the_newest_runs(
    desk: Desk, clock: Clock, project: Project
) -> None:
    Scheduler(desk.sender).look()
    clock.set("12:05:01")
    Scheduler(desk.sender).look()
    clock.set("12:58:20")
    for _ in range(3):  # every restart looks again
        Scheduler(desk.sender).look()
    assert slots(desk) == ["2026-11-21T12:05Z", "2026-11-21T12:55Z"]


def test_the_newest_commit_of_the_default_branch_runs(desk: Desk, clock: Clock, project: Project) -> None:
    Scheduler(desk.sender).look()
    commit = project.commit({"train.py": "print('newer')\n"})
    project.git("push", "--quiet", "origin", "main")
    project.git("checkout", "--quiet", "-b", "topic")
    project.commit({"trainforge.yaml": NIGHTLY.replace("*/5", "*/1"), "train.py": "print('topic')\n"})
    project.git("push", "--quiet", "origin", "topic")
    clock.set("12:05:00")
    Scheduler(desk.sender).look()  # nobody has told of these pushes
    (row,) = [row for row in map(desk.job, desk.jobs()) if row["source"] == "schedule"]
    assert (row["commit"], row["ref"]) == (commit, "refs/heads/main")
    assert slots(desk) == ["2026-11-21T12:05Z"], "a topic branch has no schedule"


def test_new_times_count_from_when_they_are_seen(desk: Desk, clock: Clock, project: Project) -> None:
    scheduler = Scheduler(desk.sender)
    scheduler.look()
    project.commit({"trainforge.yaml": MANIFEST + 'on: {schedule: [{cron: "0 * * * *"}]}\n'})
    project.git("push", "--quiet", "origin", "main")
    clock.set("12:20:00")
    scheduler.look()
    assert slots(desk) == [], "the push has taken the times away"
    clock.set("13:00:00")
    scheduler.look()
    assert slots(desk) == ["2026-11-21T13:00Z"]
    project.commit({"trainforge.yaml": MANIFEST})
    project.git("push", "--quiet", "origin", "main")
    clock.set("15:00:00")
    scheduler.look()
    assert desk.sender.store.schedules() == []
    assert len(slots(desk)) == 1


def test_a_matrix_on_a_schedule_makes_all_its_jobs(desk: Desk, clock: Clock, project: Project) -> None:
    project.commit({"trainforge.yaml": NIGHTLY + "strategy: {matrix: {lr: [1, 2, 3]}}\n"})
    project.git("push", "--quiet", "origin", "main")
    desk.announce()
    Scheduler(desk.sender).look()
    clock.set("12:05:00")
    Scheduler(desk.sender).look()
    assert slots(desk) == ["2026-11-21T12:05Z"] * 3


def test_a_time_is_handled_once_by_whoever_is_first(desk: Desk, clock: Clock, project: Project) -> None:
    Scheduler(desk.sender).look()
    (schedule,) = desk.sender.store.schedules()
    clock.set("12:05:00")
    Scheduler(desk.sender)._start(schedule, at("12:05:00"))
    Scheduler(desk.sender)._start(schedule, at("12:05:00"))
    assert len(slots(desk)) == 1


def test_a_repository_that_existed_before_it_was_watched(desk: Desk, clock: Clock, tmp_path: Path) -> None:
    elsewhere = Project(tmp_path / "elsewhere")
    elsewhere.git("checkout", "--quiet", "-B", "trunk")
    commit = elsewhere.commit({"trainforge.yaml": NIGHTLY})
    address = validate_url(str(elsewhere.path), allow_file=True)
    repo = Repo(address.repository_id, "elsewhere", address.text, "local")
    desk.sender.store.add_repository(repo, clock.moment)
    desk.announce("elsewhere")
    assert desk.jobs() == []
    scheduler = Scheduler(desk.sender)
    scheduler.look()
    clock.set("12:05:00")
    scheduler.look()
    (job,) = desk.jobs()
    assert (desk.job(job)["commit"], desk.job(job)["ref"]) == (commit, "refs/heads/trunk")
    elsewhere.path.rename(tmp_path / "gone")
    clock.set("12:10:00")
    scheduler.look()
    assert len(desk.jobs()) == 2, "it runs as it was last seen"
