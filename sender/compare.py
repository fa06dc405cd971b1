"""Jobs side by side: the parameters that differ, their metrics over each other, the best values marked."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from trainforge.config.counters import COUNTERS
from trainforge.config.errors import ManifestError
from trainforge.config.manifest import parse_manifest
from trainforge.config.views import JobDetail
from trainforge.sender.pages import render, threaded

MOST_JOBS = 24
_LESS_IS_BETTER = re.compile(r"loss|err|perplexity|ppl|\bmae\b|mse|time|seconds|latency", re.IGNORECASE)


@dataclass(frozen=True)
class Line:
    """One name's value in each job, in the jobs' order; `best` are the columns that have the best one."""

    name: str
    values: tuple[Any, ...]
    best: frozenset[int] = frozenset()
    rule: str = ""


def differing(parameters: Sequence[Mapping[str, Any]]) -> tuple[list[Line], list[Line]]:
    """The parameters that differ between jobs, and those that all have alike."""
    names = list(dict.fromkeys(name for one in parameters for name in one))
    lines = [Line(name, tuple(one.get(name) for one in parameters)) for name in names]
    alike = [line for line in lines if all(value == line.values[0] for value in line.values)]
    return [line for line in lines if line not in alike], alike


def measured(metrics: Sequence[Mapping[str, Any]], modes: Mapping[str, str]) -> list[Line]:
    """The newest metrics of the jobs; the best is marked where two at least have one.

    `modes` says of some whether `min` or `max` is best, as a manifest does; a name tells of the others.
    """
    names = sorted({name for one in metrics for name in one} - COUNTERS)
    return [_measured(name, [one.get(name) for one in metrics], modes.get(name, "")) for name in names]


def _measured(name: str, values: Sequence[Any], mode: str) -> Line:
    mode = mode or ("min" if _LESS_IS_BETTER.search(name) else "max")
    numbers = {
        column: value
        for column, value in enumerate(values)
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }
    if len(numbers) < 2:
        return Line(name, tuple(values))
    top = (min if mode == "min" else max)(numbers.values())
    best = frozenset(column for column, value in numbers.items() if value == top)
    return Line(name, tuple(values), best if len(best) < len(numbers) else frozenset(), mode)


def parameters_of(job: JobDetail) -> dict[str, Any]:
    """What may differ between two jobs and change what they learn."""
    planned = job.plan.get("params")
    known = dict(planned) if isinstance(planned, dict) else dict(job.cell)
    return {
        "commit": job.commit[:10],
        "branch": job.ref.removeprefix("refs/heads/"),
        "nodes": job.nodes,
    } | known


def compare_page(request: Request) -> Response:
    queries = request.app.state.sender.queries
    named = list(dict.fromkeys(one for one in request.query_params.getlist("jobs") if one))
    jobs = [queries.job(queries.resolve(one)) for one in named[:MOST_JOBS]]
    modes = {
        primary: mode for job in jobs for primary, mode in [_primary(queries.manifest(job.id))] if primary
    }
    different, alike = differing([parameters_of(job) for job in jobs]) if jobs else ([], [])
    charted = json.dumps([{"id": job.id, "name": f"{job.id[:8]} {job.project}"} for job in jobs])
    return render(
        request, "compare.html", person=request.state.person, here="/jobs", jobs=jobs, different=different,
        alike=alike, metrics=measured([job.metrics for job in jobs], modes), charted=charted,
        left_out=len(named) - len(jobs),
    )  # fmt: skip


def _primary(manifest: str) -> tuple[str, str]:
    """The metric that a manifest calls the main one, and whether less of it is better."""
    try:
        said = parse_manifest(manifest).metrics
    except ManifestError:
        return "", ""
    return (said.primary or "", said.mode)


routes = [Route("/compare", threaded(compare_page))]
