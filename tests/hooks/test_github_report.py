"""What GitHub is told, as payloads: held against GitHub's own description, whatever strings they quote."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.github.description import Asked, request_faults
from trainforge.config.gates import BaseResult, Verdict
from trainforge.hooks.github_commands import Command, find_command, parse_command
from trainforge.hooks.github_comment import MARKER, PlannedManifest, PullPlan, comment, differences
from trainforge.hooks.github_report import Report, check_run, digest, status, summary
from trainforge.hooks.github_text import code

JOB, COMMIT = "abcdefgh" + "z" * 18, "c" * 40
EVIL = (
    "| </code> `` ``` @ada #12 [x](javascript:1) <img src=x> \u202e\x1b[31m https://evil.example \\| *b*\n# h"
)
BASE = BaseResult(
    job="basebase" + "z" * 18, branch="main", commit="b" * 40, metrics={"acc": 0.9, "loss": 0.5}
)

MISSED = Verdict(metric="a", passed=False, words="a is 1, wanted at least 2")


def report(**changes: Any) -> Report:
    usual: dict[str, Any] = {
        "job": JOB, "project": "digits", "commit": COMMIT, "manifest_path": "trainforge.yaml",
        "state": "running", "created": 1_795_000_000.0, "job_url": "https://tf.example/jobs/x",
    }  # fmt: skip
    return Report(**usual | changes)


def faults(path: str, payload: dict[str, Any]) -> list[str]:
    body = json.dumps(payload).encode()
    headers = {"content-type": "application/json"}
    return request_faults(Asked("POST", f"/repos/a/b/{path}", [], headers, body))


def test_from_pending_to_the_end() -> None:
    pending = report(state="pending", waiting={"alpha": "is busy"})
    assert status(pending) == {
        "state": "pending",
        "description": "waiting: alpha: is busy",
        "context": "trainforge",
        "target_url": "https://tf.example/jobs/x",
    }
    assert check_run(pending)["status"] == "queued"
    running = check_run(report(machines=["alpha", "beta"]))
    assert (running["status"], running["output"]["title"]) == ("in_progress", "training on alpha, beta")
    assert [one["identifier"] for one in running["actions"]] == ["stop"]
    done = report(
        state="completed", took="12 s", started=1_795_000_001.0, ended=1_795_000_013.0,
        metrics={"acc": 0.95, "progress": 1}, base=BASE, phases=[("training", "9 s")],
        gates=[Verdict(metric="acc", passed=True, words="acc is 0.95: at least 0.9")],
        folder_url="https://github.com/a/b/tree/trainforge-results/jobs/x",
    )  # fmt: skip
    told = check_run(done)
    assert (told["status"], told["conclusion"]) == ("completed", "success")
    assert told["completed_at"] == "2026-11-18T11:06:53Z"
    assert told["output"]["title"] == "completed in 12 s, gate passed"
    assert "| <code>acc</code> | 0.95 | 0.9 | +0.05 |" in summary(done)
    assert "| training | 9 s |" in summary(done)
    assert "progress" not in summary(done)
    assert status(done)["target_url"].endswith("/jobs/x")
    assert [one["identifier"] for one in told["actions"]] == ["retry"]


@pytest.mark.parametrize(
    ("changes", "conclusion", "state"),
    [
        ({"state": "completed"}, "success", "success"),
        ({"state": "completed", "gates": [MISSED]}, "failure", "failure"),
        ({"state": "failed", "code": "script_failed", "reason": "exit 1"}, "failure", "failure"),
        ({"state": "failed", "code": "timeout_run", "reason": "too long"}, "timed_out", "failure"),
        ({"state": "cancelled", "code": "stopped"}, "cancelled", "error"),
    ],
)  # fmt: skip
def test_conclusions(changes: dict[str, Any], conclusion: str, state: str) -> None:
    ended = report(**changes, ended=1_795_000_002.0)
    assert (check_run(ended)["conclusion"], status(ended)["state"]) == (conclusion, state)


def test_a_manifest_that_cannot_be_used_is_annotated_at_its_lines() -> None:
    problems = [
        {"place": "models/trainforge.yaml:3:9", "message": "gates[0]: wrong", "hint": "add min: 0.9"},
        {"place": "trainforge.yaml", "message": "no line is known of this"},
        *({"place": f"trainforge.yaml:{n}", "message": "x"} for n in range(1, 80)),
    ]
    payload = check_run(report(state="failed", code="manifest_invalid", problems=problems))
    first, *others = payload["output"]["annotations"]
    assert (first["path"], first["start_line"]) == ("models/trainforge.yaml", 3)
    assert first["message"] == "gates[0]: wrong\nadd min: 0.9"
    assert len(others) == 49
    assert faults("check-runs", payload) == []


def test_the_name_stays_the_same_and_tells_manifests_and_cells_apart() -> None:
    names = [{}, {"manifest_path": "a/trainforge.yaml"}, {"cell": "lr=0.1"}]
    assert [report(**name).context for name in names] == [
        "trainforge", "trainforge / a/trainforge.yaml", "trainforge (lr=0.1)"
    ]  # fmt: skip


def test_what_was_told_is_told_again_only_when_it_differs() -> None:
    assert digest(check_run(report())) == digest(check_run(report()))
    assert digest(check_run(report())) != digest(check_run(report(stopping=True)))


# --- hostile and boundless strings --------------------------------------------------------------------------


def harmless(markdown: str) -> None:
    """Nothing of `EVIL` acts: outside of fenced blocks no markup of it is left."""
    outside = re.sub(r"(?ms)^(`{3,}).*?^\1$", "", markdown)
    outside = re.sub(r"&#\d+;", "?", outside)
    for bad in ("@ada", "#12", "<img", "javascript:1", "](java", "https://evil", "\u202e", "\x1b", "*b*"):
        assert bad not in outside, (bad, markdown)


def test_hostile_names_do_nothing() -> None:
    evil = report(
        project=EVIL, cell=EVIL, code=EVIL, reason=EVIL, machines=[EVIL], waiting={EVIL: EVIL},
        state="failed", metrics={EVIL: EVIL, "x": 1.0}, manifest_path=f"{EVIL}/trainforge.yaml",
        base=BASE.model_copy(update={"branch": EVIL}),
        gates=[Verdict(metric=EVIL, passed=False, words=EVIL)],
        problems=[{"place": f"{EVIL}:3", "message": EVIL, "hint": EVIL}], job_url="javascript:alert(1)",
    )  # fmt: skip
    harmless(summary(evil))
    payload = check_run(evil)
    assert faults("check-runs", payload) == []
    assert "details_url" not in payload
    assert faults(f"statuses/{COMMIT}", status(evil)) == []
    planned = PlannedManifest(
        path=EVIL,
        project=EVIL,
        where=[EVIL],
        differences=[(EVIL, EVIL, EVIL)],
        inactive=[EVIL],
        shape="1 node",
    )
    refused = PlannedManifest(path=EVIL, problems=[EVIL])
    told = comment(PullPlan(head=COMMIT, base=EVIL, manifests=[planned, refused]), [evil])
    harmless(told)
    rows = [line for line in told.splitlines() if line.startswith("| <code>")]
    assert rows, told
    assert all(line.count("|") in {4, 5} for line in rows), "no cell ends early"


def test_everything_is_bounded() -> None:
    long = "x" * 100_000
    huge = report(
        state="failed", project=long, cell=long, reason=long, machines=[long] * 100, code=long,
        metrics={f"{long}{n}": long for n in range(500)}, base=BASE, manifest_path=f"{long}/trainforge.yaml",
        gates=[Verdict(metric=long, passed=False, words=long)] * 200, phases=[("training", "1 s")] * 10,
        problems=[{"place": f"{long}:1", "message": long, "hint": long}] * 200,
    )  # fmt: skip
    payload = check_run(huge)
    assert len(payload["output"]["summary"]) <= 65_535
    assert faults("check-runs", payload) == []
    assert len(status(huge)["description"]) <= 140
    many = PlannedManifest(path=long, differences=[(long, long, long)] * 200, waiting={long: long})
    told = comment(PullPlan(head=COMMIT, base=long, manifests=[many] * 30), [huge] * 30)
    assert len(told) <= 65_536
    assert told.startswith(MARKER)
    assert "more than GitHub would take" in told


@given(st.text(max_size=300))
@settings(max_examples=60)
def test_code_ends_only_where_it_should(text: str) -> None:
    inside = code(text).removeprefix("<code>").removesuffix("</code>")
    assert not set(inside) & set("<>|`@*_[]\\\n\r"), inside


# --- plans and commands -------------------------------------------------------------------------------------


def test_differences_of_resolved_manifests() -> None:
    old = {"training": {"params": {"lr": 0.1, "gone": 1}, "args": []}, "seed": None}
    new = {"training": {"params": {"lr": 0.2, "new": True}, "args": []}, "seed": 1}
    assert differences(old, new) == [
        ("training.params.lr", "0.1", "0.2"),
        ("training.params.new", "", "true"),
        ("seed", "", "1"),
        ("training.params.gone", "1", ""),
    ]


def test_a_plan_says_where_how_long_and_what_differs() -> None:
    planned = PlannedManifest(
        path="trainforge.yaml", project="digits", shape="2 nodes", where=["alpha", "beta"], took="3 min",
        differences=[("seed", "", "1")],
    )  # fmt: skip
    plan = PullPlan(head=COMMIT, base="main", manifests=[planned])
    told = comment(plan, [])
    assert "1 job of 2 nodes would run now on <code>alpha</code>, <code>beta</code>; about 3 min" in told
    assert "| <code>seed</code> |  | <code>1</code> |" in told
    assert find_command(told) == "", "TrainForge does not take orders from itself"
    fork = comment(plan.model_copy(update={"fork": True}), [])
    assert f"/trainforge run {COMMIT}" in fork
    assert "fork" in fork


@pytest.mark.parametrize(
    ("body", "line"),
    [
        ("/trainforge run", "/trainforge run"),
        ("\n\n/trainforge plan  \nthank you", "/trainforge plan"),
        ("please /trainforge run", ""),
        ("> /trainforge run", ""),
        ("```\n/trainforge run\n```", ""),
        ("/trainforgerun", ""),
        ("/trainforge " + "x" * 400, ""),
        ("", ""),
    ],
)
def test_a_command_is_the_first_line_alone(body: str, line: str) -> None:
    assert find_command(body) == line


def test_commands() -> None:
    assert parse_command("/trainforge run") == Command("run")
    assert parse_command(f"/trainforge run {COMMIT}") == Command("run", COMMIT)
    assert "whole id" in parse_command("/trainforge run abc1234").problem
    assert "nothing more" in parse_command("/trainforge stop all").problem
    assert "none of them" in parse_command("/trainforge destroy").problem
    assert parse_command("/trainforge").verb is None


@given(st.text())
def test_no_comment_breaks_the_parser(body: str) -> None:
    if line := find_command(f"/trainforge {body}"):
        parse_command(line)
