"""What a pull request would run, read from its commits. For worker threads; nothing of them is executed."""

from __future__ import annotations

from statistics import median
from typing import Any

from sqlalchemy.engine import RowMapping

from trainforge.config.manifest import Manifest
from trainforge.hooks import git, triggers
from trainforge.hooks.github_comment import PlannedManifest, PullPlan, differences
from trainforge.hooks.gitread import tree_diff
from trainforge.sender import events, text
from trainforge.sender.context import Sender
from trainforge.sender.drafts import ManifestFile, read_commit
from trainforge.sender.preview import preview

Wish = str  # `off`, `plan` or `run`, of on.pull_request


def pull_ref(number: int) -> str:
    """Where GitHub keeps the head of a pull request, a fork's too."""
    return f"refs/pull/{number}/head"


def plan_pull(sender: Sender, pull: RowMapping) -> tuple[PullPlan, Wish]:
    """The plan, and what the manifests that differ wish for; of a fork those of the base count.

    Raises:
        TrainForgeError: git cannot read the commits now.
    """
    place = events.place_of(sender, sender.store.repository(pull["repository_id"]))
    how: dict[str, Any] = {"credential": place.credential, "allow_file": place.local}
    ref, base_ref = pull_ref(pull["number"]), f"{triggers.BRANCH}{pull['base_ref']}"
    git.fetch_commit(place.mirror, place.url, pull["head_sha"], ref=ref, **how)
    tip = git.fetch_ref(place.mirror, place.url, base_ref, **how)
    fork = git.find_base(place.mirror, place.url, ref, [base_ref], **how)
    _, here = read_commit(place.mirror, pull["head_sha"])
    _, there = read_commit(place.mirror, tip)
    touched = [path for _, path in tree_diff(place.mirror, fork, pull["head_sha"])]
    old = {file.path: file for file in there}
    changed = [file for file in here if _concerned(file, touched)]
    planned = [_planned(sender, pull, file, old.get(file.path)) for file in changed]
    judges = [old.get(file.path) if pull["fork"] else file for file in changed]
    wishes = [file.manifest.on.pull_request for file in judges if file is not None and file.manifest]
    wish = next((one for one in ("run", "plan", "off") if one in wishes), "plan")
    plan = PullPlan(
        head=pull["head_sha"], base=pull["base_ref"], fork=pull["fork"], manifests=planned,
        runs=wish == "run" and not pull["fork"],
    )  # fmt: skip
    return plan, wish


def _concerned(file: ManifestFile, touched: list[str]) -> bool:
    if file.path in touched:
        return True
    rules = file.manifest.on.push.paths if file.manifest is not None else []
    return any(triggers.matches(path, rules) for path in touched)


def _planned(
    sender: Sender, pull: RowMapping, file: ManifestFile, before: ManifestFile | None
) -> PlannedManifest:
    if file.manifest is None:
        return PlannedManifest(path=file.path, problems=[str(one["detail"]) for one in file.problems])
    now = sender.now()
    machines = sender.store.machines(now, sender.queries.online_for)
    answer = preview(file.manifest, machines, now, line=sender.line())
    nodes = (answer["plan"] or {}).get("nodes", [])
    took = sender.store.durations(pull["repository_id"], file.path)
    old = before.manifest if before is not None else None
    return PlannedManifest(
        path=file.path,
        project=file.manifest.project.name,
        jobs=len(answer["cells"]) or 1,
        shape=_shape(file.manifest),
        where=list(dict.fromkeys(str(node["name"]) for node in nodes)),
        waiting={str(who): str(why) for who, why in answer["waiting"].items()},
        took=text.duration(median(took)) if took else "",
        differences=differences(_resolved(old), _resolved(file.manifest)) if old is not None else [],
        new=before is None,
        inactive=file.manifest.inactive(),
    )


def _shape(manifest: Manifest) -> str:
    needs = manifest.resources
    nodes = f"{needs.nodes} node{'' if str(needs.nodes) == '1' else 's'}"
    return f"{nodes} with {needs.gpu} GPU each" if needs.gpu.max else nodes


def _resolved(manifest: Manifest | None) -> dict[str, Any]:
    return manifest.model_dump(mode="json") if manifest is not None else {}
