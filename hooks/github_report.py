"""What GitHub is told of one job: a commit status, or a check run where an App may write one. Pure.

Limits are the API's (version 2022-11-28): 140 characters of a status' description, 65,535 of a check run's
summary, 50 annotations in a request, 3 actions with 20 characters of label and identifier and 40 of
description.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from trainforge.config.gates import BaseResult, Verdict, change, missed, number
from trainforge.config.messages import OUTCOMES
from trainforge.config.result import fenced, show
from trainforge.hooks.github_text import code, flat, joined, link

NAME = "trainforge"
MANIFEST = "trainforge.yaml"
MOST_METRICS, MOST_GATES, MOST_NODES = 100, 50, 50
MOST_ANNOTATIONS = 50
STATUS_TEXT, TITLE = 140, 200
STOP, RETRY = "stop", "retry"  # identifiers of the buttons
_ACTIONS = {
    STOP: {"label": "Stop", "description": "Stop this job", "identifier": STOP},
    RETRY: {"label": "Run again", "description": "Run the same job once more", "identifier": RETRY},
}
_PLACE = re.compile(r"(?P<path>.+?):(?P<line>[1-9][0-9]{0,6})(?::(?P<column>[1-9][0-9]{0,6}))?\Z", re.DOTALL)

Conclusion = Literal["success", "failure", "cancelled", "timed_out", "neutral"]


@dataclass(frozen=True)
class Report:
    """A job at one moment. `phases` are names and durations in words; `problems` those of the manifest, as
    jobs keep them; `folder_url` is its folder on the results branch. Times are unix seconds."""

    job: str
    project: str
    commit: str
    manifest_path: str
    state: str
    created: float
    cell: str = ""
    code: str = ""
    reason: str = ""
    hint: str = ""
    stopping: bool = False
    publishing: bool = False
    waiting: Mapping[str, str] = field(default_factory=dict)
    attempt: int = 0
    machines: Sequence[str] = ()
    phases: Sequence[tuple[str, str]] = ()
    metrics: Mapping[str, Any] = field(default_factory=dict)
    base: BaseResult | None = None
    gates: Sequence[Verdict] = ()
    problems: Sequence[Mapping[str, Any]] = ()
    started: float | None = None
    ended: float | None = None
    took: str = ""
    job_url: str = ""
    folder_url: str = ""

    @property
    def over(self) -> bool:
        return self.state in OUTCOMES

    @property
    def context(self) -> str:
        """What status and check run are called: the same for every commit, so that rules can ask for it."""
        about = "" if self.manifest_path == MANIFEST else f" / {self.manifest_path}"
        return flat(f"{NAME}{about}{f' ({self.cell})' if self.cell else ''}", 200)

    @property
    def conclusion(self) -> Conclusion:
        """Of a job that is over."""
        if self.state == "completed":
            return "failure" if missed(self.gates) else "success"
        if self.state == "cancelled":
            return "cancelled"
        return "timed_out" if self.code.startswith("timeout") else "failure"

    @property
    def title(self) -> str:
        """One line that says how it stands."""
        if failed := missed(self.gates):
            more = f" and {len(failed) - 1} more" if len(failed) > 1 else ""
            return flat(f"gate missed: {failed[0].words}{more}", TITLE)
        return flat(self._ending() if self.over else self._now(), TITLE)

    def _now(self) -> str:
        if self.publishing or self.stopping:
            return "publishing its result" if self.publishing else "stopping"
        if self.state == "running":
            return f"training on {', '.join(self.machines)}" if self.machines else "training"
        if self.waiting:
            return "waiting: " + "; ".join(f"{who}: {why}" for who, why in self.waiting.items())
        return "queued" if self.state in {"pending", "planning"} else "being placed"

    def _ending(self) -> str:
        if self.state == "completed":
            passed = f", {len(self.gates)} gates passed" if len(self.gates) > 1 else ", gate passed"
            return f"completed{f' in {self.took}' if self.took else ''}{passed if self.gates else ''}"
        why = ": ".join(part for part in (self.code, _first_line(self.reason)) if part)
        return f"{self.state}{f': {why}' if why else ''}"


def digest(payload: Mapping[str, Any]) -> str:
    """The same for the same payload: what was told already is not told again."""
    return hashlib.sha256(json.dumps(payload, sort_keys=True).encode()).hexdigest()[:32]


def status(report: Report) -> dict[str, Any]:
    """`POST /repos/{owner}/{repo}/statuses/{sha}`."""
    state = "pending"
    if report.over:
        conclusion = report.conclusion
        state = {"success": "success", "cancelled": "error"}.get(conclusion, "failure")
    return {
        "state": state,
        "description": flat(report.title, STATUS_TEXT),
        "context": report.context,
        **_url("target_url", report.folder_url if report.over and report.folder_url else report.job_url),
    }


def check_run(report: Report) -> dict[str, Any]:
    """`POST /repos/{owner}/{repo}/check-runs`; an update takes all but `head_sha` as well."""
    begun = report.started or report.created
    payload: dict[str, Any] = {
        "name": report.context,
        "head_sha": report.commit,
        "external_id": report.job,
        "started_at": _moment(begun),
        "output": _output(report),
        "actions": [_ACTIONS[RETRY] if report.over else _ACTIONS[STOP]],
        **_url("details_url", report.job_url),
    }
    if report.over:
        ended = max(report.ended or begun, begun)
        return payload | {
            "status": "completed", "conclusion": report.conclusion, "completed_at": _moment(ended)
        }  # fmt: skip
    return payload | {"status": "in_progress" if report.state == "running" else "queued"}


def _output(report: Report) -> dict[str, Any]:
    output = {"title": report.title, "summary": summary(report)}
    noted = annotated(report) if report.over else []  # an update adds to those there are
    return output | ({"annotations": noted} if noted else {})


def summary(report: Report) -> str:
    """Markdown: how it stands and why, gates, metrics against the base, phases, where to read on."""
    return joined([
        _head(report), _why(report), _gates(report.gates), _metrics(report), _phases(report), _links(report),
    ])  # fmt: skip


def annotated(report: Report) -> list[dict[str, Any]]:
    """The manifest's problems at their lines."""
    found = []
    for problem in report.problems:
        place = _PLACE.match(str(problem.get("place", "")))
        if place is None:
            continue
        line = int(place["line"])
        told = flat(str(problem.get("message") or problem.get("detail") or ""), 1000)
        hint = flat(str(problem.get("hint", "")), 500)
        found.append({
            "path": flat(place["path"], 1000), "start_line": line, "end_line": line,
            "annotation_level": "failure", "title": "trainforge.yaml cannot be used",
            "message": f"{told}\n{hint}" if hint else told or "this cannot be used",
        })  # fmt: skip
    return found[:MOST_ANNOTATIONS]


# --- parts of a summary ----------------------------------------------------------------------------------


def _head(report: Report) -> list[str]:
    about = f"{code(report.project)}{f' ({code(report.cell)})' if report.cell else ''}"
    state = "stopping" if report.stopping and not report.over else report.state
    times = f" after {report.took}" if report.took else ""
    tried = f", attempt {report.attempt}" if report.attempt > 1 else ""
    where = ", ".join(code(name, 80) for name in report.machines[:MOST_NODES])
    return [f"**{about}: {state}**{times}{tried}{f' on {where}' if where else ''}"]


def _why(report: Report) -> list[str]:
    lines = []
    if report.code or report.reason:
        lines = [f"**{code(report.code, 60)}**" if report.code else "", ""]
        lines += fenced(report.reason[:8000]) if report.reason else []
        lines += ["", flat(report.hint, 500)] if report.hint else []
    elif report.waiting and not report.over:
        lines = [f"- {code(who, 80)}: {code(why, 300)}" for who, why in list(report.waiting.items())[:20]]
    return lines


def _gates(gates: Sequence[Verdict]) -> list[str]:
    if not gates:
        return []
    marks = [f"- {mark(gate)} {code(gate.words, 300)}" for gate in gates[:MOST_GATES]]
    more = [f"- and {len(gates) - MOST_GATES} more"] if len(gates) > MOST_GATES else []
    return ["### Gates", "", *marks, *more]


def mark(gate: Verdict) -> str:
    return "✅" if gate.passed else "❌"


def _metrics(report: Report) -> list[str]:
    table = metric_rows(report.metrics, report.base)
    return ["### Metrics", "", *table] if table else []


def metric_rows(metrics: Mapping[str, Any], base: BaseResult | None) -> list[str]:
    """A table of the last values, with the base's and the change where there is one."""
    named = [(name, value) for name, value in metrics.items() if name != "progress"]
    if not named:
        return []
    lines = ["| metric | value |", "|---|---:|"]
    if base is not None:
        lines = [f"| metric | value | {code(base.branch, 80)} | change |", "|---|---:|---:|---:|"]
    for name, value in named[:MOST_METRICS]:
        row = f"| {code(name, 100)} | {_figure(value)} |"
        if base is not None:
            before = base.metrics.get(name)
            shown = _figure(before) if before is not None else ""
            row += f" {shown} | {change(value, before)} |"
        lines.append(row)
    more = len(named) - MOST_METRICS
    return [*lines, "", f"and {more} more metrics"] if more > 0 else lines


def _figure(value: Any) -> str:
    return show(value) if number(value) is not None else code(show(value), 60)


def _phases(report: Report) -> list[str]:
    if not report.phases:
        return []
    rows = [f"| {name} | {words} |" for name, words in report.phases]
    return ["### Phases", "", "| phase | took |", "|---|---:|", *rows]


def _links(report: Report) -> list[str]:
    links = [link("job page", report.job_url), link("result", report.folder_url) if report.folder_url else ""]
    return [" · ".join([*filter(None, links), f"job `{report.job[:8]}` of `{report.commit[:10]}`"])]


def _first_line(text: str) -> str:
    return next((line for line in text.splitlines() if line.strip()), "")


def _url(key: str, url: str) -> dict[str, str]:
    return {key: url} if url.startswith(("http://", "https://")) else {}


def _moment(time: float) -> str:
    return f"{datetime.fromtimestamp(time, UTC):%Y-%m-%dT%H:%M:%SZ}"
