"""The manifests at a commit, and the jobs that each asks for: one, or one for each cell of its matrix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from trainforge.config.errors import ManifestError, TooLarge, TrainForgeError
from trainforge.config.identity import job_id
from trainforge.config.manifest import RESULTS_BRANCH, Manifest, apply_overrides, parse_manifest
from trainforge.config.matrix import as_overrides, cell_key, expand
from trainforge.hooks import triggers
from trainforge.hooks.gitread import CommitInfo, ObjectReader, list_tree
from trainforge.hooks.gitrun import GitNotFound, sanitise
from trainforge.sender.store_events import NewJob, Repo

MAX_MANIFESTS = 50
MAX_READ = 1024 * 1024
UNKNOWN_BLOB = "0" * 40


@dataclass(frozen=True)
class ManifestFile:
    """One manifest at a commit: its blob and text, and either the manifest or its problems."""

    path: str
    blob: str
    text: str = ""
    manifest: Manifest | None = None
    problems: tuple[Mapping[str, Any], ...] = ()


def read_commit(mirror: Path, commit: str) -> tuple[CommitInfo, list[ManifestFile]]:
    """What a commit says of itself, and the manifests in it."""
    paths = [path for path in list_tree(mirror, commit) if triggers.is_manifest(path)][:MAX_MANIFESTS]
    with ObjectReader(mirror) as reader:
        return reader.commit(commit), [read_manifest(reader, commit, path) for path in paths]


def read_manifest(reader: ObjectReader, commit: str, path: str) -> ManifestFile:
    """Raises GitNotFound: the commit has no such file."""
    try:
        blob, data = reader.file(commit, path, MAX_READ)
    except GitNotFound as error:
        words = f"there is no {sanitise(path, 200)} at {commit[:12]}"
        raise GitNotFound(words, hint="name a manifest of this commit") from error
    except TooLarge as error:
        return ManifestFile(path, UNKNOWN_BLOB, problems=(_problem(error),))
    text = data.decode("utf-8", "replace").replace("\0", "\N{REPLACEMENT CHARACTER}")
    try:
        return ManifestFile(path, blob, text, parse_manifest(data, path))
    except ManifestError as error:
        return ManifestFile(path, blob, text, problems=tuple(_problem(one) for one in error.problems))


def _problem(error: TrainForgeError) -> dict[str, Any]:
    place = str(error.place) if error.place else ""
    return {"detail": str(error), "message": error.message, "hint": error.hint, "place": place}


def new_jobs(
    repo: Repo,
    info: CommitInfo,
    file: ManifestFile,
    *,
    ref: str,
    source: str,
    rerun: str = "",
    rerun_of: str = "",
    overrides: Mapping[str, Any] | None = None,
    executors: Sequence[str] = (),
    cell: Mapping[str, Any] | None = None,
) -> list[NewJob]:
    """The job that a manifest asks for, or one for each cell of its matrix; with `cell`, that one alone."""
    manifest = file.manifest
    if manifest is not None and overrides:
        manifest = apply_overrides(manifest, overrides)
    identity = partial(job_id, repo.id, info.commit, file.path, file.blob, rerun=rerun)
    cells: Sequence[Mapping[str, Any]] = [cell] if cell is not None else []
    if manifest is not None and cell is None:
        cells = expand(manifest.strategy)
    common = NewJob(
        id=identity(),
        repository_id=repo.id,
        commit=info.commit,
        manifest_path=file.path,
        manifest_blob=file.blob,
        source=source,
        dated=info.time,
        ref=ref,
        subject=info.subject,
        author=info.author,
        manifest_text=file.text,
        project=manifest.project.name if manifest else repo.name,
        result_branch=manifest.results.branch if manifest else RESULTS_BRANCH,
        priority=manifest.priority if manifest else 0,
        nodes=manifest.resources.nodes.min if manifest else 1,
        matrix=identity() if cells and cell is None else "",
        concurrency=(manifest.concurrency.group or "") if manifest else "",
        cancels=manifest.concurrency.cancel_in_progress if manifest else False,
        rerun=rerun,
        rerun_of=rerun_of,
        overrides=dict(overrides or {}),
        executors=tuple(executors),
        problems=file.problems,
    )
    return [
        replace(
            common,
            id=identity(cell=cell_key(values)),
            cell=values,
            overrides={**common.overrides, **as_overrides(values)},
        )
        for values in cells or [{}]
    ]
