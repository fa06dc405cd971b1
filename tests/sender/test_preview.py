"""What a plan says of a matrix and of the jobs that wait already."""

from __future__ import annotations

from typing import Any

from support.planning import machine, manifest, node
from trainforge.sender.fit import need_of
from trainforge.sender.preview import Line, preview
from trainforge.sender.queue import QueuedJob

MATRIX = "strategy: {matrix: {lr: [1, 2, 3], depth: [1]}}\n"
TRAINING = "{script: t.py, params: {lr: 0, batch_size: 8}}"


def waiting(name: str, rest: str = "", **facts: Any) -> QueuedJob:
    return QueuedJob(name, need_of(manifest(rest)), **facts)


def test_each_job_of_a_matrix_is_shown_with_its_parameters_and_place() -> None:
    wanted = manifest(MATRIX + "resources: {processes_per_node: 2}", TRAINING)
    told = preview(wanted, [machine("a"), machine("b")], 10.0)
    assert [(cell["number"], cell["name"]) for cell in told["cells"]] == [
        (1, "lr=1, depth=1"),
        (2, "lr=2, depth=1"),
        (3, "lr=3, depth=1"),
    ]
    first, second, third = told["cells"]
    assert [cell["plan"]["nodes"][0]["name"] for cell in (first, second)] == ["a", "b"]
    assert [cell["plan"]["params"]["lr"] for cell in (first, second)] == [1, 2]
    assert first["plan"]["params"]["batch_size"] == 4
    assert third["plan"] is None
    assert third["waiting"]["matrix"] == "2 jobs of it would go first"
    assert third["waiting"]["a"] == "busy with 1 of 1 jobs"
    assert told["plan"] == first["plan"]


def test_no_more_jobs_of_a_matrix_begin_than_it_allows() -> None:
    wanted = manifest("strategy: {matrix: {lr: [1, 2, 3]}, max_parallel: 2}")
    told = preview(wanted, [machine(name) for name in "abc"], 10.0)
    assert [bool(cell["plan"]) for cell in told["cells"]] == [True, True, False]
    assert told["cells"][2]["waiting"] == {"matrix": "begins when one before it has ended: max_parallel is 2"}


def test_a_job_without_a_matrix_has_no_cells() -> None:
    told = preview(manifest(), [machine("a")], 10.0)
    assert told["cells"] == []
    assert told["start"] == {"time": 10.0, "words": "now"}


def test_machines_that_are_kept_for_an_older_job_are_not_planned_for_this_one() -> None:
    large = waiting("large", "resources: {nodes: 2}", created=1.0)
    fleet = [machine("a"), machine("b", running=(node(),))]
    told = preview(manifest(), fleet, 10.0, line=Line([large]))
    assert told["waiting"]["a"] == "kept free for job large, which is next"
    assert told["ahead"] == [{"id": "large", "priority": 0}]
    assert "it would wait behind job large" in told["start"]["words"]
    urgent = preview(manifest("priority: 5"), fleet, 10.0, line=Line([large]))
    assert urgent["plan"]["nodes"][0]["name"] == "a"
    assert urgent["ahead"] == []


def test_a_waiting_job_that_is_about_to_be_placed_has_its_machine() -> None:
    told = preview(manifest(), [machine("a")], 10.0, line=Line([waiting("older", created=1.0)]))
    assert told["plan"] is None
    assert told["waiting"] == {"a": "busy with 1 of 1 jobs"}


def test_jobs_that_wait_for_other_machines_are_not_before_it() -> None:
    gpus = waiting("gpus", "resources: {gpu: 8}", created=1.0)
    told = preview(manifest(), [machine("a", running=(node(ends=50.0),))], 10.0, line=Line([gpus]))
    assert told["ahead"] == []
    assert told["start"]["time"] == 50.0
    same = [waiting(f"job{number}", created=1.0) for number in range(3)]
    told = preview(manifest(), [machine("a", running=(node(ends=50.0),))], 10.0, line=Line(same))
    assert told["start"]["words"].startswith("at the earliest, if running jobs take")
    assert told["start"]["words"].endswith("it would wait behind job job0 and 2 more")
