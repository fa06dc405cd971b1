"""Whether a commit is a repository's own: in the history of one of its branches or tags.

That a server hands a commit out by its id proves nothing. Hosts keep forks' commits in the same store and
serve them under the parent's name ("imposter commits"); what nobody could push here is not trained here.
Of a fork's commit that was approved, a ref of the repository's own says so, which only who may push can set.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainforge.config.messages import GitCredential
from trainforge.hooks import git
from trainforge.hooks.addresses import validate_commit, validate_url
from trainforge.hooks.gitread import has_commit, is_ancestor
from trainforge.hooks.gitrun import GitNotFound, run
from trainforge.hooks.growth import MOST

DEPTHS = (50, 1000, 0)  # fetched one after the other, so that a recent commit costs little


@dataclass(frozen=True)
class Remote:
    """A repository elsewhere, and how to reach it."""

    url: str
    credential: GitCredential | None = None
    allow_file: bool = False
    timeout: float | None = None
    most: int = MOST

    @property
    def options(self) -> dict[str, Any]:
        given = {"credential": self.credential, "allow_file": self.allow_file}
        return {**given, "timeout": self.timeout, "most": self.most}


def is_known(mirror: Path, commit: str) -> bool:
    """Whether the mirror has the commit, and it was found to be the repository's own."""
    return (mirror / _mark(commit)).exists() and has_commit(mirror, commit)


def _mark(commit: str) -> str:
    return f"refs/trainforge/reachable/{validate_commit(commit)}"


def check_reachable(mirror: Path, remote: Remote, commit: str, *, ref: str = "") -> None:
    """Return when the commit is on `ref`, where that exists, or on any branch or tag; this is remembered.

    `ref` may be the commit's `approved_ref`.

    Raises:
        GitNotFound: it is on none.
    """
    if (mirror / _mark(commit)).exists():
        return
    address = validate_url(remote.url, allow_file=remote.allow_file)
    if ref == approved_ref(commit):
        known = _is_approved(remote, commit)
    elif address.local:
        known = contains(git.local_git_dir(address), commit)
    else:
        refs = git.ls_remote(remote.url, credential=remote.credential)
        known = commit in refs.values()
        known = known or any(_on(mirror, remote, name, commit) for name in _candidates(refs, ref))
    if not known:
        raise GitNotFound(
            f"commit {commit} is on no branch or tag of {address.text}",
            hint="push it to a branch; it may be a fork's, or its branch was rewritten",
        )
    if has_commit(mirror, commit):
        run(["update-ref", _mark(commit), commit], git_dir=mirror)


def approved_ref(commit: str) -> str:
    """The ref that says that a commit of a fork may run; no branch, so that no workflow starts by it."""
    return f"refs/trainforge/approved/{validate_commit(commit)}"


def approve(
    mirror: Path, url: str, commit: str, *, credential: GitCredential | None = None, allow_file: bool = False
) -> None:
    """Set that ref; the mirror must have the commit.

    Raises:
        GitError: the remote refuses it, or cannot be reached.
    """
    remote = validate_url(url, allow_file=allow_file)
    args = ["push", "--quiet", "--", remote.text, f"{commit}:{approved_ref(commit)}"]
    run(args, git_dir=mirror, remote=remote, credential=credential)


def _is_approved(remote: Remote, commit: str) -> bool:
    address = validate_url(remote.url, allow_file=remote.allow_file)
    args = ["ls-remote", "--quiet", "--", address.text, approved_ref(commit)]
    out = run(args, remote=address, credential=remote.credential, timeout=remote.timeout)
    return out.decode("utf-8", "replace").partition("\t")[0] == commit


def contains(repository: Path, commit: str) -> bool:
    """The same of a repository on this disk."""
    if not has_commit(repository, commit):
        return False
    args = ["for-each-ref", "--count=1", f"--contains={validate_commit(commit)}", "refs/heads", "refs/tags"]
    return bool(run(args, git_dir=repository).strip())


def _candidates(refs: dict[str, str], ref: str) -> list[str]:
    """Where to look: the ref that was named, else the branches, the usual ones first, and the tags."""
    if ref in refs:
        return [ref]
    usual = ("refs/heads/main", "refs/heads/master")
    return sorted(refs, key=lambda name: (name not in usual, not name.startswith("refs/heads/"), name))


def _on(mirror: Path, remote: Remote, ref: str, commit: str) -> bool:
    for depth in DEPTHS:
        tip = git.fetch_ref(mirror, remote.url, ref, depth=depth, **remote.options)
        if has_commit(mirror, commit) and is_ancestor(mirror, commit, tip):
            return True
    return False
