"""Keeps a few small files on a branch that several writers share: compare-and-swap, never forced."""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from trainforge.config.messages import GitCredential
from trainforge.hooks.addresses import validate_folder
from trainforge.hooks.gitread import ObjectReader
from trainforge.hooks.gitrun import GitRejected
from trainforge.hooks.result_mirror import ResultMirror, Staging

MAX_TRIES = 20
MAX_FILE = 1024 * 1024
MAX_FILES, MAX_SMALL = 500, 64 * 1024  # of a folder


def read_file(
    mirror: Path,
    url: str,
    branch: str,
    path: str,
    *,
    credential: GitCredential | None = None,
    allow_file: bool = False,
) -> bytes | None:
    """A file of the branch as the remote has it now; None where there is none."""
    target = ResultMirror.of(mirror, url, branch, credential, allow_file=allow_file)
    tip = target.fetch_tip()
    return target.read(tip, path, MAX_FILE) if tip else None


def read_folder(
    mirror: Path,
    url: str,
    branch: str,
    folder: str,
    *,
    credential: GitCredential | None = None,
    allow_file: bool = False,
) -> dict[str, bytes]:
    """The files right below a folder of the branch, by path; not those that are too large, or too many."""
    target = ResultMirror.of(mirror, url, branch, credential, allow_file=allow_file)
    tip = target.fetch_tip()
    if tip is None:
        return {}
    found = [file for file in target.files(tip, folder) if file.mode.startswith("100")]
    near = [file for file in found if file.path.count("/") == folder.count("/") + 1][:MAX_FILES]
    target.bring([file.blob for file in near])
    with ObjectReader(target.path) as reader:
        small = [file for file in near if reader.size(file.blob) <= MAX_SMALL]
        return {file.path: reader.blob(file.blob, MAX_SMALL) for file in small}


def swap_files(
    mirror: Path,
    url: str,
    branch: str,
    tip: str | None,
    files: Mapping[str, bytes],
    *,
    message: str,
    before_push: Callable[[str], None],
    credential: GitCredential | None = None,
    allow_file: bool = False,
) -> str:
    """Set these files if the branch still stands at `tip`, None for nowhere; gives the new commit.

    `before_push` is told that commit before anybody else can see it.

    Raises:
        GitRejected: the branch has moved. GitError: as git says.
    """
    target = ResultMirror.of(mirror, url, branch, credential, allow_file=allow_file)
    if target.fetch_tip() != tip:
        raise GitRejected(f"{branch} moved")
    return _swap(target, tip, files, message, before_push)


def write_files(
    mirror: Path,
    url: str,
    branch: str,
    files: Mapping[str, bytes],
    *,
    message: str,
    credential: GitCredential | None = None,
    allow_file: bool = False,
) -> str:
    """Set these files on top of the branch, whoever else writes there; gives the commit that has them.

    Raises:
        GitRejected: others were faster at every one of the tries. GitError: as git says.
    """
    target = ResultMirror.of(mirror, url, branch, credential, allow_file=allow_file)
    wanted = {validate_folder(path): content for path, content in files.items()}
    for number in range(1, MAX_TRIES + 1):
        tip = target.fetch_tip()
        if tip and all(target.read(tip, path, MAX_FILE) == content for path, content in wanted.items()):
            return tip
        try:
            return _swap(target, tip, wanted, message)
        except GitRejected:
            time.sleep(random.uniform(0, min(2.0, 0.05 * 2**number)))  # noqa: S311 - jitter
    raise GitRejected(f"{branch} moved at each of {MAX_TRIES} tries to write to it")


def _swap(
    target: ResultMirror,
    tip: str | None,
    files: Mapping[str, bytes],
    message: str,
    before_push: Callable[[str], None] = lambda _: None,
) -> str:
    """One try: the new commit, unless the branch has left `tip`."""
    with tempfile.TemporaryDirectory(dir=target.path, ignore_cleanup_errors=True) as aside:
        staging = Staging.create(target.path.resolve(), Path(aside).resolve())
        commit = staging.make_commit(tip, {}, files, message)
        before_push(commit)
        staging.push(target, commit)
    return commit
