"""What TrainForge asks of git: remote heads, kept mirrors, private checkouts; the door to all of it.

Everything goes through `gitrun.run`; its errors and `gitread`'s functions are found here too. A mirror is a
bare repository of our own in which every fetched commit is held by a ref (`hold_ref`): without one, the
next fetch has nothing to offer and brings the whole history again.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from trainforge.config.messages import GitCredential
from trainforge.hooks.addresses import (
    AddressRefused,
    GitUrl,
    repository_id,
    validate_branch,
    validate_commit,
    validate_folder,
    validate_ref,
    validate_url,
)
from trainforge.hooks.gitread import (
    CommitInfo,
    ObjectReader,
    has_commit,
    is_ancestor,
    list_tree,
    merge_base,
    read_blob,
    tree_diff,
)
from trainforge.hooks.gitrun import (
    GitAuthFailed,
    GitBlocked,
    GitError,
    GitNotFound,
    GitRejected,
    GitTimeout,
    GitTooLarge,
    GitTooOld,
    GitUnreachable,
    check_version,
    git_environment,
    run,
    sanitise,
)
from trainforge.hooks.growth import MOST, Growth

__all__ = [
    "AddressRefused",
    "CommitInfo",
    "GitAuthFailed",
    "GitBlocked",
    "GitError",
    "GitNotFound",
    "GitRejected",
    "GitTimeout",
    "GitTooLarge",
    "GitTooOld",
    "GitUnreachable",
    "GitUrl",
    "ObjectReader",
    "check_version",
    "checkout",
    "fetch_commit",
    "fetch_ref",
    "find_base",
    "git_environment",
    "has_commit",
    "hold_ref",
    "init_bare",
    "is_ancestor",
    "list_tree",
    "locked",
    "ls_remote",
    "merge_base",
    "read_blob",
    "repository_id",
    "run",
    "sanitise",
    "tree_diff",
    "validate_branch",
    "validate_commit",
    "validate_folder",
    "validate_ref",
    "validate_url",
]

_REF_LINES = "--format=%(if)%(*objectname)%(then)%(*objectname)%(else)%(objectname)%(end)%09%(refname)"
_FETCH = [
    "fetch",
    "--quiet",
    "--no-tags",
    "--no-write-fetch-head",
    "--no-recurse-submodules",
    "--no-auto-maintenance",
]


# --- remotes ------------------------------------------------------------------------------------------


def ls_remote(
    url: str,
    *,
    credential: GitCredential | None = None,
    allow_file: bool = False,
    timeout: float = 60,
) -> dict[str, str]:
    """Every branch and tag of a remote as full ref name -> commit (annotated tags peeled)."""
    remote = validate_url(url, allow_file=allow_file)
    if remote.local:  # read where it lies: one process instead of three
        out = run(
            ["for-each-ref", _REF_LINES, "refs/heads", "refs/tags"],
            git_dir=local_git_dir(remote),
            timeout=timeout,
        )
    else:
        args = ["ls-remote", "--quiet", "--", remote.text, "refs/heads/*", "refs/tags/*"]
        out = run(args, remote=remote, credential=credential, timeout=timeout)
    refs: dict[str, str] = {}
    for line in out.decode("utf-8", "replace").split("\n"):
        commit, _, name = line.partition("\t")
        with contextlib.suppress(AddressRefused):  # a ref that we could not name safely does not exist for us
            refs[validate_ref(name.removesuffix("^{}"))] = validate_commit(commit)
    return refs


def local_git_dir(remote: GitUrl) -> Path:
    """Where the objects of a repository on this disk are."""
    path = Path(remote.path)
    return path / ".git" if (path / ".git").is_dir() else path


def default_branch(
    url: str, *, credential: GitCredential | None = None, allow_file: bool = False, timeout: float = 60
) -> str:
    """The full name of the branch that the remote's HEAD names; empty if it names none."""
    remote = validate_url(url, allow_file=allow_file)
    if remote.local:
        name = (local_git_dir(remote) / "HEAD").read_text("utf-8", "replace").partition("ref: ")[2].strip()
    else:
        args = ["ls-remote", "--quiet", "--symref", "--", remote.text, "HEAD"]
        out = run(args, remote=remote, credential=credential, timeout=timeout).decode("utf-8", "replace")
        name = out.partition("ref: ")[2].partition("\t")[0]
    with contextlib.suppress(AddressRefused):
        return validate_ref(name)
    return ""


def hold_ref(commit: str) -> str:
    """The mirror's own ref that keeps a fetched commit."""
    return f"refs/trainforge/hold/{validate_commit(commit)}"


def init_bare(path: Path, *, branch: str = "main") -> Path:
    """Make a bare repository unless it is there; made aside and renamed in, so never seen half-made."""
    if (path / "HEAD").is_file():
        return path
    validate_branch(branch)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        run(["init", "--quiet", "--bare", "--template=", f"--initial-branch={branch}", "--", str(aside)])
        try:
            aside.rename(path)
        except OSError:
            if not (path / "HEAD").is_file():
                raise  # not the same repository made by somebody else a moment ago
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return path


@contextlib.contextmanager
def locked(mirror: Path) -> Iterator[None]:
    """One process or thread at a time changes this mirror's refs."""
    with (mirror / "trainforge.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def fetch_commit(
    mirror: Path,
    url: str,
    commit: str,
    *,
    ref: str = "",
    hold: str = "",
    credential: GitCredential | None = None,
    allow_file: bool = False,
    timeout: float | None = None,
    most: int = MOST,
) -> None:
    """Bring one commit into a kept mirror, held by `hold` (default `hold_ref(commit)`).

    Shallow first; where the server refuses a bare commit id, all of `ref` (a full ref name), or of every
    branch, is fetched instead. At most `most` bytes are taken.

    Raises:
        GitNotFound: the remote does not have it (or not on `ref`, where that had to be used).
        GitTooLarge: it sends more than that.
    """
    remote = validate_url(url, allow_file=allow_file)
    hold = validate_ref(hold) if hold else hold_ref(commit)
    init_bare(mirror)
    growth = Growth(mirror, most)
    with locked(mirror):
        if _holds(mirror, hold, validate_commit(commit)):
            return
        shallow = [*_FETCH, "--depth=1", "--", remote.text, f"+{commit}:{hold}"]
        try:
            run(
                shallow,
                git_dir=mirror,
                remote=remote,
                credential=credential,
                timeout=timeout,
                growth=growth,
            )
        except GitNotFound:  # also what servers say that serve no bare commit ids
            wanted = f"+{validate_ref(ref)}:{hold}" if ref else f"+refs/heads/*:{hold}-heads/*"
        else:
            return
        deepen = ["--unshallow"] if (mirror / "shallow").exists() else []
        full = [*_FETCH, *deepen, "--", remote.text, wanted]
        run(full, git_dir=mirror, remote=remote, credential=credential, timeout=timeout, growth=growth)
        if not has_commit(mirror, commit) or (ref and not is_ancestor(mirror, commit, hold)):
            raise GitNotFound(
                f"commit {commit} is not on {ref or 'any branch'} of {remote.text}",
                hint="push it again; it may have been rewritten",
            )
        run(["update-ref", hold, commit], git_dir=mirror)


def fetch_ref(
    mirror: Path,
    url: str,
    ref: str,
    *,
    hold: str = "",
    depth: int = 1,
    credential: GitCredential | None = None,
    allow_file: bool = False,
    timeout: float | None = None,
    most: int = MOST,
) -> str:
    """Bring the tip of `ref` (full name) into the mirror and return it; `depth` 0 is all of its history."""
    remote = validate_url(url, allow_file=allow_file)
    hold = validate_ref(hold or f"refs/trainforge/remote/{validate_ref(ref).removeprefix('refs/')}")
    init_bare(mirror)
    with locked(mirror):
        deepen = [f"--depth={depth}"] if depth else []
        if not depth and (mirror / "shallow").exists():
            deepen = ["--unshallow"]
        args = [*_FETCH, *deepen, "--", remote.text, f"+{validate_ref(ref)}:{hold}"]
        growth = Growth(mirror, most)
        run(args, git_dir=mirror, remote=remote, credential=credential, timeout=timeout, growth=growth)
        return run(["rev-parse", "--verify", f"{hold}^{{commit}}"], git_dir=mirror).decode().strip()


def find_base(
    mirror: Path,
    url: str,
    ref: str,
    others: Sequence[str],
    *,
    credential: GitCredential | None = None,
    allow_file: bool = False,
) -> str | None:
    """The merge base of a new `ref` with the nearest of the `others` (full ref names), or None.

    History is fetched in growing depths, so that a branch off a recent commit costs little.
    """
    for depth in (50, 1000, 0):
        tips = [
            fetch_ref(mirror, url, name, depth=depth, credential=credential, allow_file=allow_file)
            for name in (ref, *others)
        ]
        base = merge_base(mirror, tips[0], tips[1:]) if others else None
        if base is not None or not others:
            return base
    return None


def _holds(mirror: Path, hold: str, commit: str) -> bool:
    with contextlib.suppress(OSError):
        return (mirror / hold).read_text().strip() == commit  # loose refs, without starting git
    return False


# --- checkouts ----------------------------------------------------------------------------------------


def checkout(mirror: Path, commit: str, destination: Path) -> None:
    """A private work tree of a commit that borrows the mirror's objects and nothing else of it.

    `destination` must not exist; it appears complete or not at all. Its `.git` has no remote, no hooks
    and no configuration of ours: whatever a job does to it reaches nobody. Never run git in it again
    once a job has.

    Raises:
        GitNotFound: the mirror does not hold the commit.
    """
    validate_commit(commit)
    if destination.exists():
        raise FileExistsError(destination)
    destination.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{destination.name}.", dir=destination.parent))
    try:
        private = _borrowing_repository(aside / ".git", mirror.resolve(), commit)
        run(
            ["read-tree", "--reset", "-u", commit],
            git_dir=private,
            cwd=aside,
            env={"GIT_WORK_TREE": str(aside)},
        )
        aside.chmod(0o755)
        aside.rename(destination)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _borrowing_repository(path: Path, mirror: Path, commit: str) -> Path:
    for folder in ("objects/info", "objects/pack", "refs/heads"):
        (path / folder).mkdir(parents=True)
    (path / "HEAD").write_text(f"{commit}\n")
    (path / "config").write_text(
        "[core]\n\trepositoryformatversion = 0\n\tbare = false\n\tlogallrefupdates = true\n"
    )
    (path / "objects/info/alternates").write_text(f"{os.fspath(mirror / 'objects')}\n")
    with contextlib.suppress(FileNotFoundError):
        shutil.copyfile(mirror / "shallow", path / "shallow")
    return path
