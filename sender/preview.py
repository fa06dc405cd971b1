"""What somebody who asks for a plan is told: each job of a matrix, its machines or what it waits for. Pure.

The jobs that wait already are planned in the same pass, so that what is said to begin now would begin now.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from trainforge.config.manifest import Manifest, apply_overrides
from trainforge.config.matrix import as_overrides, cell_name, expand
from trainforge.sender.fit import Machine, Need, need_of, suits
from trainforge.sender.planner import Plan, Waiting, complete
from trainforge.sender.queue import QueuedJob, QueuePlan, plan_queue
from trainforge.sender.suggestions import Start

NAMED = 20  # of the jobs that go first


@dataclass(frozen=True)
class Line:
    """The jobs that wait for machines, and the executors that are kept free for the next of them."""

    jobs: Sequence[QueuedJob] = ()
    held: Collection[str] = ()


def preview(
    manifest: Manifest,
    machines: Iterable[Machine],
    now: float,
    *,
    chosen: Collection[str] = (),
    line: Line = Line(),
) -> dict[str, Any]:
    """What would become of this manifest now; for a matrix `cells` has each of its jobs."""
    fleet = list(machines)
    cells = expand(manifest.strategy)
    need = need_of(manifest, chosen)
    mine = [
        QueuedJob(f"~{number:04}", need, manifest.priority, now)  # after those of the same moment
        for number in range(len(cells) or 1)
    ]
    made = plan_queue([*line.jobs, *mine], fleet, now, held=line.held)
    first = _rivals(made, mine[0], fleet)
    most = manifest.strategy.max_parallel or len(mine)
    begun = min(most, sum(job.id in made.placed for job in mine))
    waits = next((job for job in mine if job.id not in made.placed), None)
    told = []
    for number, (job, cell) in enumerate(zip(mine, cells or [{}], strict=True)):
        if begun == most and number >= most:
            answer = _after_others(most)
        elif job.id in made.placed:
            wanted = apply_overrides(manifest, as_overrides(cell)) if cell else manifest
            answer = _placed(complete(wanted, need, made.placed[job.id]), now)
        else:
            answer = _waiting(made.why(waits or job), first)  # all jobs of a matrix need the same
            if begun:
                answer["waiting"] = {"matrix": f"{_jobs(begun)} of it would go first"} | answer["waiting"]
        told.append({"number": number + 1, "name": cell_name(cell), "parameters": dict(cell), **answer})
    return {
        **{key: told[0][key] for key in ("plan", "waiting", "suggestions", "start")},
        "cells": told if cells else [],
        "max_parallel": manifest.strategy.max_parallel,
        "ahead": [{"id": job.id, "priority": job.priority} for job in first[:NAMED]],
        "inactive": manifest.inactive(),
    }


def _jobs(count: int) -> str:
    return "1 job" if count == 1 else f"{count} jobs"


def _placed(plan: Plan, now: float) -> dict[str, Any]:
    start = asdict(Start(now, "now"))
    return {"plan": plan.as_dict(), "waiting": {}, "suggestions": [], "start": start}


def _waiting(why: Waiting, first: Sequence[QueuedJob]) -> dict[str, Any]:
    start = why.start or Start(None, "unknown")
    if first:
        others = f" and {len(first) - 1} more" if len(first) > 1 else ""
        behind = f"it would wait behind job {first[0].id[:8]}{others}"
        earliest = "at the earliest, " if start.time is not None else ""
        start = Start(start.time, f"{earliest}{start.words}; {behind}")
    told = {"waiting": why.reasons, "suggestions": list(why.suggestions)}
    return {"plan": None, **told, "start": asdict(start)}


def _after_others(most: int) -> dict[str, Any]:
    words = f"begins when one before it has ended: max_parallel is {most}"
    start = asdict(Start(None, "unknown: when one of the jobs before it has ended"))
    return {"plan": None, "waiting": {"matrix": words}, "suggestions": [], "start": start}


def _rivals(made: QueuePlan, job: QueuedJob, machines: Collection[Machine]) -> list[QueuedJob]:
    """The jobs that go first and wait for machines which this one could use, too."""
    usable: dict[Need, frozenset[str]] = {}

    def could_use(need: Need) -> frozenset[str]:
        if need not in usable:
            there = (machine.id for machine in machines if not machine.revoked and suits(need, machine))
            usable[need] = frozenset(there)
        return usable[need]

    before = [one for one in made.waiting if one.order < job.order]
    return [one for one in before if not could_use(one.need).isdisjoint(could_use(job.need))]
