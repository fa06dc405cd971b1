"""The one comment that a pull request has: first what it would run, then what came of it. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from trainforge.config.result import fenced
from trainforge.hooks.github_report import Report, mark, metric_rows
from trainforge.hooks.github_text import code, flat, joined, link

MARKER = "<!-- trainforge: this comment is kept up to date -->"  # its first line, by which it is found again
MOST_MANIFESTS, MOST_CHANGES, MOST_JOBS = 20, 60, 20
_SHOWN = 120

Difference = tuple[str, str, str]  # dotted key, value on the base, value here; empty where there is none


class PlannedManifest(BaseModel):
    """What one manifest would run now. `where` are the machines, else `waiting` says why there are none;
    `took` is how long past jobs of it ran, in words."""

    path: str
    project: str = ""
    problems: list[str] = []
    jobs: int = 1
    shape: str = ""
    where: list[str] = []
    waiting: dict[str, str] = {}
    took: str = ""
    differences: list[Difference] = []
    new: bool = False
    inactive: list[str] = []


class PullPlan(BaseModel):
    """What the manifests that a pull request changes would run."""

    head: str
    base: str  # the branch
    fork: bool = False
    runs: bool = False  # its job is made without anybody asking
    manifests: list[PlannedManifest] = []


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Difference]:
    """Dotted keys whose values differ between two resolved manifests, in the new one's order."""
    before, after = dict(_leaves(old)), dict(_leaves(new))
    keys = [*after, *(key for key in before if key not in after)]
    return [
        (key, before.get(key, ""), after.get(key, "")) for key in keys if before.get(key) != after.get(key)
    ]


def _leaves(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        return [leaf for key, below in value.items() for leaf in _leaves(below, f"{prefix}{key}.")]
    shown = "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return [(prefix.removesuffix("."), shown)]


def comment(plan: PullPlan, reports: Sequence[Report]) -> str:
    """Markdown, bounded: results once there are some, and the plan."""
    blocks: list[Sequence[str]] = [[MARKER]]
    blocks += [lines for report in reports[:MOST_JOBS] for lines in _job(report)]
    if len(reports) > MOST_JOBS:
        blocks.append([f"and {len(reports) - MOST_JOBS} more jobs"])
    blocks.append([f"### TrainForge: plan for `{plan.head[:10]}`"])
    if not plan.manifests:
        blocks.append(["No manifest differs from the base, so nothing would run."])
    blocks += [lines for manifest in plan.manifests[:MOST_MANIFESTS] for lines in _manifest(manifest, plan)]
    blocks.append(_how(plan))
    return joined(blocks)


def _job(report: Report) -> list[Sequence[str]]:
    about = f"{code(report.project)}{f' ({code(report.cell)})' if report.cell else ''}"
    sign = {"success": "✅", "cancelled": "⚪"}.get(report.conclusion, "❌") if report.over else "⏳"
    title = [f"### {sign} {about}: {code(report.title)}"]
    gates = [f"- {mark(gate)} {code(gate.words, 300)}" for gate in report.gates]
    why = fenced(report.reason[:2000]) if report.reason and report.state == "failed" else []
    links = [link("job page", report.job_url), link("result", report.folder_url) if report.folder_url else ""]
    compared = ""
    if report.base is not None and report.metrics:
        compared = f"compared with job `{report.base.job[:8]}` on {code(report.base.branch, 80)}"
    about_it = [" · ".join(filter(None, [*links, f"`{report.commit[:10]}`", compared]))]
    return [title, gates, metric_rows(report.metrics, report.base), why, about_it]


def _manifest(manifest: PlannedManifest, plan: PullPlan) -> list[Sequence[str]]:
    title = f"**{code(manifest.project or manifest.path)}**, {code(manifest.path)}"
    if manifest.problems:
        return [[f"{title} cannot be used:"], fenced("\n".join(manifest.problems[:20]))]
    jobs = f"{manifest.jobs} jobs" if manifest.jobs != 1 else "1 job"
    shape = f" of {flat(manifest.shape, _SHOWN)}" if manifest.shape else ""
    where = ", ".join(code(name, 80) for name in manifest.where[:20])
    took = f"about {manifest.took} by past jobs" if manifest.took else "no past job says how long"
    places = f"would run now on {where}" if where else "would have to wait now"
    lines: list[Sequence[str]] = [[f"{title}: {jobs}{shape} {places}; {took}."]]
    if not where:
        lines.append(
            [f"- {code(who, 80)}: {code(why, 300)}" for who, why in [*manifest.waiting.items()][:10]]
        )
    if manifest.inactive:
        keys = ", ".join(code(key, 80) for key in manifest.inactive[:20])
        lines.append([f"Accepted, but not yet in effect: {keys}."])
    lines.append(_differences(manifest, plan))
    return lines


def _differences(manifest: PlannedManifest, plan: PullPlan) -> list[str]:
    if manifest.new:
        return [f"This manifest is not on {code(plan.base, 80)} yet."]
    if not manifest.differences:
        return [f"It means the same as on {code(plan.base, 80)}."]
    rows = [
        f"| {code(key, 120)} | {_value(old)} | {_value(new)} |"
        for key, old, new in manifest.differences[:MOST_CHANGES]
    ]
    more = len(manifest.differences) - MOST_CHANGES
    return [
        f"| key | {code(plan.base, 80)} | here |", "|---|---|---|", *rows,
        *([f"| and {more} more | | |"] if more > 0 else []),
    ]  # fmt: skip


def _value(text: str) -> str:
    return code(text, _SHOWN) if text else ""


def _how(plan: PullPlan) -> list[str]:
    if plan.fork:
        return [
            "This comes from a fork, so nothing of it runs by itself. Who may write to this repository can "
            "have exactly this commit run, after reading it:",
            "",
            "```",
            f"/trainforge run {plan.head}",
            "```",
        ]
    by_itself = "" if plan.runs else "`/trainforge run` runs it, "
    return [f"In a comment, {by_itself}`/trainforge plan` plans anew, `stop` and `retry` do so for its jobs."]
