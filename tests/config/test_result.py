"""Results as files: readable by people, by DVC and by tools, and harmless whatever they quote."""

from __future__ import annotations

import csv
import io
import json
import re
from typing import Any

import yaml
from hypothesis import given
from hypothesis import strategies as st

from trainforge.config.result import (
    Artifact,
    JobRecord,
    MetricRow,
    NodeRecord,
    commit_message,
    final_metrics,
    result_files,
    result_path,
    safe_path,
    shorten,
)
from trainforge.config.result_index import shared_files

JOB = "abcdefghijklmnopqrstuvwxyz"
CREATED = 1_795_000_000.0  # 2026-11-18


def record(**changes: Any) -> JobRecord:
    base: dict[str, Any] = {
        "job": JOB,
        "project": "digits",
        "repository": "demo",
        "repository_url": "http://127.0.0.1:8420/git/demo.git",
        "ref": "refs/heads/main",
        "commit": "c" * 40,
        "manifest_path": "trainforge.yaml",
        "manifest": "project: {name: digits}\n",
        "results_branch": "trainforge-results",
        "outcome": "completed",
        "created": CREATED,
        "started": CREATED + 1,
        "ended": CREATED + 11,
        "attempt": 1,
        "primary": "accuracy",
        "params": {"lr": 0.1},
        "metrics": [
            MetricRow(time=CREATED + n, step=n, values={"accuracy": n / 10, "loss": 1 / n})
            for n in range(1, 6)
        ],
    }
    return JobRecord.model_validate(base | changes)


def test_the_folder_is_derived_from_the_job_and_its_creation() -> None:
    assert result_path(JOB, CREATED) == f"jobs/2026/11/{JOB}"


def test_tools_find_dvclives_names_and_forms() -> None:
    files = result_files(record(), [])
    assert json.loads(files["metrics.json"]) == {"accuracy": 0.5, "loss": 0.2}
    assert yaml.safe_load(files["params.yaml"]) == {"lr": 0.1}
    assert yaml.safe_load(files["dvc.yaml"])["plots"] == [{"plots/metrics": {"x": "step"}}]
    table = files["plots/metrics/accuracy.tsv"].decode().splitlines()
    assert table[0] == "step\taccuracy"
    assert table[-1] == "5\t0.5"


def test_the_history_has_a_row_per_report() -> None:
    rows = list(csv.DictReader(io.StringIO(result_files(record(), [])["history.csv"].decode())))
    assert [row["accuracy"] for row in rows] == ["0.1", "0.2", "0.3", "0.4", "0.5"]


def test_progress_is_no_metric_of_the_page() -> None:
    rows = [MetricRow(time=CREATED + n, step=n, values={"loss": 1 / n, "progress": n / 4}) for n in (1, 2, 4)]
    text = result_files(record(metrics=rows), [])["README.md"].decode()
    assert 'title "loss"' in text
    assert "progress" not in text


def test_rank_zero_has_the_last_word_on_a_metric() -> None:
    rows = [
        MetricRow(time=1, rank=0, values={"loss": 1.0}),
        MetricRow(time=2, rank=1, values={"loss": 2.0, "own": 3}),
    ]
    assert final_metrics(rows) == {"loss": 1.0, "own": 3}


def test_what_is_not_a_number_travels_as_null() -> None:
    row = MetricRow(time=1, values={"loss": float("nan"), "big": float("inf"), "ok": 1.0})
    assert row.values == {"loss": None, "big": None, "ok": 1.0}
    assert json.loads(result_files(record(metrics=[row]), [])["metrics.json"])["loss"] is None


def test_a_failure_shows_the_first_failing_rank_and_its_traceback() -> None:
    nodes = [
        NodeRecord(rank=0, name="a", state="failed", code="peer_failed", tail="stopped"),
        NodeRecord(
            rank=1, name="b", state="failed", code="script_failed", exit_code=3, tail="Traceback\nBoom"
        ),
    ]
    page = result_files(record(outcome="failed", code="script_failed", reason="exit 3", nodes=nodes), [])
    text = page["README.md"].decode()
    assert "## Rank 1 failed first (exit code 3)" in text
    assert "Traceback\nBoom" in text
    assert "stopped" not in text


def test_artifacts_say_where_they_are() -> None:
    kept = Artifact(path="model.pt", size=3, sha256="0" * 64)
    large = Artifact(
        path="big.bin", size=10**9, sha256="1" * 64, stored="executor a: over artifacts.max_size"
    )
    files = result_files(record(), [kept, large])
    assert [entry["path"] for entry in json.loads(files["artifacts.json"])] == ["model.pt", "big.bin"]
    assert "over artifacts.max" in files["README.md"].decode()


def test_the_commit_carries_trailers_and_skips_other_automation() -> None:
    message = commit_message(record())
    assert message.splitlines()[0] == "digits: completed, accuracy 0.5 [skip ci]"
    assert f"TrainForge-Job: {JOB}" in message
    assert f"TrainForge-Commit: {'c' * 40}" in message
    assert "TrainForge-Status: completed" in message


def test_a_long_log_keeps_its_beginning_and_end() -> None:
    text = shorten("a" * 50 + "b" * 100 + "c" * 50, 100)
    assert text.startswith("a" * 50)
    assert text.endswith("c" * 50)
    assert "100 characters left out" in text


@given(st.text(max_size=200))
def test_text_from_outside_never_becomes_markup(text: str) -> None:
    page = result_files(record(subject=text, author=text, reason=text), [])["README.md"].decode()
    row = next(line for line in page.splitlines() if line.startswith("| commit |"))
    assert len(re.findall(r"(?<!\\)\|", row)) == 3
    assert not re.search(r"(?<!\\)<[a-zA-Z!/]", page)


@given(st.text(max_size=300))
def test_paths_never_leave_their_folder(name: str) -> None:
    path = safe_path(name)
    assert path
    assert not path.startswith("/")
    assert all(part.strip(".") for part in path.split("/"))


def test_a_spreadsheet_takes_no_cell_for_a_formula() -> None:
    row = MetricRow(time=1, values={"=cmd()": "=1+1"})
    assert "\n=" not in result_files(record(metrics=[row]), [])["history.csv"].decode()
    assert ",=" not in result_files(record(metrics=[row]), [])["history.csv"].decode()


# --- what all jobs share --------------------------------------------------------------------------------


class Tip(dict[str, bytes]):
    """A results branch in memory: each job is added on what the ones before left."""

    def add(self, job: JobRecord) -> None:
        self.update(shared_files(job, self.get))


def test_the_index_has_one_row_per_job_however_often_it_is_written() -> None:
    tip = Tip()
    tip.add(record())
    tip.add(record(job="b" * 26, outcome="failed", code="script_failed", metrics=[]))
    tip.add(record())
    rows = list(csv.DictReader(io.StringIO(tip["index/2026-11.csv"].decode())))
    assert sorted(row["job"] for row in rows) == [JOB, "b" * 26]
    front = tip["README.md"].decode()
    assert "failed, script" in front


def test_the_front_page_remembers_the_best_of_a_project() -> None:
    tip = Tip()
    values = (0.5, 0.9, 0.7)
    for number, value in enumerate(values):
        rows = [MetricRow(time=1, values={"accuracy": value})]
        tip.add(record(job=f"{'abc'[number] * 26}", metrics=rows))
    assert json.loads(tip["index/best.json"])["digits"]["value"] == 0.9
    tip.add(record(job="d" * 26, mode="min", metrics=[MetricRow(time=1, values={"accuracy": 0.1})]))
    assert json.loads(tip["index/best.json"])["digits"]["job"] == "d" * 26


def test_latest_belongs_to_the_newest_completed_job() -> None:
    tip = Tip()
    tip.add(record(created=CREATED + 100))
    tip.add(record(job="b" * 26, created=CREATED))
    tip.add(record(job="c" * 26, created=CREATED + 200, outcome="failed"))
    assert json.loads(tip["latest/main/digits/job.json"])["job"] == JOB


def test_january_tops_its_front_page_up_from_december() -> None:
    tip = Tip()
    tip.add(record(created=1_798_700_000.0))  # 2026-12-31
    tip.add(record(job="b" * 26, created=1_798_800_000.0))  # 2027-01-01
    front = tip["README.md"].decode()
    assert f"jobs/2026/12/{JOB}" in front
    assert f"jobs/2027/01/{'b' * 26}" in front


@given(st.binary(max_size=200))
def test_shared_files_that_somebody_broke_are_written_anew(garbage: bytes) -> None:
    files = shared_files(record(), lambda _: garbage)
    assert JOB in files["index/2026-11.csv"].decode()
    assert json.loads(files["index/best.json"])["digits"]["job"] == JOB


def test_a_cell_of_a_matrix_is_named_wherever_its_job_is() -> None:
    cell = {"lr": 0.1, "optimizer": "=adam|x"}
    files = result_files(record(cell=cell), [])
    assert json.loads(files["result.json"])["cell"] == cell
    assert files["README.md"].decode().startswith("# digits (lr=0.1, optimizer==adam\\|x): completed")
    assert commit_message(record(cell=cell)).startswith("digits (lr=0.1, optimizer==adam|x): completed")
    before = shared_files(record(job="d" * 26), lambda path: None)
    old = b"\n".join(line.rpartition(b",")[0] for line in before["index/2026-11.csv"].splitlines())
    tip = shared_files(record(cell=cell), {"index/2026-11.csv": old + b"\n"}.get)
    rows = list(csv.DictReader(io.StringIO(tip["index/2026-11.csv"].decode())))
    assert [row["cell"] for row in rows] == ["", "lr=0.1, optimizer==adam|x"], "older rows"
    assert "latest/main/digits/lr=0.1_optimizer==adam_x/metrics.json" in tip
