"""Writing and reading the results branch of a remote: compare-and-swap, one result per job for ever.

A result is added on top of the branch's tip, others along with it, and pushed without force. Whoever
loses the race fetches, renders the shared files again on what the winner pushed, and tries again; and
whoever finds `<folder>/result.json` on the tip is too late and changes nothing.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from trainforge.config.errors import Conflict, TrainForgeError
from trainforge.config.failpoints import failpoint
from trainforge.config.messages import GitCredential
from trainforge.hooks.addresses import AddressRefused, validate_branch, validate_folder
from trainforge.hooks.gitread import ObjectReader
from trainforge.hooks.gitrun import GitBlocked, GitError, GitNotFound, GitRejected, run
from trainforge.hooks.result_mirror import (
    ResultMirror,
    Staging,
    TreeFile,
    total_size,
)

MAX_TRIES = 20
MAX_SHARED_FILE = 16 * 1024 * 1024
MAX_RECORD = 16 * 1024 * 1024
MAX_RESULT = 64 * 1024**3
RECORD = "result.json"

Read = Callable[[str], bytes | None]
Shared = Callable[[Read], Mapping[str, bytes]]


@dataclass(frozen=True)
class Written:
    """`commit` holds the result; `already` if somebody had written one before, which then stands."""

    commit: str
    already: bool
    tries: int = 1


@dataclass(frozen=True)
class Entry:
    """One job's result, as it goes to the branch.

    `files` are paths below `folder`, `result.json` among them. `shared` renders files outside the folder
    from what lies on the tip; it runs again at every try. `before_push` may raise to give up, right
    before each push (a lease that has ended).
    """

    folder: str
    files: Mapping[str, bytes | Path]
    message: str
    shared: Shared | None = None
    before_push: Callable[[], None] | None = None

    @property
    def record(self) -> str:
        return f"{self.folder}/{RECORD}"


Outcome = Written | TrainForgeError | None
"""What became of an entry that went along: None where that is not decided."""


def write_results(
    mirror: Path,
    url: str,
    branch: str,
    entry: Entry,
    *along: Entry,
    credential: GitCredential | None = None,
    allow_file: bool = False,
) -> tuple[Written, list[Outcome]]:
    """Commit a result and those that go along to the remote's branch, a commit each, in one push.

    The push is the first one's: where that has a result already, the others stay undecided, and its errors
    are the call's.

    Raises:
        GitRejected: others were faster at every one of the tries. GitBlocked: the remote refuses it, or one
            that goes along; git does not say which. GitUnreachable, GitAuthFailed, GitNotFound: as git says.
    """
    target = ResultMirror.of(mirror, url, branch, credential, allow_file=allow_file)
    incoming = mirror / "incoming"
    incoming.mkdir(exist_ok=True)
    _sweep(incoming)
    aside = Path(tempfile.mkdtemp(dir=incoming))
    outcomes: list[Outcome] = [None] * len(along)
    try:
        staging = Staging.create(mirror.resolve(), aside.resolve())
        blobs = [staging.store_blobs(_checked(one)) for one in (*along, entry)]

        def attempt(tip: str | None) -> str:
            chain = _Chain(target, staging, tip, [one.record for one in along])
            *others, last = [chain.add(*one) for one in zip((*along, entry), blobs, strict=True)]
            if not isinstance(last, Written):
                raise last or Conflict(f"{entry.record} goes along with itself")
            staging.push(target, chain.head)
            with contextlib.suppress(GitError, OSError):  # the result is there; the mirror only saves time
                staging.keep_trees()
                target.remember_tip(chain.head)
            outcomes[:] = others
            return last.commit

        return swap_in(target, entry.record, attempt), outcomes
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _checked(entry: Entry) -> dict[str, bytes | Path]:
    """The entry's files by their paths in the tree."""
    if RECORD not in entry.files:
        raise AddressRefused(f"a result without {RECORD} would never be seen as one")
    return {validate_folder(f"{entry.folder}/{name}"): content for name, content in entry.files.items()}


class _Chain:
    """Commits on top of a tip, each of which sees what those before it have written.

    A push on top of the tip, if it succeeds, proves that the records on the tip are on the remote.
    """

    def __init__(self, target: ResultMirror, staging: Staging, tip: str | None, records: list[str]) -> None:
        staging.begin()
        self.head = tip or ""
        self._staging, self._tip = staging, tip or ""
        self._there = {file.path for file in target.files(tip, *records)} if tip else set()
        self._added: set[str] = set()
        self._read = _reader(target, tip)
        self._shared: dict[str, bytes] = {}

    def add(self, entry: Entry, blobs: Mapping[str, str]) -> Outcome:
        if entry.record in self._added:
            return None
        if entry.record in self._there:
            return Written(self._tip, already=True)
        try:
            contents = entry.shared(self._now) if entry.shared else {}
            files = {validate_folder(path): content for path, content in contents.items()}
            commit = self._staging.make_commit(self.head or None, blobs, files, entry.message)
            if entry.before_push is not None:
                entry.before_push()
        except TrainForgeError as error:
            return error
        self.head = commit
        self._added.add(entry.record)
        self._shared.update(contents)
        return Written(commit, already=False)

    def _now(self, path: str) -> bytes | None:
        return self._shared[path] if path in self._shared else self._read(path)


class Target(Protocol):
    """A results branch, and what is known of it here."""

    @property
    def branch(self) -> str: ...

    def known_tip(self) -> str | None: ...

    def fetch_tip(self) -> str | None: ...

    def files(self, tip: str, *paths: str) -> Sequence[Any]: ...


def swap_in(
    target: Target,
    record: str,
    attempt: Callable[[str | None], str],
    pause: Callable[[float], None] = time.sleep,
) -> Written:
    """Compare and swap: `attempt` commits on top of a tip and pushes, until `record` is on the branch.

    Raises:
        GitRejected: others were faster each time. GitError: as `attempt` and the target say.
    """
    tip = target.known_tip()
    guessed = tip is not None  # the remote has not been asked; how it takes the push tells whether it moved
    for number in range(1, MAX_TRIES + 1):
        if not guessed:
            tip = target.fetch_tip()
        if tip is not None and target.files(tip, record):
            if not guessed:
                return Written(tip, already=True, tries=number)
            guessed = False  # seen here before; does the remote still have it?
            continue
        try:
            return Written(attempt(tip), already=False, tries=number)
        except (GitBlocked, GitRejected) as error:
            failpoint("33.git.moved")
            if not guessed and isinstance(error, GitBlocked):
                raise  # but of a guess, a branch that was deleted or rewritten may be what is refused
            if not guessed:
                pause(random.uniform(0, min(2.0, 0.05 * 2**number)))  # noqa: S311 - jitter
            guessed = False
    raise GitRejected(
        f"{target.branch} moved at each of {MAX_TRIES} tries to add {record}", hint="it is tried again later"
    )


def find_result(
    mirror: Path,
    url: str,
    branch: str,
    folder: str,
    *,
    credential: GitCredential | None = None,
    allow_file: bool = False,
) -> tuple[str, bytes] | None:
    """`(commit, result.json)` as the remote has them now, or None."""
    target = ResultMirror.of(mirror, url, branch, credential, allow_file=allow_file)
    tip = target.fetch_tip()
    data = target.read(tip, f"{folder}/{RECORD}", MAX_RECORD) if tip else None
    return (tip, data) if tip and data is not None else None


def present_results(
    mirror: Path,
    url: str,
    branch: str,
    folders: Sequence[str],
    *,
    credential: GitCredential | None = None,
    allow_file: bool = False,
) -> set[str]:
    """Of these folders, those that the remote's branch has a result in now."""
    target = ResultMirror.of(mirror, url, branch, credential, allow_file=allow_file)
    tip = target.fetch_tip()
    return _holding_results(mirror, tip, folders) if tip else set()


def present_local_results(repo: Path, branch: str, folders: Sequence[str]) -> set[str]:
    """The same in a repository on this disk."""
    name = f"refs/heads/{validate_branch(branch)}"
    tip = run(["for-each-ref", "--format=%(objectname)", "--", name], git_dir=repo).decode().strip()
    return _holding_results(repo, tip, folders) if tip else set()


def _holding_results(repo: Path, tip: str, folders: Sequence[str]) -> set[str]:
    records = [f"{validate_folder(folder)}/{RECORD}" for folder in folders]
    args = ["--literal-pathspecs", "ls-tree", "-r", "--name-only", "--full-tree", tip, "--", *records]
    found = run(args, git_dir=repo).decode("utf-8", "replace").splitlines()
    return {path.removesuffix(f"/{RECORD}") for path in found}


def find_local_result(repo: Path, branch: str, folder: str) -> tuple[str, bytes] | None:
    """The same in a repository on this disk, such as the built-in server's."""
    name = f"refs/heads/{validate_branch(branch)}"
    tip = run(["for-each-ref", "--format=%(objectname)", "--", name], git_dir=repo).decode().strip()
    if not tip:
        return None
    with ObjectReader(repo) as reader:
        try:
            return tip, reader.file(tip, f"{folder}/{RECORD}", MAX_RECORD)[1]
        except GitNotFound:
            return None


def read_result_files(
    mirror: Path,
    url: str,
    branch: str,
    folder: str,
    destination: Path,
    *,
    credential: GitCredential | None = None,
    allow_file: bool = False,
    limit: int = MAX_RESULT,
) -> list[str]:
    """Bring a result's folder home as `destination`, which must not exist; returns the paths in it.

    Links and submodules that somebody put there are left out; nothing is written outside.

    Raises:
        GitNotFound: the branch has no such result. Conflict: `destination` exists.
    """
    target = ResultMirror.of(mirror, url, branch, credential, allow_file=allow_file)
    tip = target.fetch_tip()
    found = target.files(tip, folder) if tip else []
    files = [file for file in found if file.mode.startswith("100") and _usable(file.path)]
    if not any(file.path == f"{folder}/{RECORD}" for file in files):
        raise GitNotFound(f"{branch} of {target.remote.text} has no result in {folder}")
    target.bring(file.blob for file in files)
    if destination.exists():
        raise Conflict(f"{destination} is there already", hint="remove it, or name another folder")
    destination.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{destination.name}.", dir=destination.parent))
    try:
        with ObjectReader(mirror) as reader:
            total_size(reader, files, limit)
            for file in files:
                _write(reader, file, aside / file.path.removeprefix(f"{folder}/"))
        aside.chmod(0o755)
        aside.rename(destination)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return [file.path.removeprefix(f"{folder}/") for file in files]


def _write(reader: ObjectReader, file: TreeFile, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
    with os.fdopen(descriptor, "wb") as out:
        for chunk in reader.stream(file.blob):
            out.write(chunk)


def _usable(path: str) -> bool:
    try:
        validate_folder(path)
    except AddressRefused:
        return False
    return True


def _reader(target: ResultMirror, tip: str | None) -> Read:
    """Reads files of the tip; the first read brings the usual ones along, so that one fetch does."""
    if tip is None:
        return lambda path: None
    index: dict[str, TreeFile] = {}

    def read(path: str) -> bytes | None:
        if not index:
            months = target.files(tip, "index")[-3:]
            index.update((file.path, file) for file in months)
            target.bring(file.blob for file in months)
        return target.read(tip, path, MAX_SHARED_FILE)

    return read


def _sweep(incoming: Path) -> None:
    """Remove what publishers that were killed left behind a day ago."""
    for left in incoming.iterdir():
        if time.time() - left.stat().st_mtime > 86_400:
            shutil.rmtree(left, ignore_errors=True)
