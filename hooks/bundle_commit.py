"""An uploaded archive as a commit: its files go from the ZIP into git's objects, and never lie in a folder.

All that git writes goes aside first and is taken over when the commit is complete, so that an archive that
turns out wrong at its last byte leaves nothing. The same files make the same tree, and a tree that was
uploaded before keeps its commit, so the same upload is the same job.
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from trainforge.hooks.addresses import validate_commit
from trainforge.hooks.bundle import Bundle, Member
from trainforge.hooks.bundle_names import BundleRefused
from trainforge.hooks.git import init_bare, locked
from trainforge.hooks.gitread import is_ancestor
from trainforge.hooks.gitrun import GitError, GitRejected, feed, run
from trainforge.hooks.triggers import BRANCH, OWN_ADDRESS

REF = f"{BRANCH}main"
_ASIDE = "upload-"
_CONFIG = {
    "pack.window": "0",
    "pack.compression": "1",
    "core.compression": "1",
    "core.bigFileThreshold": "512k",
    "fastimport.unpackLimit": "0",  # always a pack, also for one object
    "core.fsync": "committed",  # what an upload was told is stored survives a power cut
    "core.fsyncMethod": "batch",
}


@dataclass(frozen=True)
class Arranged:
    """The files by their paths in the project, and in words what was done about the archive's own."""

    files: dict[str, Member]
    notes: tuple[str, ...] = ()


def arrange(files: Iterable[Member], named: Iterable[str] = ()) -> Arranged:
    """Leave out what macOS adds, and take off a folder around everything, as GitHub's downloads have.

    The folder stays where one of the `named` paths lies in it.

    Raises:
        BundleRefused: nothing is left.
    """
    notes, found = [], list(files)
    kept = {member.path: member for member in found if not _of_macos(member.path)}
    if len(kept) < len(found):
        count = len(found) - len(kept)
        notes.append(f"{count} {'file' if count == 1 else 'files'} of macOS itself in the ZIP: left out.")
    if not kept:
        raise BundleRefused("bundle_empty", "there is no file in the ZIP", "zip the project's files")
    top, *others = {path.split("/")[0] for path in kept}
    wanted = {PurePosixPath(path).parts[0] for path in named if path}
    if not others and top not in kept and top not in wanted:
        kept = {path.removeprefix(f"{top}/"): member for path, member in kept.items()}
        notes.append(f"The folder {top} around everything in the ZIP was taken off.")
    return Arranged(kept, tuple(notes))


def _of_macos(path: str) -> bool:
    parts = path.split("/")
    return parts[0] == "__MACOSX" or parts[-1] == ".DS_Store"


@dataclass(frozen=True)
class Committed:
    """`new` unless these very files were uploaded before; `before` is where the branch stood, if anywhere."""

    commit: str
    new: bool
    before: str = ""


def commit_files(
    repo: Path,
    bundle: Bundle,
    files: Mapping[str, Member | bytes],
    *,
    message: str,
    author: str,
    meanwhile: Callable[[], None] = lambda: None,
) -> Committed:
    """Make these files, and no others, the newest commit of the bare repository's main branch.

    `meanwhile` is called again and again, and may raise to give up.

    Raises:
        BundleRefused: the archive does not hold what it says. GitRejected: somebody pushed meanwhile.
    """
    if not (repo / "HEAD").is_file():
        bundle.verify()  # a project's first archive makes its repository, and a wrong one makes none
        init_bare(repo)
    with locked(repo):
        for left in repo.glob(f"{_ASIDE}*"):
            shutil.rmtree(left, ignore_errors=True)  # of an upload that a crash ended
        aside = Path(tempfile.mkdtemp(prefix=_ASIDE, dir=repo))
        try:
            return _commit(repo, aside, _files(bundle, files, meanwhile), message, author)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def _commit(repo: Path, aside: Path, files: Iterator[bytes], message: str, author: str) -> Committed:
    (aside / "pack").mkdir()
    env = {"GIT_OBJECT_DIRECTORY": str(aside), "GIT_ALTERNATE_OBJECT_DIRECTORIES": f'"{repo}/objects"'}
    before = _where(repo, REF)
    out = feed(
        ["fast-import", "--quiet", "--depth=0", "--done"], _stream(before, message, author, files),
        git_dir=repo, env=env, config=_CONFIG,
    )  # fmt: skip
    commit = validate_commit(out.decode().strip())
    tree = run(["rev-parse", "--verify", f"{commit}^{{tree}}"], git_dir=repo, env=env).decode().strip()
    known = f"refs/trainforge/bundle/{validate_commit(tree)}"
    if before and (earlier := _where(repo, known)) and is_ancestor(repo, earlier, before):
        return Committed(earlier, new=False, before=before)
    _take_over(repo, aside)
    lines = f"update {REF} {commit} {before or '0' * 40}\nupdate {known} {commit}\n"
    try:
        run(["update-ref", "--stdin"], git_dir=repo, input=lines.encode(), config=_CONFIG)
    except GitError as error:
        if _where(repo, REF) == before:
            raise
        raise GitRejected(f"somebody pushed to {repo.name} meanwhile", hint="upload it again") from error
    return Committed(commit, new=True, before=before)


def _where(repo: Path, ref: str) -> str:
    out = run(["for-each-ref", "--format=%(objectname)", "--", ref], git_dir=repo).decode()
    return out.strip()


def _take_over(repo: Path, aside: Path) -> None:
    """The pack first: git looks for a pack when it has seen its index."""
    kept = repo / "objects" / "pack"
    for suffix in ("pack", "idx"):
        for part in (aside / "pack").glob(f"*.{suffix}"):
            part.rename(kept / part.name)
    folder = os.open(kept, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _stream(before: str, message: str, author: str, files: Iterator[bytes]) -> Iterator[bytes]:
    ref, now = f"refs/trainforge/write/{secrets.token_hex(8)}", int(time.time())
    text = message.encode()
    yield f"commit {ref}\nmark :1\nauthor {_person(author)} {now} +0000\n".encode()
    yield f"committer TrainForge <{OWN_ADDRESS}> {now} +0000\ndata {len(text)}\n".encode()
    yield text + (f"\nfrom {before}\n" if before else "\n").encode() + b"deleteall\n"
    yield from files
    # The null id drops the branch again: what is kept is named once it is complete.
    yield f"\nget-mark :1\nreset {ref}\nfrom {'0' * 40}\ndone\n".encode()


def _person(name: str) -> str:
    plain = "".join(char for char in name if char.isprintable() and char not in "<>").strip() or "unknown"
    return f"{plain[:100]} <{OWN_ADDRESS}>"


def _files(
    bundle: Bundle, files: Mapping[str, Member | bytes], meanwhile: Callable[[], None]
) -> Iterator[bytes]:
    """The files as fast-import takes them, in the order of their paths."""
    for path in sorted(files):
        meanwhile()
        content = files[path]
        mode = "100755" if isinstance(content, Member) and content.executable else "100644"
        size = content.size if isinstance(content, Member) else len(content)
        quoted = path.replace("\\", "\\\\").replace('"', '\\"')
        yield f'M {mode} inline "{quoted}"\ndata {size}\n'.encode()
        if isinstance(content, bytes):
            yield content
        else:
            for piece in bundle.contents(content):
                meanwhile()
                yield piece
        yield b"\n"
