"""From a hint to jobs: look at the real refs, compare with what was handled, decide, write it down once.

Everything here runs in a worker thread. Several hints for the same push may look at the same time; the
compare-and-swap on the handled head lets one of them win, and job ids are derived, so a job is made once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainforge.config.errors import ManifestError, NotFound, TooLarge, TrainForgeError
from trainforge.config.identity import job_id
from trainforge.config.manifest import RESULTS_BRANCH, Manifest, apply_overrides, parse_manifest
from trainforge.config.messages import GitCredential
from trainforge.hooks import git, triggers
from trainforge.hooks.gitread import (
    CommitInfo,
    ObjectReader,
    has_commit,
    list_tree,
    merge_base,
    tree_diff,
)
from trainforge.hooks.gitrun import GitNotFound, run
from trainforge.hooks.triggers import RefChange
from trainforge.sender.context import Sender
from trainforge.sender.notify import EVENTS, JOBS
from trainforge.sender.store_events import NewEvent, NewJob, Repo

MAX_MANIFESTS = 50
RECENT_S = 5.0
MAX_READ = 1024 * 1024
_FIRST = ("refs/heads/main", "refs/heads/master")  # other new branches are compared with these
UNKNOWN_BLOB = "0" * 40


@dataclass(frozen=True)
class ManifestFile:
    """One manifest at a commit: its blob and text, and either the manifest or its problems."""

    path: str
    blob: str
    text: str = ""
    manifest: Manifest | None = None
    problems: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class Place:
    """Where a repository's objects are on this disk, and how to reach its remote."""

    repo: Repo
    mirror: Path
    url: str
    credential: GitCredential | None = None

    @property
    def local(self) -> bool:
        return self.repo.kind != "remote"

    @property
    def builtin(self) -> bool:
        return self.repo.kind == "builtin"


def place_of(sender: Sender, repo: Repo) -> Place:
    """The built-in server's repositories are read where they lie; all others have a mirror of ours."""
    if repo.kind == "builtin":
        bare = sender.git_root / f"{repo.name}.git"
        return Place(repo, bare, str(bare))
    name = hashlib.sha256(repo.id.encode()).hexdigest()[:20]
    secret = sender.settings.git_token.get_secret_value()
    credential = None
    if secret and repo.url.startswith("https://"):
        credential = GitCredential(username=sender.settings.git_username or "x-access-token", password=secret)
    return Place(repo, sender.mirrors / f"{name}.git", repo.url, credential)


# --- hints ----------------------------------------------------------------------------------------------


def handle_hint(sender: Sender, repository: str, source: str) -> list[str]:
    """Something may have been pushed: handle every ref that differs from what was handled last.

    Gives lines for the person who pushed.

    Raises:
        TrainForgeError: the repository is unknown, or git cannot read it; noted at the repository.
    """
    repo = sender.store.repository(repository)
    place = place_of(sender, repo)
    try:
        refs = _refs(place)
        lines = _handle_refs(sender, place, refs, source)
    except TrainForgeError as error:
        sender.store.note_check(repo.id, sender.now(), str(error))
        raise
    sender.store.note_check(repo.id, sender.now())
    return _said_just_now(sender, repo) if lines is None else lines


def _refs(place: Place) -> dict[str, str]:
    """Every branch and tag of the repository now, tags peeled."""
    if not place.builtin:
        return git.ls_remote(place.url, credential=place.credential, allow_file=place.local)
    form = "--format=%(refname) %(objectname) %(*objectname)"
    out = run(["for-each-ref", form, "--", "refs/heads", "refs/tags"], git_dir=place.mirror)
    lines = (line.split(" ") for line in out.decode("utf-8", "replace").splitlines())
    return {name: peeled or commit for name, commit, peeled in lines}


def _handle_refs(sender: Sender, place: Place, refs: Mapping[str, str], source: str) -> list[str] | None:
    """Lines for every change that was handled here; None if another source was faster."""
    repo = place.repo
    if repo.kind != "builtin" and not repo.primed:
        reason = f"{len(refs)} refs existed before this repository was watched"
        first = NewEvent(source, repo.id, repo.name, "ignored", reason)
        sender.store.prime(repo.id, refs, first, sender.now())
        sender.bell.ring(EVENTS)
        return []
    handled = sender.store.heads(repo.id)
    changes = triggers.pending_changes(handled, refs)
    results = sender.store.results_branches(repo.id)
    said: list[list[str] | None] = []
    for change in sorted(changes, key=lambda change: change.ref not in _FIRST):
        said.append(_handle_change(sender, place, change, handled, source, results))
        if change.new is not None:
            handled[change.ref] = change.new
    if all(lines is None for lines in said):
        return None
    return [line for lines in said for line in lines or ()]


def _handle_change(  # noqa: PLR0917
    sender: Sender,
    place: Place,
    change: RefChange,
    handled: Mapping[str, str],
    source: str,
    results: set[str],
) -> list[str] | None:
    repo = place.repo
    base = {"source": source, "repository_id": repo.id, "repository": repo.name, "ref": change.ref}
    base |= {"old": change.old or "", "new": change.new or ""}
    if triggers.ignored_ref(change.ref, results):
        sender.store.move_head(repo.id, change.ref, (change.old or "", change.new or ""), sender.now())
        return []
    if change.new is None:
        reason = triggers.never_trigger(change, "", results)
        sender.store.record_push(NewEvent(**base, decision="ignored", reason=reason), [], sender.now())
        sender.bell.ring(EVENTS)
        return []
    if not place.builtin:
        git.fetch_commit(
            place.mirror, place.url, change.new,
            ref=change.ref, credential=place.credential, allow_file=place.local,
        )  # fmt: skip
    info, files = read_commit(place.mirror, change.new)
    decision = triggers.decide(
        change,
        _changed_files(place, change, handled),
        message=info.message,
        manifests=[file.path for file in files],
        rules={file.path: file.manifest.on.push for file in files if file.manifest is not None},
        results_branches=results | {_results_branch(file) for file in files},
    )
    by_path = {file.path: file for file in files}
    jobs = [
        new_job(place, info, by_path[path], ref=change.ref, source=source)
        for path in decision.manifests
        if path in by_path
    ]
    event = NewEvent(**base, decision="job" if jobs else "ignored", reason=decision.reason)
    made = sender.store.record_push(event, jobs, sender.now())
    _announce(sender, jobs if made is not None else [])
    if made is None:
        return None
    return _lines(decision.reason, [(job.id, job.project, job.manifest_path) for job in jobs])


def _lines(reason: str, jobs: Sequence[tuple[str, str, str]]) -> list[str]:
    """What the person who pushed is told."""
    if not jobs:
        return [f"TrainForge: no job: {reason}"]
    return [f"TrainForge: job {job[:8]} queued ({project}, {path})" for job, project, path in jobs]


def _said_just_now(sender: Sender, repo: Repo) -> list[str]:
    """The same, where another source was faster to tell of the push."""
    recent = sender.store.recent_decisions(repo.id, sender.now() - RECENT_S)
    return [line for reason, jobs in recent for line in _lines(reason, jobs)]


def _changed_files(place: Place, change: RefChange, handled: Mapping[str, str]) -> list[tuple[str, str]]:
    """What differs from the old head; on a new branch, from where it left the branches known."""
    assert change.new is not None  # noqa: S101 - deletions have been dealt with
    if change.tag is not None:
        return tree_diff(place.mirror, None, change.new)
    if change.old is not None:
        try:
            return tree_diff(place.mirror, change.old, change.new)
        except GitNotFound:
            pass  # a rewritten branch whose old head is gone everywhere: as a new one
    others = {ref: at for ref, at in handled.items() if ref.startswith(triggers.BRANCH) and ref != change.ref}
    return tree_diff(place.mirror, _base(place, change, others), change.new)


def _base(place: Place, change: RefChange, others: Mapping[str, str]) -> str | None:
    assert change.new is not None  # noqa: S101
    if not others:
        return None
    if place.builtin:
        known = [commit for commit in others.values() if has_commit(place.mirror, commit)]
        return merge_base(place.mirror, change.new, known) if known else None
    preferred = [ref for ref in _FIRST if ref in others] or sorted(others)[:3]
    return git.find_base(
        place.mirror, place.url, change.ref, preferred, credential=place.credential, allow_file=place.local
    )


# --- manifests ------------------------------------------------------------------------------------------


def read_commit(mirror: Path, commit: str) -> tuple[CommitInfo, list[ManifestFile]]:
    """What a commit says of itself, and the manifests in it."""
    paths = [path for path in list_tree(mirror, commit) if triggers.is_manifest(path)][:MAX_MANIFESTS]
    with ObjectReader(mirror) as reader:
        return reader.commit(commit), [_read_manifest(reader, commit, path) for path in paths]


def _read_manifest(reader: ObjectReader, commit: str, path: str) -> ManifestFile:
    try:
        blob, data = reader.file(commit, path, MAX_READ)
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


def _results_branch(file: ManifestFile) -> str:
    return file.manifest.results.branch if file.manifest is not None else RESULTS_BRANCH


def new_job(
    place: Place,
    info: CommitInfo,
    file: ManifestFile,
    *,
    ref: str,
    source: str,
    rerun: str = "",
    rerun_of: str = "",
    overrides: Mapping[str, Any] | None = None,
    executors: Sequence[str] = (),
) -> NewJob:
    manifest = file.manifest
    problems = file.problems
    if manifest is not None and overrides:
        manifest = apply_overrides(manifest, overrides)
    return NewJob(
        id=job_id(place.repo.id, info.commit, file.path, file.blob, rerun=rerun),
        repository_id=place.repo.id,
        commit=info.commit,
        manifest_path=file.path,
        manifest_blob=file.blob,
        source=source,
        ref=ref,
        subject=info.subject,
        author=info.author,
        manifest_text=file.text,
        project=manifest.project.name if manifest else place.repo.name,
        result_branch=manifest.results.branch if manifest else RESULTS_BRANCH,
        priority=manifest.priority if manifest else 0,
        nodes=manifest.resources.nodes.min if manifest else 1,
        rerun=rerun,
        rerun_of=rerun_of,
        overrides=dict(overrides or {}),
        executors=tuple(executors),
        problems=problems,
    )


def _announce(sender: Sender, jobs: Sequence[NewJob]) -> None:
    sender.bell.ring(EVENTS)
    if jobs:
        sender.bell.ring(JOBS)
        sender.wake(*(job.id for job in jobs))


# --- jobs that somebody asks for --------------------------------------------------------------------------


def request_job(sender: Sender, repository: str, commit: str, **asked: Any) -> str:
    """Make the job that `draft_job` drafts from the same arguments; gives its id, also when it existed."""
    event, job = draft_job(sender, repository, commit, **asked)
    sender.store.record_request(event, [job], sender.now())
    _announce(sender, [job])
    return job.id


def draft_job(
    sender: Sender,
    repository: str,
    commit: str,
    *,
    manifest_path: str = triggers.MANIFEST,
    ref: str = "",
    overrides: Mapping[str, Any] | None = None,
    executors: Sequence[str] = (),
    rerun: str = "",
    rerun_of: str = "",
    source: str = "submit",
) -> tuple[NewEvent, NewJob]:
    """A job for a commit that is on the remote, as it would be made.

    Raises:
        TrainForgeError: no such repository, commit, manifest or executor; ManifestError for overrides.
    """
    repo = sender.store.repository(repository)
    place = place_of(sender, repo)
    known = {machine.name: machine.id for machine in sender.store.machines(sender.now(), 1.0)}
    if missing := [name for name in executors if name not in known and name not in known.values()]:
        raise NotFound(
            f"no executor {missing[0]} is known here", hint="`trainforge executor status` lists them"
        )
    if place.builtin:
        if not has_commit(place.mirror, commit):
            raise NotFound(f"{repo.name} has no commit {commit}", hint="push it first")
    else:
        git.fetch_commit(
            place.mirror, place.url, commit, ref=ref, credential=place.credential, allow_file=place.local
        )
    with ObjectReader(place.mirror) as reader:
        info = reader.commit(commit)
        file = _read_manifest(reader, commit, manifest_path)
    chosen = [known.get(name, name) for name in executors]
    job = new_job(
        place, info, file, ref=ref, source=source, rerun=rerun or _variant(overrides, chosen),
        rerun_of=rerun_of, overrides=overrides, executors=chosen,
    )  # fmt: skip
    return NewEvent(source, repo.id, repo.name, "job", ref=ref, new=commit), job


def retry_job(sender: Sender, job: str, source: str = "retry") -> str:
    """A new job that asks for the same as an old one."""
    row = sender.store.job(job)
    count = sender.store.count_reruns(job)
    return request_job(
        sender,
        row["repository_id"],
        row["commit"],
        manifest_path=row["manifest_path"],
        ref=row["ref"],
        overrides=row["overrides"],
        executors=row["executors"],
        rerun=f"{job}:{count + 1}",
        rerun_of=job,
        source=source,
    )


def _variant(overrides: Mapping[str, Any] | None, executors: Sequence[str]) -> str:
    """Tells a job with overrides from the plain one of the same commit, and the same ones from none else."""
    if not overrides and not executors:
        return ""
    said = json.dumps([dict(overrides or {}), sorted(executors)], sort_keys=True)
    return "with:" + hashlib.sha256(said.encode()).hexdigest()[:16]
