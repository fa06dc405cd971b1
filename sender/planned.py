"""Jobs that are planned but not queued: drafted, shown with their plan, changed, and confirmed.

A planned job has the id that the job will have, so whoever planned it follows one id to the end.
Everything here runs in a worker thread.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from trainforge.config.errors import Conflict, MessageInvalid, NotFound
from trainforge.config.manifest import parse_manifest
from trainforge.config.messages import PREPARE, CommitId
from trainforge.config.views import JobDetail
from trainforge.sender import actions, events
from trainforge.sender.context import Sender

KIND = "planned"
PREFERENCES = "preferences"
LIFE_S = 7 * 86_400
DRAFT = ("repository", "commit", "manifest_path", "ref", "overrides", "executors", "rerun", "source")
# A preparation trains nothing: it needs no GPU, and is not done for each cell of a matrix.
ALONE: Mapping[str, Any] = {"resources.nodes": 1, "resources.gpu": 0, "strategy": {}}
USUAL_REFS = ("refs/heads/main", "refs/heads/master")


class Requirements(BaseModel):
    """The first API's `resource_requirements`. Memory is bytes, or text with a unit such as 24GB."""

    model_config = ConfigDict(extra="forbid")

    num_machines: int = Field(default=1, ge=1, le=1024)
    gpus_per_machine: int | None = Field(default=None, ge=0, le=64)
    min_gpu_memory: int | str | None = None

    def overrides(self) -> dict[str, Any]:
        made: dict[str, Any] = {"resources.nodes": self.num_machines}
        if self.min_gpu_memory:
            size = self.min_gpu_memory
            if isinstance(size, int) and size < 2**20:
                raise MessageInvalid(f"min_gpu_memory is {size} bytes", hint='say "24GB" for gigabytes')
            text = f"{size}B" if isinstance(size, int) else size
            made["resources.gpu"] = f"{text}..:{self.gpus_per_machine or 1}"
        elif self.gpus_per_machine is not None:
            made["resources.gpu"] = self.gpus_per_machine
        return made


class PlanAsk(BaseModel):
    """The first API's `DistributedTrainingConfig`. `plugin_name` is a repository, or a project of one.

    `config` are the training's parameters. Without `commit` the newest of `ref` is trained.
    """

    model_config = ConfigDict(extra="forbid")

    plugin_name: str = Field(min_length=1, max_length=2048)
    config: dict[str, Any] = {}
    resource_requirements: Requirements | None = None
    machine_selection: Literal["auto", "manual"] = "auto"
    selected_machines: list[str] = Field(default=[], max_length=1000)
    commit: CommitId | None = None
    ref: str = Field(default="", max_length=1024)
    manifest_path: str = Field(default="", max_length=1024)


class Preferences(BaseModel):
    """The first API's `DistributedPreferences`, kept for each person."""

    model_config = ConfigDict(extra="forbid")

    preferred_machines: list[str] = Field(default=[], max_length=1000)
    default_num_machines: int = Field(default=1, ge=1, le=1024)
    default_gpus_per_machine: int = Field(default=0, ge=0, le=64)
    auto_machine_selection: bool = True


def preferences(sender: Sender, person: str) -> Preferences:
    return Preferences.model_validate(sender.store.document(PREFERENCES, person) or {})


def request_of(sender: Sender, ask: PlanAsk) -> dict[str, Any]:
    """What is asked for, as `events.draft_jobs` takes it.

    Raises:
        NotFound: no such repository, project or branch.
    """
    needs = ask.resource_requirements.overrides() if ask.resource_requirements else {}
    params = {f"training.params.{name}": value for name, value in ask.config.items()}
    source = _source(sender, ask)
    return {**source, "overrides": needs | params, "executors": list(ask.selected_machines)}


def _source(sender: Sender, ask: PlanAsk) -> dict[str, str]:
    ref, path, last = ask.ref, ask.manifest_path, ""
    try:
        repository = sender.store.repository(ask.plugin_name).id
    except NotFound:
        jobs = sender.queries.jobs(project=ask.plugin_name, limit=1)
        if not jobs:
            raise NotFound(
                f"no repository or project {ask.plugin_name[:80]} is known here",
                hint="push it to this sender, or have it watched: `trainforge sender watch URL`",
            ) from None
        repository, path = str(sender.store.job(jobs[0].id)["repository_id"]), path or jobs[0].manifest_path
        ref, last = ref or jobs[0].ref, jobs[0].commit
    heads = sender.store.heads(repository)
    if not ref:
        known = [head for head in USUAL_REFS if head in heads] or sorted(heads)[:2]
        ref = known[0] if known and (known[0] in USUAL_REFS or len(known) == 1) else ""
    commit = ask.commit or heads.get(ref) or last
    if not commit and not ask.ref and (jobs := sender.queries.jobs(project=ask.plugin_name, limit=1)):
        ref, commit, path = jobs[0].ref, jobs[0].commit, path or jobs[0].manifest_path  # it was submitted
        repository = str(sender.store.job(jobs[0].id)["repository_id"])
    if not commit:
        raise NotFound(
            f"{ask.plugin_name[:80]} has no branch {ref or 'main'} that was seen here",
            hint="name `ref` or `commit`, or push first",
        )
    return {
        "repository": repository,
        "commit": commit,
        "ref": ref,
        "manifest_path": path or "trainforge.yaml",
    }


def propose(sender: Sender, ask: PlanAsk, person: str, source: str = "plan") -> dict[str, Any]:
    """Plan a job and keep it until it is confirmed.

    Raises:
        TrainForgeError: as `events.draft_jobs`; ManifestError: it cannot be used.
    """
    wishes = preferences(sender, person)
    if ask.resource_requirements is None and "default_num_machines" in wishes.model_fields_set:
        gpus = wishes.default_gpus_per_machine or None
        needs = Requirements(num_machines=wishes.default_num_machines, gpus_per_machine=gpus)
        ask = ask.model_copy(update={"resource_requirements": needs})
    if ask.machine_selection == "manual" and not ask.selected_machines:
        raise MessageInvalid("selected_machines is empty", hint="name some, or let machine_selection be auto")
    kept = request_of(sender, ask) | {"rerun": f"planned:{secrets.token_hex(8)}", "source": source}
    if source == PREPARE:
        kept["overrides"] |= ALONE
    return draft(sender, kept, [] if kept["executors"] else wishes.preferred_machines)


def draft(
    sender: Sender, asked: Mapping[str, Any], preferred: Sequence[str] = (), **more: Any
) -> dict[str, Any]:
    """Draft what is asked for in the words of `DRAFT`, keep it with `more`, and show its plan.

    Raises:
        TrainForgeError: as `events.draft_jobs`; ManifestError: it cannot be used.
    """
    kept = {**asked, **more}
    _, jobs = events.draft_jobs(sender, **asked)
    job = jobs[0]
    parse_manifest(job.manifest_text, job.manifest_path)  # every problem of it, placed
    kept |= {"jobs": [one.id for one in jobs], "project": job.project, "assigned": {}}
    kept["manifest"] = job.manifest_text
    kept["executors"] = list(job.executors)
    kept["preferred"] = list(preferred)
    now = sender.now()
    sender.store.drop_documents(KIND, now - LIFE_S)
    sender.store.put_document(KIND, job.id, kept, now)
    return show(sender, job.id, kept)


def find(sender: Sender, job: str) -> dict[str, Any] | None:
    return sender.store.document(KIND, job)


def show(sender: Sender, job: str, kept: Mapping[str, Any]) -> dict[str, Any]:
    """The plan for confirmation, as it would be now; or why it would wait, and on what else it would not."""
    executors, made = _choose(sender, kept)
    chosen = made["plan"]
    others: list[str] = []
    if chosen is None and executors:
        instead = actions.make_plan(sender, kept["manifest"], kept["overrides"])["plan"]
        others = [node["name"] for node in instead["nodes"]] if instead else []
    machines = [
        {"machine_id": node["executor"], "name": node["name"], "rank": node["rank"], "gpus": node["gpus"]}
        for node in (chosen or {}).get("nodes", ())
    ]
    return {
        "job_id": job,
        "task_id": job,
        "jobs": kept["jobs"],
        "status": "planning",
        "project": kept["project"],
        "execution_plan": {**chosen, "machines": machines} if chosen else None,
        "waiting": made["waiting"],
        "alternatives": others,
        "suggestions": made.get("suggestions", []),
        "start": made.get("start"),
        "ahead": made["ahead"],
        "cells": [{**cell, "job_id": one} for cell, one in zip(made["cells"], kept["jobs"], strict=False)],
        "inactive": made["inactive"],
    }


def _choose(sender: Sender, kept: Mapping[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """The machines that were chosen; else the preferred ones where they suffice; else any."""
    manifest, overrides = kept["manifest"], kept["overrides"]
    if preferred := known(sender, kept.get("preferred", ())):
        made = actions.make_plan(sender, manifest, overrides, preferred)
        if made["plan"]:
            return preferred, made
    chosen = list(kept["executors"])
    return chosen, actions.make_plan(sender, manifest, overrides, chosen)


def known(sender: Sender, preferred: Sequence[str]) -> list[str]:
    """Of the machines that somebody prefers, the ids of those that there are."""
    views = sender.queries.executors(sender.now())
    return [view.id for view in views if {view.id, view.name} & set(preferred) and view.status != "revoked"]


def confirm(
    sender: Sender, job: str, *, machines: Sequence[str] = (), overrides: Mapping[str, Any] | None = None
) -> JobDetail:
    """Queue a planned job, on these machines if some are named. Doing it twice queues it once.

    Raises:
        NotFound: nothing of that id is planned or queued. Conflict: it is queued, but not on these machines.
    """
    kept = find(sender, job)
    if kept is None:
        detail = sender.queries.job(job)
        if machines and set(machines) != set(sender.store.job(job)["executors"]):
            raise Conflict(f"job {job} is already queued", hint="plan another one for other machines")
        return detail
    executors = list(machines) or _choose(sender, kept)[0]
    changed = {"executors": executors, "overrides": kept["overrides"] | dict(overrides or {})}
    asked = {name: value for name, value in (kept | changed).items() if name in DRAFT}
    events.request_job(sender, **asked)
    sender.store.drop_document(KIND, job)
    return sender.queries.job(job)


def assign(
    sender: Sender, job: str, machine: str, *, rank: int, world_size: int, port: int | None
) -> list[int]:
    """Note which machine is to be a rank of a planned job; the ranks that still have none.

    Raises:
        NotFound: it is not planned. Conflict: another machine has this rank, or the machine another rank.
    """
    kept = find(sender, job)
    if kept is None:
        raise NotFound(f"no job {job[:40]} is planned here", hint="plan it first, or it is queued already")
    assigned = {int(number): name for number, name in kept["assigned"].items()}
    if rank >= world_size:
        raise MessageInvalid(f"rank {rank} does not exist where world_size is {world_size}")
    if assigned.get(rank, machine) != machine or machine in {m for r, m in assigned.items() if r != rank}:
        raise Conflict("each rank has one machine, and each machine one rank")
    assigned[rank] = machine
    changes: dict[str, Any] = {"resources.nodes": world_size}
    if port is not None:
        changes["distributed.port"] = port
    kept |= {
        "assigned": assigned,
        "executors": [assigned[r] for r in sorted(assigned)],
        "overrides": kept["overrides"] | changes,
        "preferred": [],
    }
    sender.store.put_document(KIND, job, kept, sender.now())
    return [number for number in range(world_size) if number not in assigned]
