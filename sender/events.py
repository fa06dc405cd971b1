"""From a hint to jobs: look at the real refs, compare with what was handled, decide, write it down once.

Everything here runs in a worker thread. Several hints for the same push may look at the same time; the
compare-and-swap on the handled head lets one of them win, and job ids are derived, so a job is made once.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trainforge.config.errors import NotFound, TrainForgeError
from trainforge.config.failpoints import failpoint
from trainforge.config.manifest import RESULTS_BRANCH
from trainforge.config.matrix import cell_name
from trainforge.config.messages import PREPARE, GitCredential
from trainforge.hooks import git, triggers
from trainforge.hooks.gitread import (
    CommitInfo,
    ObjectReader,
    has_commit,
    is_ancestor,
    merge_base,
    tree_diff,
)
from trainforge.hooks.gitrun import GitNotFound, run
from trainforge.hooks.reachable import Remote, check_reachable, contains
from trainforge.hooks.triggers import RefChange
from trainforge.sender import leading
from trainforge.sender.context import Sender
from trainforge.sender.drafts import ManifestFile, new_jobs, read_commit, read_manifest
from trainforge.sender.github_access import git_credential
from trainforge.sender.notify import EVENTS, JOBS, RESULTS
from trainforge.sender.registry import choose_executors
from trainforge.sender.store_events import NewEvent, NewJob, Noted, PushedJob, Repo
from trainforge.sender.text import plain

log = logging.getLogger(__name__)
MAX_LINES = 20
MAX_PROBLEMS, MAX_TEXT = 5, 300  # of a manifest, and characters of each
RECENT_S = 5.0
_DEPTHS = (50, 1000)  # in which an old head is looked for below a new one
_FIRST = ("refs/heads/main", "refs/heads/master")  # other new branches are compared with these


Record = Callable[[NewEvent, list[NewJob], float], list[str] | None]


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

    def refs(self) -> dict[str, str]:
        """Every branch and tag of the repository now, tags peeled."""
        if not self.builtin:
            return git.ls_remote(self.url, credential=self.credential, allow_file=self.local)
        form = "--format=%(refname) %(objectname) %(*objectname)"
        out = run(["for-each-ref", form, "--", "refs/heads", "refs/tags"], git_dir=self.mirror)
        lines = (line.split(" ") for line in out.decode("utf-8", "replace").splitlines())
        return {name: peeled or commit for name, commit, peeled in lines}

    def read(self, ref: str, commit: str) -> tuple[CommitInfo, list[ManifestFile]]:
        """What a ref's commit says of itself, and the manifests in it."""
        if not self.builtin:
            git.fetch_commit(
                self.mirror, self.url, commit,
                ref=ref, credential=self.credential, allow_file=self.local,
            )  # fmt: skip
        failpoint("13.sender.diff")
        return read_commit(self.mirror, commit)

    def changed(self, change: RefChange, handled: Mapping[str, str]) -> list[tuple[str, str]]:
        """What differs from the old head; on a new branch, from where it left the branches known."""
        return _changed_files(self, change, handled)

    def rewritten(self, change: RefChange, parents: Sequence[str]) -> bool:
        """Whether the new head of a branch does not stand on its old one."""
        return _rewritten(self, change, parents)


def place_of(sender: Sender, repo: Repo) -> Place:
    """The built-in server's repositories are read where they lie; all others have a mirror of ours.

    Raises:
        TrainForgeError: GitHub gives no token for it now.
    """
    if repo.kind == "builtin":
        bare = sender.git_root / f"{repo.name}.git"
        return Place(repo, bare, str(bare))
    name = hashlib.sha256(repo.id.encode()).hexdigest()[:20]
    credential = git_credential(sender, repo.id, repo.url)
    return Place(repo, sender.mirrors / f"{name}.git", repo.url, credential)


# --- hints ----------------------------------------------------------------------------------------------


def handle_hint(sender: Sender, repository: str, source: str) -> list[str]:
    """Something may have been pushed: handle every ref that differs from what was handled last.

    Gives lines for the person who pushed.

    Raises:
        TrainForgeError: the repository is unknown, or git cannot read it; noted at the repository.
    """
    failpoint("01.sender.look")
    sender.disk.refuse_when_low()
    repo = sender.store.repository(repository)
    if not sender.store.watches(repo.id):
        return []
    try:
        place = place_of(sender, repo)
        refs = place.refs()
        leading.settle(sender, place, refs)
        lines = handle_refs(sender, place, refs, source)
    except TrainForgeError as error:
        sender.store.note_check(repo.id, sender.now(), str(error))
        raise
    sender.store.note_check(repo.id, sender.now())
    return _said_just_now(sender, repo) if lines is None else lines


def handle_refs(sender: Sender, place: Place, refs: Mapping[str, str], source: str) -> list[str] | None:
    """Lines for every change that was handled here; None if another source was faster."""
    repo = place.repo
    if repo.kind != "builtin" and not repo.primed:
        known = f"{len(refs)} refs existed" if refs else "it was empty"
        reason = f"{known} before this repository was watched"
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
    for push in sender.store.noted_pushes(repo.id):
        said.append(_handle_noted(sender, place, push, handled, source, results))
    if all(lines is None for lines in said):
        failpoint("08.sender.nothing_new")
        return None
    return [line for lines in said for line in lines or ()]


def _handle_change(  # noqa: PLR0917
    sender: Sender,
    place: Place,
    change: RefChange,
    handled: Mapping[str, str],
    source: str,
    results: set[str],
    record: Record | None = None,
) -> list[str] | None:
    repo = place.repo
    base = {"source": source, "repository_id": repo.id, "repository": repo.name, "ref": change.ref}
    base |= {"old": change.old or "", "new": change.new or ""}
    if triggers.ignored_ref(change.ref, results):
        sender.store.move_head(repo.id, change.ref, (change.old or "", change.new or ""), sender.now())
        ours = change.new is not None and sender.store.is_result(repo.id, change.new)
        if change.branch in results and not ours:
            sender.moved.add((repo.id, change.branch))
            sender.bell.ring(RESULTS)
        return None if change.ref == leading.REF else []  # who pushed did not push that one
    if change.new is None:
        failpoint("11.sender.branch_gone")
        reason = triggers.never_trigger(change, "", results)
        sender.store.record_push(NewEvent(**base, decision="ignored", reason=reason), [], sender.now())
        sender.bell.ring(EVENTS)
        return []
    info, files = place.read(change.ref, change.new)
    decision = triggers.decide(
        change,
        place.changed(change, handled),
        message=info.message,
        author=info.email,
        manifests=[file.path for file in files],
        rules={file.path: file.manifest.on.push for file in files if file.manifest is not None},
        results_branches=results | {_results_branch(file) for file in files},
    )
    by_path = {file.path: file for file in files}
    jobs = [
        job
        for path in decision.manifests
        if path in by_path
        for job in new_jobs(repo, info, by_path[path], ref=change.ref, source=source)
    ]
    reason = decision.reason
    if record is None and place.rewritten(change, info.parents):
        failpoint("10.sender.forced")
        reason = "; ".join(filter(None, ["the branch was rewritten (forced push)", reason]))
    if jobs and (words := too_often(sender, repo)):
        log.warning("%s: %s", repo.name, words)
        jobs, reason = [], words
        decision = replace(decision, reason=words)
    event = NewEvent(**base, decision="job" if jobs else "ignored", reason=reason)
    if any(job.problems for job in jobs):
        failpoint("15.sender.manifest_refused")
    failpoint("09.sender.change")
    made = (record or sender.store.record_push)(event, jobs, sender.now())
    failpoint("06.sender.push_stored")
    announce(sender, jobs if made is not None else [])
    if made is None:
        return None
    told = [
        PushedJob(job.id, job.project, job.manifest_path, cell_name(job.cell), job.problems) for job in jobs
    ]
    return _lines(decision.reason, told)


def _handle_noted(  # noqa: PLR0917
    sender: Sender, place: Place, push: Noted, handled: Mapping[str, str], source: str, results: set[str]
) -> list[str] | None:
    """A push that was acknowledged, and that its branch had moved on from when somebody looked."""
    change = RefChange(push.ref, push.before or None, push.commit)
    repo = place.repo
    event = NewEvent(source, repo.id, repo.name, "ignored", "", push.ref, push.before, push.commit)
    if reason := triggers.ignored_ref(push.ref, results):
        sender.store.record_noted(replace(event, reason=reason), [], sender.now())
        return []
    try:
        return _handle_change(sender, place, change, handled, source, results, sender.store.record_noted)
    except GitNotFound as error:
        gone = replace(event, reason=f"the commit is gone from the remote: {error.message}")
        sender.store.record_noted(gone, [], sender.now())
        return [f"TrainForge: no job: {gone.reason}"]


def too_often(sender: Sender, repo: Repo) -> str:
    """Why a push leads to no job, where so many others did that something may be going round in circles."""
    most = sender.settings.triggers_per_hour
    if sender.store.count_triggers(repo.id, sender.now() - 3600) < most:
        return ""
    return f"{most} pushes to this repository led to jobs within the hour (the sender's triggers_per_hour)"


def _lines(reason: str, jobs: Sequence[PushedJob]) -> list[str]:
    """What the person who pushed is told."""
    if not jobs:
        return [f"TrainForge: no job: {reason}"]
    lines: list[str] = []
    for count, job in enumerate(jobs):
        if len(lines) >= MAX_LINES:
            return [*lines, f"TrainForge: and {len(jobs) - count} more jobs"]
        about = ", ".join(part for part in (job.project, job.manifest_path, job.cell) if part)
        lines += _refused(job) if job.problems else [f"TrainForge: job {job.id[:8]} queued ({about})"]
    return lines


def _refused(job: PushedJob) -> list[str]:
    """The first problems of a manifest that cannot be used, each with its place and what to do."""
    lines = [f"TrainForge: {job.manifest_path} cannot be used, so job {job.id[:8]} fails:"]
    for problem in job.problems[:MAX_PROBLEMS]:
        text = " ".join(plain(str(problem["detail"])).split())
        lines.append(f"TrainForge:   {text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + '…'}")
    more = len(job.problems) - MAX_PROBLEMS
    return [*lines, f"TrainForge:   and {more} more; `trainforge validate` names them"] if more > 0 else lines


def _said_just_now(sender: Sender, repo: Repo) -> list[str]:
    """The same, where another source was faster to tell of the push."""
    recent = sender.store.recent_decisions(repo.id, sender.now() - RECENT_S)
    return [line for reason, jobs in recent for line in _lines(reason, jobs)]


def _rewritten(place: Place, change: RefChange, parents: Sequence[str]) -> bool:
    old, new = change.old, change.new
    if old is None or new is None or change.branch is None or old in parents:
        return False
    if place.builtin:
        return not has_commit(place.mirror, old) or not is_ancestor(place.mirror, old, new)
    for depth in _DEPTHS:  # the mirror has the new head alone
        tip = git.fetch_ref(
            place.mirror, place.url, change.ref,
            depth=depth, credential=place.credential, allow_file=place.local,
        )  # fmt: skip
        if has_commit(place.mirror, old) and is_ancestor(place.mirror, old, tip):
            return False
    return True


def _changed_files(place: Place, change: RefChange, handled: Mapping[str, str]) -> list[tuple[str, str]]:
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


def _results_branch(file: ManifestFile) -> str:
    return file.manifest.results.branch if file.manifest is not None else RESULTS_BRANCH


# --- jobs that somebody asks for --------------------------------------------------------------------------


def announce(sender: Sender, jobs: Sequence[NewJob]) -> None:
    sender.bell.ring(EVENTS)
    if jobs:
        sender.bell.ring(JOBS)
        # One that takes the place of older ones has them looked at as well.
        sender.wake(*([] if any(job.cancels for job in jobs) else [job.id for job in jobs]))


def request_job(sender: Sender, repository: str, commit: str, **asked: Any) -> str:
    """Make what `draft_jobs` drafts; gives the first one's id, also when it existed."""
    event, jobs = draft_jobs(sender, repository, commit, **asked)
    sender.store.record_request(event, jobs, sender.now())
    announce(sender, jobs)
    return jobs[0].id


def draft_jobs(
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
    cell: Mapping[str, Any] | None = None,
) -> tuple[NewEvent, list[NewJob]]:
    """The jobs for a commit that is on the remote, as they would be made: one, or all of a matrix.

    Raises:
        TrainForgeError: no such repository, commit, manifest or executor; ManifestError for overrides.
    """
    repo = sender.store.repository(repository)
    place = place_of(sender, repo)
    leading.refuse_others(sender, place)
    chosen = choose_executors(sender, executors)
    if place.builtin:
        if not contains(place.mirror, commit):
            raise NotFound(f"{repo.name} has no commit {commit} on a branch or tag", hint="push it first")
    else:
        remote = Remote(place.url, credential=place.credential, allow_file=place.local)
        git.fetch_commit(place.mirror, place.url, commit, ref=ref, **remote.options)
        check_reachable(place.mirror, remote, commit, ref=ref)
    with ObjectReader(place.mirror) as reader:
        info = reader.commit(commit)
        file = read_manifest(reader, commit, manifest_path)
    jobs = new_jobs(
        repo, info, file, ref=ref, source=source, rerun=rerun or _variant(overrides, chosen),
        rerun_of=rerun_of, overrides=overrides, executors=chosen, cell=cell,
    )  # fmt: skip
    return NewEvent(source, repo.id, repo.name, "job", ref=ref, new=commit), jobs


def retry_job(
    sender: Sender,
    job: str,
    source: str = "retry",
    *,
    overrides: Mapping[str, Any] | None = None,
    executors: Sequence[str] = (),
    rerun: str = "",
) -> str:
    """A new job that asks for the same as an old one; of a matrix, its cell alone.

    The same job for the same `rerun`; without one a new job each time.
    """
    row = sender.store.job(job)
    rerun = rerun or f"{job}:{sender.store.count_reruns(job) + 1}"
    return request_job(
        sender,
        row["repository_id"],
        row["commit"],
        manifest_path=row["manifest_path"],
        ref=row["ref"],
        overrides=row["overrides"] if overrides is None else overrides,
        executors=executors or row["executors"],
        rerun=rerun,
        rerun_of=job,
        source=PREPARE if row["source"] == PREPARE else source,
        cell=row["cell"],
    )


def _variant(overrides: Mapping[str, Any] | None, executors: Sequence[str]) -> str:
    """Tells a job with overrides from the plain one of the same commit, and the same ones from none else."""
    if not overrides and not executors:
        return ""
    said = json.dumps([dict(overrides or {}), sorted(executors)], sort_keys=True)
    return "with:" + hashlib.sha256(said.encode()).hexdigest()[:16]
