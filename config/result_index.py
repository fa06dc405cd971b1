"""The files of the results branch that all jobs share: front page, monthly index, latest per branch.

They are rendered from what lies on the branch's tip and the one job that is being added, so that two
publishers racing for the branch each render again on what the other has pushed.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from typing import Any

from trainforge.config.matrix import cell_name
from trainforge.config.messages import PREPARE
from trainforge.config.result import (
    JobRecord,
    cell_of_table,
    final_metrics,
    moment,
    plain,
    result_files,
    safe_path,
    show,
)

Read = Callable[[str], bytes | None]

COLUMNS = (
    "job", "project", "outcome", "code", "branch", "commit", "created", "ended", "seconds", "nodes",
    "metric", "value", "path", "cell",
)  # fmt: skip
NEWEST = 25
BEST = "index/best.json"


def shared_files(record: JobRecord, read: Read) -> dict[str, bytes]:
    """Paths from the branch's root and their new content; `read` gives a file of the tip, or None."""
    month = f"index/{moment(record.created)[:7]}.csv"
    rows = _add_row(_rows(read(month)), record)
    best = _add_best(_best(read(BEST)), record)
    files = {month: _csv(rows), BEST: json.dumps(best, indent=2, sort_keys=True) + "\n"}
    files["README.md"] = _front_page(_newest(rows, month, read), best)
    result = {path: text.encode() for path, text in files.items()}
    return result | _latest(record, read)


def _add_row(rows: list[dict[str, str]], record: JobRecord) -> list[dict[str, str]]:
    value = final_metrics(record.metrics).get(record.primary) if record.primary else None
    row = {
        "job": record.job,
        "project": record.project,
        "outcome": record.outcome,
        "code": record.code,
        "branch": _branch(record),
        "commit": record.commit,
        "created": moment(record.created),
        "ended": moment(record.ended),
        "seconds": f"{record.ended - record.created:.1f}",
        "nodes": str(len(record.nodes)),
        "metric": safe_path(record.primary) if record.primary else "",
        "value": show(value) if isinstance(value, int | float) else "",
        "path": record.path,
        "cell": str(cell_of_table(cell_name(record.cell)))[:200],
    }
    return [*(old for old in rows if old["job"] != record.job), row]


def _add_best(best: dict[str, Any], record: JobRecord) -> dict[str, Any]:
    value = final_metrics(record.metrics).get(record.primary) if record.primary else None
    if record.outcome != "completed" or isinstance(value, bool) or not isinstance(value, int | float):
        return best
    old = best.get(record.project)
    better = (
        not isinstance(old, dict)
        or old.get("metric") != record.primary
        or not isinstance(old.get("value"), int | float)
        or (value < old["value"] if record.mode == "min" else value > old["value"])
    )
    path = record.path
    new = {"metric": record.primary, "value": value, "job": record.job, "path": path}
    return best | {record.project: new} if better else best


def _latest(record: JobRecord, read: Read) -> dict[str, bytes]:
    """Metrics, parameters and plots of the newest completed job of a branch and project."""
    if record.outcome != "completed" or record.source == PREPARE:
        return {}
    folder = f"latest/{_branch(record)}/{safe_path(record.project)}"
    if record.cell:  # a folder for each cell of a matrix
        folder += "/" + safe_path(cell_name(record.cell).replace(", ", ",").replace("/", "_"))
    marker = f"{folder}/job.json"
    try:
        newer = float(json.loads(read(marker) or b"{}").get("created", 0)) > record.created
    except (ValueError, AttributeError, TypeError):
        newer = False
    if newer:
        return {}
    kept = {
        path: data
        for path, data in result_files(record, []).items()
        if path in {"metrics.json", "params.yaml", "dvc.yaml"} or path.startswith("plots/")
    }
    about = {"job": record.job, "created": record.created, "path": record.path}
    kept["job.json"] = (json.dumps(about) + "\n").encode()
    return {f"{folder}/{path}": data for path, data in kept.items()}


def _front_page(newest: list[dict[str, str]], best: dict[str, Any]) -> str:
    lines = [
        "# Training results",
        "",
        "Written by TrainForge: one folder per job below `jobs/<year>/<month>/`, one row per finished job in",
        "`index/<year>-<month>.csv`, the newest completed job of each branch and project below `latest/`.",
        "`trainforge pull <job>` brings a job's folder home; `git checkout` of this branch works as well.",
        "",
    ]
    if best:
        lines += ["## Best per project", "", "| project | metric | value | job |", "|---|---|---:|---|"]
        for project, entry in sorted(best.items()):
            cells = [plain(project), plain(str(entry["metric"])), plain(show(entry["value"]))]
            lines.append(f"| {' | '.join(cells)} | {_link(str(entry['job']), str(entry['path']))} |")
        lines.append("")
    lines += ["## Newest jobs", "", "| job | project | outcome | branch | commit | value | ended |"]
    lines += ["|---|---|---|---|---|---:|---|"]
    for row in newest:
        outcome = f"{row['outcome']}, {row['code']}" if row["code"] else row["outcome"]
        project = f"{row['project']} ({row['cell']})" if row["cell"] else row["project"]
        cells = [plain(project), plain(outcome), plain(row["branch"]), row["commit"][:12]]
        cells += [plain(row["value"]), row["ended"]]
        lines.append(f"| {_link(row['job'], row['path'])} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _link(job: str, path: str) -> str:
    return f"[{plain(job[:8])}]({safe_path(path)})"


def _newest(rows: list[dict[str, str]], month: str, read: Read) -> list[dict[str, str]]:
    """The newest rows, topped up from the month before."""
    if len(rows) < NEWEST:
        year, number = int(month[6:10]), int(month[11:13])
        before = f"index/{year - 1}-12.csv" if number == 1 else f"index/{year}-{number - 1:02}.csv"
        rows = _rows(read(before)) + rows
    return sorted(rows, key=lambda row: row["ended"], reverse=True)[:NEWEST]


def _rows(data: bytes | None) -> list[dict[str, str]]:
    """Rows with all columns; what a person edited beyond recognition is left out."""
    if not data:
        return []
    reader = csv.DictReader(io.StringIO(data.decode("utf-8", "replace"), newline=None))
    try:
        rows = list(reader)
    except csv.Error:
        return []
    rows = [row | {"cell": row.get("cell") or ""} for row in rows]  # older ones have none
    return [
        {name: row[name] for name in COLUMNS}
        for row in rows
        if all(isinstance(row.get(name), str) for name in COLUMNS)
    ]


def _csv(rows: list[dict[str, str]]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def _best(data: bytes | None) -> dict[str, Any]:
    try:
        best = json.loads(data or b"{}")
    except ValueError:
        return {}
    if not isinstance(best, dict):
        return {}
    wanted = {"metric", "value", "job", "path"}
    return {name: entry for name, entry in best.items() if isinstance(entry, dict) and wanted <= set(entry)}


def _branch(record: JobRecord) -> str:
    return safe_path(record.ref.removeprefix("refs/heads/").removeprefix("refs/tags/"))
