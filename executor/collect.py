"""Which files a job leaves: found without following a link, copied before anybody can change them.

A training is not trusted with names: every folder on the way is opened without following links, only
regular files with one name count, and what was opened is what is copied.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import translate
from pathlib import Path
from typing import BinaryIO

from trainforge.config.failpoints import failpoint
from trainforge.config.result import Artifact

MAX_FILES = 10_000
MAX_SEEN = 200_000
MAX_DEPTH = 32
BLOCK = 1024 * 1024
HASH_LIMIT = 20 * 1024**3  # a sparse file can claim any size
_NAME = re.compile(r"[^\x00-\x1f\x7f/\\]{1,200}")
SKIPPED = {".git", "__pycache__"}


@dataclass
class Collected:
    """`files` maps a path in the result's artifacts folder to the copy; `artifacts` describes all."""

    artifacts: list[Artifact] = field(default_factory=list)
    files: dict[str, Path] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def warn(self, path: str, reason: str) -> None:
        if len(self.warnings) < 100:
            self.warnings.append(f"{path[:200]!r} is not kept: {reason}")


def collect(output: Path, work: Path, patterns: Sequence[str], into: Path, *, max_size: int) -> Collected:
    """Copy what is in `output`, and what `patterns` match below `work`, to `into`."""
    into.mkdir(parents=True, exist_ok=True)
    keeper = Keeper(into, max_size)
    keeper.take(output, ["**"])
    keeper.take(work, patterns)
    return keeper.result


class Keeper:
    """Copies the files of one collection."""

    def __init__(self, into: Path, max_size: int) -> None:
        self.into = into
        self.max_size = max_size
        self.result = Collected()

    def take(self, root: Path, patterns: Sequence[str]) -> None:
        matchers = [matcher(pattern) for pattern in patterns]

        def wanted(relative: str) -> bool:
            return any(match(relative) for match in matchers)

        if not root.is_dir() or root.is_symlink():
            return
        with _folder(root) as descriptor:
            for number, (relative, parent, name) in enumerate(walk(descriptor, self.result, wanted)):
                if number >= MAX_SEEN or len(self.result.artifacts) >= MAX_FILES:
                    self.result.warn(
                        root.name, f"there are more than {MAX_FILES} files; the rest is left out"
                    )
                    return
                if relative not in self.result.files and wanted(relative):
                    self.keep(relative, parent, name)

    def keep(self, relative: str, parent: int, name: str) -> None:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            source = os.open(name, flags, dir_fd=parent)
        except OSError as error:
            self.result.warn(relative, f"it cannot be opened ({error.strerror})")
            return
        failpoint("30.executor.pack")
        with os.fdopen(source, "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                self.result.warn(relative, "it is not a regular file")
            elif status.st_nlink != 1:
                self.result.warn(relative, "it has a second name elsewhere (hard link)")
            elif status.st_size > max(HASH_LIMIT, self.max_size):
                where = f"left on the executor: larger than {HASH_LIMIT} bytes, not even read"
                self._describe(relative, status.st_size, "", where)
            else:
                self.copy(relative, file)

    def copy(self, relative: str, file: BinaryIO) -> None:
        """Digest what was opened and, if it is small enough, keep it: size and content belong together."""
        digest = hashlib.sha256()
        size = 0
        copy = self.into / digest_name(relative)
        with copy.open("wb") as target:
            while block := file.read(BLOCK):
                size += len(block)
                digest.update(block)
                if size <= self.max_size:
                    target.write(block)
        where = "git"
        if size <= self.max_size:
            self.result.files[relative] = copy
        else:
            where = f"left on the executor: larger than {self.max_size} bytes"
            copy.unlink()
        self._describe(relative, size, digest.hexdigest(), where)

    def _describe(self, relative: str, size: int, digest: str, stored: str) -> None:
        self.result.artifacts.append(Artifact(path=relative, size=size, sha256=digest, stored=stored))


@contextlib.contextmanager
def _folder(path: Path | str, parent: int | None = None) -> Iterator[int]:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(path, flags, dir_fd=parent)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def walk(
    root: int, result: Collected, wanted: Callable[[str], bool], prefix: str = "", depth: int = 0
) -> Iterator[tuple[str, int, str]]:
    """Every regular-looking file below an open folder, as (relative path, its folder, its name)."""
    for name in sorted(os.listdir(root)):
        relative = f"{prefix}{name}"
        if name.lower().rstrip(". ") in SKIPPED:
            continue
        if not _NAME.fullmatch(name) or not _encodable(name):
            result.warn(relative, "its name is not one that every machine can store")
            continue
        try:
            mode = os.stat(name, dir_fd=root, follow_symlinks=False).st_mode
        except FileNotFoundError:
            continue
        if stat.S_ISREG(mode):
            yield relative, root, name
        elif stat.S_ISDIR(mode):
            if depth >= MAX_DEPTH:
                result.warn(relative, "it lies too deep")
                continue
            try:
                with _folder(name, root) as below:
                    yield from walk(below, result, wanted, f"{relative}/", depth + 1)
            except OSError as error:
                result.warn(relative, f"it cannot be opened ({error.strerror})")
        elif wanted(relative) or wanted(f"{relative}/_"):  # what nobody asked for is not missed
            link = stat.S_ISLNK(mode)
            result.warn(relative, "it is a symbolic link" if link else "it is not a regular file")


def _encodable(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def digest_name(relative: str) -> str:
    """A flat name for a copy: nothing that the job chose becomes a path of ours."""
    return hashlib.sha256(relative.encode()).hexdigest()


def matcher(pattern: str) -> Callable[[str], bool]:
    """A glob over whole relative paths: `*` stays in one folder, `**` goes through any number."""
    # A missing expression stands for `**`.
    wanted = [
        None if part == "**" else re.compile(translate(part.replace("[^", "[!")))
        for part in pattern.removeprefix("./").split("/")
    ]

    def fits(relative: str) -> bool:
        """By the set of positions that each part can end at: no backtracking that a pattern could abuse."""
        parts, positions = relative.split("/"), {0}
        for index, part in enumerate(wanted):
            if part is None:
                inside = 0 < index == len(wanted) - 1
                positions = set(range(min(positions) + inside, len(parts) + 1))
            else:
                positions = {at + 1 for at in positions if at < len(parts) and part.match(parts[at])}
            if not positions:
                return False
        return len(parts) in positions

    return fits
