"""The summary of a workflow run's job, as GitHub's markdown: metrics, a curve, gates, links. Pure.

Everything in it was named by somebody else, so each text is escaped for where it stands.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from trainforge.config.views import JobDetail, MetricPoint

MAX_CELL, MAX_ROWS, MAX_POINTS = 200, 50, 40
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>()#+!|~&@:-])")
_PLAIN = re.compile(r"[^A-Za-z0-9 _./-]")


def text(value: object) -> str:
    """A value as one line of plain words in markdown, whatever is in it."""
    words = " ".join(str(value).split())
    words = words if len(words) <= MAX_CELL else words[: MAX_CELL - 1] + "…"
    return _SPECIAL.sub(lambda m: f"&#{ord(m[1])};", words)


def number(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else text("" if value is None else value)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Cells are markdown already."""
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows[:MAX_ROWS])]
    if len(rows) > MAX_ROWS:
        lines += ["", f"and {len(rows) - MAX_ROWS} more"]
    return "\n".join(lines) + "\n"


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def summary(job: JobDetail, points: Sequence[MetricPoint], links: Mapping[str, str]) -> str:
    """`links` are words to URLs of ours."""
    parts = [f"### TrainForge: {text(job.project)} {state_words(job, text)}\n"]
    if job.reason:
        parts.append(f"{text(job.reason)}\n")
    if job.cell:
        parts.append(", ".join(f"{text(name)} = {number(value)}" for name, value in job.cell.items()) + "\n")
    if job.gates:
        rows = [[text(gate.words), "met" if gate.passed else "**missed**"] for gate in job.gates]
        parts.append(table(["Gate", ""], rows))
    shown = {name: value for name, value in job.metrics.items() if name != "progress"}
    if shown:
        parts.append(table(["Metric", "Value"], [[text(k), number(v)] for k, v in shown.items()]))
    name = _curve_name(job, points)
    if name:
        told = [point for point in points if name in point.values]
        first = min(point.rank for point in told)  # all ranks may tell of the same
        parts.append(chart(name, [(point.step, point.values[name]) for point in told if point.rank == first]))
    facts = [f"commit {text(job.commit[:12])}", f"{job.nodes} node{'s' if job.nodes != 1 else ''}"]
    if job.started and job.ended:
        facts.append(f"trained for {duration(job.ended - job.started)}")
    facts += [f"[{text(words)}]({url})" for words, url in links.items()]
    return "\n".join([*parts, f"job {text(job.id)}: " + ", ".join(facts) + "\n"])


def state_words(job: JobDetail, shown: Callable[[str], str] = str) -> str:
    """`shown` makes what others may have named fit for where it is to stand."""
    missed = sum(not gate.passed for gate in job.gates)
    if job.state == "completed" and missed:
        return f"completed, but missed {missed} gate{'s' if missed != 1 else ''}"
    return f"{job.state}: {shown(job.code)}" if job.code else job.state


def _curve_name(job: JobDetail, points: Sequence[MetricPoint]) -> str:
    """The metric to draw: one that has a curve, the loss rather than another."""
    counts: dict[str, int] = {}
    for point in points:
        for name, value in point.values.items():
            if isinstance(value, int | float) and not isinstance(value, bool) and name != "progress":
                counts[name] = counts.get(name, 0) + 1
    drawn = [name for name, count in counts.items() if count > 1 and name not in {"epoch", "step"}]
    return min(drawn, key=lambda name: ("loss" not in name, name not in job.metrics, len(name)), default="")


def chart(name: str, points: Sequence[tuple[int | None, object]]) -> str:
    """A mermaid line chart of finite numbers, thinned out evenly; empty for fewer than two."""
    values = [
        float(value) for _, value in points
        if isinstance(value, int | float) and math.isfinite(value)
    ]  # fmt: skip
    if len(values) < 2:
        return ""
    step = max(1, math.ceil(len(values) / MAX_POINTS))
    kept = [*values[:-1:step], values[-1]]
    plain = _PLAIN.sub("", name)[:60] or "metric"
    return (
        "```mermaid\nxychart-beta\n"
        f'    title "{plain}"\n'
        f'    x-axis "report" 1 --> {len(values)}\n'
        f"    line [{', '.join(f'{value:.6g}' for value in kept)}]\n```\n"
    )


def plan_summary(answer: Mapping[str, Any], manifest_path: str) -> str:
    """What a plan says: where it would train, or what it waits for."""
    parts = [f"### TrainForge: plan of {text(manifest_path)}\n"]
    plan = answer.get("plan")
    if plan:
        rows = [[str(node["rank"]), text(node["name"])] for node in plan["nodes"]]
        parts.append(table(["Node", "Executor"], rows))
        adapted = [
            f"{change['key']}: {change['before']} becomes {change['after']}" for change in plan["adjusted"]
        ]
        parts += [f"- {text(words)}" for words in [*adapted, *plan["notices"]]]
    for name, why in dict(answer.get("waiting") or {}).items():
        parts.append(f"- {text(name)}: {text(why)}")
    for words in answer.get("suggestions") or []:
        parts.append(f"- {text(words)}")
    if cells := answer.get("cells"):
        parts.append(f"\n{len(cells)} jobs of a matrix\n")
    start = (answer.get("start") or {}).get("words", "")
    if start:
        parts.append(f"Begins: {text(start)}\n")
    return "\n".join(parts) + "\n"
