"""The result of a job as files: what the results branch holds below `jobs/<year>/<month>/<job>/`.

`JobRecord` is everything known when a job ends; `result_files` renders it. Both programs render: the
executor of rank 0 as a rule, the sender for jobs that no executor could end.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from datetime import UTC, datetime
from typing import Any

import yaml
from pydantic import BaseModel

from trainforge.config.counters import measured
from trainforge.config.gates import BaseResult, Verdict, change
from trainforge.config.matrix import cell_name
from trainforge.config.messages import Capabilities, GpuUse, MetricValues, Outcome

FORMAT = 1
_LAST_MOMENT = 253_402_300_799.0  # of the year 9999
CHART_POINTS = 60
LOG_LIMIT = 8 * 1024 * 1024  # bytes of one rank's log kept in a result


class NodeRecord(BaseModel):
    rank: int
    executor: str = ""
    name: str = ""
    state: str
    code: str = ""
    reason: str = ""
    exit_code: int | None = None
    tail: str = ""
    peak_memory_bytes: int | None = None
    cpu_s: float | None = None
    peak_disk_bytes: int | None = None
    log_bytes: int | None = None
    gpus: list[GpuUse] = []
    capabilities: Capabilities | None = None


class MetricRow(BaseModel):
    time: float
    rank: int = 0
    step: int | None = None
    epoch: float | None = None
    values: MetricValues


class Artifact(BaseModel):
    """A file the job left. `stored` is `git` when it lies in the result, else why and where it does not."""

    path: str
    size: int
    sha256: str
    stored: str = "git"


class DataRecord(BaseModel):
    """Data that the job was given. `cached`: the machine had them already; sizes are bytes."""

    name: str
    url: str
    sha256: str = ""  # of a file, or of the archive that was unpacked
    commit: str = ""
    size: int = 0
    files: int = 1
    cached: bool = False


class JobRecord(BaseModel):
    """Everything a result says. Times are unix seconds; `logs` maps a file name to its text."""

    job: str
    project: str
    repository: str
    repository_url: str = ""
    ref: str
    commit: str
    subject: str = ""
    author: str = ""
    manifest_path: str
    manifest: str
    resolved: dict[str, Any] = {}
    plan: dict[str, Any] = {}
    params: dict[str, Any] = {}
    results_branch: str
    source: str = ""
    outcome: Outcome
    code: str = ""
    reason: str = ""
    hint: str = ""
    created: float
    started: float | None = None
    ended: float
    attempt: int = 0
    nodes: list[NodeRecord] = []
    timeline: list[dict[str, Any]] = []
    metrics: list[MetricRow] = []
    primary: str = ""
    mode: str = "max"
    logs: dict[str, str] = {}
    notices: list[str] = []
    rerun_of: str = ""
    cell: dict[str, Any] = {}  # the parameters that its matrix gave it
    gates: list[Verdict] = []  # what became of the manifest's gates; of a job that completed
    base: BaseResult | None = None  # what it is compared with
    environment: dict[str, str] = {}  # file name -> text: lock, interpreter, hardware
    data: list[DataRecord] = []  # of rank 0's machine
    folder: str = ""  # on the results branch

    @property
    def path(self) -> str:
        """The folder, also of a record made before it was named there."""
        return self.folder or result_path(self.job, self.created)


def result_path(job: str, dated: float) -> str:
    """The job's folder on the results branch; derived from its commit's time, whatever that claims to be.

    So a sender that has forgotten a job looks for its result where it was put.
    """
    moment = datetime.fromtimestamp(min(max(dated, 0.0), _LAST_MOMENT), UTC)
    return f"jobs/{moment:%Y}/{moment:%m}/{job}"


def final_metrics(rows: list[MetricRow]) -> MetricValues:
    """The last value of every metric, rank 0's where it reported one."""
    final: MetricValues = {}
    for row in sorted(rows, key=lambda row: (row.rank == 0, row.time)):
        final.update(row.values)
    return final


def result_files(record: JobRecord, artifacts: list[Artifact]) -> dict[str, bytes]:
    """The files of a job's folder, by path relative to it, without the artifacts themselves."""
    final = final_metrics(record.metrics)
    files = {
        "README.md": render_page(record, artifacts),
        "result.json": _json(machine_record(record, artifacts)),
        "trainforge.yaml": record.manifest,
        "resolved.yaml": _yaml(record.resolved),
        "plan.json": _json(record.plan),
        "metrics.json": _json(final),
        "params.yaml": _yaml(record.params),
        "dvc.yaml": _yaml(
            {
                "params": ["params.yaml"],
                "metrics": ["metrics.json"],
                "plots": [{"plots/metrics": {"x": "step"}}],
            }
        ),
        "history.csv": history_csv(record.metrics),
        "events.jsonl": "".join(json.dumps(event) + "\n" for event in record.timeline),
        "artifacts.json": _json([artifact.model_dump() for artifact in artifacts]),
    }
    files |= {f"plots/metrics/{name}.tsv": text for name, text in plot_tables(record.metrics).items()}
    files |= {f"logs/{safe_path(name)}": shorten(text) for name, text in record.logs.items()}
    files |= {f"environment/{safe_path(name)}": text for name, text in record.environment.items()}
    return {path: text.encode("utf-8", "replace") for path, text in files.items()}


def machine_record(record: JobRecord, artifacts: list[Artifact]) -> dict[str, Any]:
    """`result.json`: the record without what lies beside it in files of its own."""
    data = record.model_dump(
        mode="json", exclude={"manifest", "logs", "metrics", "timeline", "environment", "resolved", "plan"}
    )
    return {
        "format": FORMAT,
        **data,
        "metrics": final_metrics(record.metrics),
        "artifacts": [artifact.model_dump() for artifact in artifacts],
    }


def commit_message(record: JobRecord) -> str:
    """Subject, then trailers that tools read; `[skip ci]` keeps other automation still."""
    metric = ""
    value = final_metrics(record.metrics).get(record.primary)
    if record.primary and value is not None:
        metric = f", {record.primary} {show(value)}"
    cell = f" ({_CONTROL.sub(' ', cell_name(record.cell))[:60]})" if record.cell else ""
    return (
        f"{record.project}{cell}: {record.outcome}{metric} [skip ci]\n\n"
        f"TrainForge-Job: {record.job}\n"
        f"TrainForge-Commit: {record.commit}\n"
        f"TrainForge-Status: {record.outcome}\n"
    )


def history_csv(rows: list[MetricRow]) -> str:
    """One row per report, one column per metric, in the order of their first appearance."""
    names = list(dict.fromkeys(name for row in rows for name in row.values))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["time", "rank", "step", "epoch", *map(cell_of_table, names)])
    for row in rows:
        values = (row.values.get(name) for name in names)
        writer.writerow([f"{row.time:.3f}", row.rank, row.step, row.epoch, *map(cell_of_table, values)])
    return out.getvalue()


def plot_tables(rows: list[MetricRow]) -> dict[str, str]:
    """DVCLive's plot files: per metric a table of step and value, from rank 0's reports."""
    tables: dict[str, list[str]] = {}
    for position, row in enumerate(row for row in rows if row.rank == 0):
        step = row.step if row.step is not None else position
        for name, value in row.values.items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                continue
            path = safe_path(name)
            table = tables.setdefault(path, [f"step\t{path.rsplit('/', 1)[-1]}\n"])
            table.append(f"{step}\t{value!r}\n")
    return {name: "".join(lines) for name, lines in tables.items()}


def render_page(record: JobRecord, artifacts: list[Artifact]) -> str:
    """The page that a person reads on the web: what, how long, on what, how well, how to repeat it."""
    cell = f" ({plain(cell_name(record.cell))})" if record.cell else ""
    lines = [f"# {plain(record.project)}{cell}: {record.outcome}", ""]
    lines += _reason(record)
    lines += _facts(record)
    lines += _failure(record)
    lines += gate_lines(record.gates)
    lines += _metrics(record)
    if artifacts:
        lines += ["## Artifacts", "", "| file | bytes | where |", "|---|---:|---|"]
        lines += [f"| {plain(a.path)} | {a.size} | {plain(a.stored)} |" for a in artifacts[:200]] + [""]
    if record.notices:
        lines += ["## Notices", "", *[f"- {plain(notice)}" for notice in record.notices], ""]
    lines += _data(record)
    lines += _reproduce(record)
    return "\n".join(lines)


def _reason(record: JobRecord) -> list[str]:
    if not record.reason:
        return []
    several = "\n" in record.reason.strip()
    told = ["", *fenced(record.reason)] if several else [f"**{plain(record.code)}**: {plain(record.reason)}"]
    lines = [f"**{plain(record.code)}**", *told, ""] if several else [*told, ""]
    return lines + ([f"What to do: {plain(record.hint)}", ""] if record.hint else [])


def _facts(record: JobRecord) -> list[str]:
    duration = record.ended - (record.started or record.created)
    facts = {
        "job": record.job,
        "commit": f"{record.commit[:12]} {record.subject}",
        "branch": record.ref.removeprefix("refs/heads/"),
        "author": record.author,
        "started by": record.source,
        "queued": f"{moment(record.created)}",
        "ended": f"{moment(record.ended)}",
        "took": f"{duration:.1f} s",
        "attempts": str(record.attempt),
        "re-run of": record.rerun_of,
    }
    rows = [f"| {name} | {plain(value)} |" for name, value in facts.items() if value]
    lines = ["| | |", "|---|---|", *rows, ""]
    if record.nodes:
        lines += ["## Machines", "", "| rank | machine | CPU | GPU | state |", "|---:|---|---:|---|---|"]
        for node in record.nodes:
            has = node.capabilities
            gpus = ", ".join(gpu.model for gpu in has.gpus) if has else ""
            cpus = str(has.cpu_count) if has else ""
            lines.append(f"| {node.rank} | {plain(node.name)} | {cpus} | {plain(gpus)} | {node.state} |")
        lines.append("")
    return lines + _gpus(record)


def _gpus(record: JobRecord) -> list[str]:
    """What the GPUs were used for, where somebody measured that."""
    rows = [
        f"| {node.rank} | {plain(gpu.uuid)} | {gpu.mean_percent:.0f}% | {gpu.peak_percent:.0f}% "
        f"| {gpu.mean_memory_bytes / 2**30:.1f} GiB | {gpu.peak_memory_bytes / 2**30:.1f} GiB |"
        for node in record.nodes
        for gpu in node.gpus
    ]
    head = [
        "| rank | GPU | mean use | peak use | mean memory | peak memory |",
        "|---:|---|---:|---:|---:|---:|",
    ]
    return [*head, *rows, ""] if rows else []


def _failure(record: JobRecord) -> list[str]:
    failed = next((node for node in record.nodes if node.tail and node.code != "peer_failed"), None)
    if record.outcome != "failed" or failed is None:
        return []
    exit_code = "" if failed.exit_code is None else f" (exit code {failed.exit_code})"
    return [f"## Rank {failed.rank} failed first{exit_code}", "", *fenced(failed.tail), ""]


def _metrics(record: JobRecord) -> list[str]:
    final = measured(final_metrics(record.metrics))
    if not final:
        return []
    lines = ["## Metrics", "", *metric_table(final, record.base), ""]
    for name in list(final)[:6]:
        lines += _chart(name, record.metrics)
    return lines


def metric_table(final: MetricValues, base: BaseResult | None) -> list[str]:
    """The last values as a table; with those of the base, where there is one, and the change."""
    if base is None:
        rows = [f"| {plain(name)} | {plain(show(value))} |" for name, value in final.items()]
        return ["| metric | final value |", "|---|---:|", *rows]
    lines = [f"| metric | final value | {plain(base.branch, 80)} | change |", "|---|---:|---:|---:|"]
    for name, value in final.items():
        before = base.metrics.get(name)
        shown = plain(show(before)) if before is not None else ""
        lines.append(f"| {plain(name)} | {plain(show(value))} | {shown} | {change(value, before)} |")
    return lines


def gate_lines(gates: list[Verdict]) -> list[str]:
    """The gates as a list under a heading of their own; nothing where there are none."""
    if not gates:
        return []
    held = [f"- {'passed' if gate.passed else '**missed**'}: {plain(gate.words)}" for gate in gates]
    return ["## Gates", "", *held, ""]


def _chart(name: str, rows: list[MetricRow]) -> list[str]:
    """A line chart as Mermaid text, which the common forges draw; at most `CHART_POINTS` points."""
    points = [
        float(value)
        for row in rows
        if row.rank == 0
        and isinstance(value := row.values.get(name), int | float)
        and not isinstance(value, bool)
    ]
    points = [point for point in points if math.isfinite(point)]
    if len(points) < 2:
        return []
    every = math.ceil(len(points) / CHART_POINTS)
    kept = points[::every]
    title = re.sub(r"[^\w ./-]", "", name)
    line = ", ".join(f"{point:.6g}" for point in kept)
    return ["```mermaid", "xychart-beta", f'    title "{title}"', f"    line [{line}]", "```", ""]


def _data(record: JobRecord) -> list[str]:
    if not record.data:
        return []
    lines = ["## Data", "", "| data | from | version | bytes |", "|---|---|---|---:|"]
    for data in record.data:
        version = f"sha256 {data.sha256}" if data.sha256 else f"commit {data.commit}" if data.commit else ""
        lines.append(f"| {plain(data.name)} | {plain(data.url)} | {plain(version)} | {data.size} |")
    return [*lines, ""]


def _reproduce(record: JobRecord) -> list[str]:
    commands = [f"git clone {record.repository_url or record.repository} project", "cd project"]
    commands += [f"git checkout {record.commit}", "trainforge submit . --follow"]
    return ["## Reproduce", "", *fenced("\n".join(commands), "sh"), ""]


# --- text from outside, made harmless -------------------------------------------------------------------

_MARKUP = re.compile(r"([\\`*_{}\[\]()<>#|~&])")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2066-\u2069\ufeff]+")


def plain(text: str, limit: int = 400) -> str:
    """Text from outside as Markdown that shows it and does nothing: no markup, one line, bounded."""
    flat = _CONTROL.sub(" ", text)
    flat = flat if len(flat) <= limit else flat[: limit - 1] + "…"
    return _MARKUP.sub(r"\\\1", flat)


def safe_path(name: str) -> str:
    """A relative path made of harmless characters, never leaving its folder."""
    parts = [re.sub(r"[^A-Za-z0-9._=-]", "_", part)[:100] for part in name.split("/")[:4]]
    return "/".join(part for part in parts if part.strip(".")) or "unnamed"


def shorten(text: str, limit: int = LOG_LIMIT) -> str:
    """The beginning and the end of a long text, with what was left out counted."""
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}\n... {len(text) - 2 * half} characters left out ...\n{text[-half:]}"


def show(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def moment(time: float) -> str:
    return f"{datetime.fromtimestamp(time, UTC):%Y-%m-%d %H:%M:%S} UTC"


def fenced(text: str, language: str = "text") -> list[str]:
    """Text from outside as a code block that it cannot end."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    clean = re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", "", text)
    return [f"{fence}{language}", clean.rstrip("\n"), fence]


def cell_of_table(value: object) -> object:
    """A CSV cell that a spreadsheet will not take for a formula."""
    if isinstance(value, str):
        flat = _CONTROL.sub(" ", value)
        return f"'{flat}" if flat[:1] in {"=", "+", "-", "@"} else flat
    return value


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, sort_keys=False, ensure_ascii=False, allow_nan=False) + "\n"


def _yaml(value: dict[str, Any]) -> str:
    return str(yaml.safe_dump(value, sort_keys=False, allow_unicode=True)) if value else "{}\n"
