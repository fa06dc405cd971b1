"""Whether a commit is a repository's own: in the history of one of its branches or tags.

That a server hands a commit out by its id proves nothing. Hosts keep forks' commits in the same store and
serve them under the parent's name ("imposter commits"); what nobody could push here is not trained here.
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

    Raises:
        GitNotFound: it is on none.
    """
    if (mirror / _mark(commit)).exists():
        return
    address = validate_url(remote.url, allow_file=remote.allow_file)
    if address.local:
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
