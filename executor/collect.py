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
from pathlib import Path
from typing import BinaryIO

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
    result = Collected()
    into.mkdir(parents=True, exist_ok=True)
    _take(output, ["**"], into, max_size, result)
    _take(work, patterns, into, max_size, result)
    return result


def _take(root: Path, patterns: Sequence[str], into: Path, max_size: int, result: Collected) -> None:
    matchers = [matcher(pattern) for pattern in patterns]
    seen = 0
    if not root.is_dir() or root.is_symlink():
        return
    with _folder(root) as descriptor:
        for relative, parent, name in walk(descriptor, result):
            seen += 1
            if seen > MAX_SEEN or len(result.artifacts) >= MAX_FILES:
                result.warn(str(root.name), f"there are more than {MAX_FILES} files; the rest is left out")
                return
            if relative not in result.files and any(match(relative) for match in matchers):
                _keep(relative, parent, name, into, max_size, result)


@contextlib.contextmanager
def _folder(path: Path | str, parent: int | None = None) -> Iterator[int]:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(path, flags, dir_fd=parent)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def walk(root: int, result: Collected, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, int, str]]:
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
                    yield from walk(below, result, f"{relative}/", depth + 1)
            except OSError as error:
                result.warn(relative, f"it cannot be opened ({error.strerror})")
        elif stat.S_ISLNK(mode):
            result.warn(relative, "it is a symbolic link")
        else:
            result.warn(relative, "it is not a regular file")


def _encodable(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _keep(relative: str, parent: int, name: str, into: Path, max_size: int, result: Collected) -> None:
    try:
        source = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=parent)
    except OSError as error:
        result.warn(relative, f"it cannot be opened ({error.strerror})")
        return
    with os.fdopen(source, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            result.warn(relative, "it is not a regular file")
        elif status.st_nlink != 1:
            result.warn(relative, "it has a second name elsewhere (hard link)")
        elif status.st_size > max(HASH_LIMIT, max_size):
            where = f"left on the executor: larger than {HASH_LIMIT} bytes, not even read"
            result.artifacts.append(Artifact(path=relative, size=status.st_size, sha256="", stored=where))
        else:
            _copy(relative, file, into / digest_name(relative), max_size, result)


def _copy(relative: str, file: BinaryIO, copy: Path, max_size: int, result: Collected) -> None:
    """Digest what was opened and, as far as it is small enough, keep it: size and content belong together."""
    digest = hashlib.sha256()
    size = 0
    with copy.open("wb") as target:
        while block := file.read(BLOCK):
            size += len(block)
            digest.update(block)
            if size <= max_size:
                target.write(block)
    if size <= max_size:
        where = "git"
        result.files[relative] = copy
    else:
        where = f"left on the executor: larger than {max_size} bytes"
        copy.unlink()
    result.artifacts.append(Artifact(path=relative, size=size, sha256=digest.hexdigest(), stored=where))


def digest_name(relative: str) -> str:
    """A flat name for a copy: nothing that the job chose becomes a path of ours."""
    return hashlib.sha256(relative.encode()).hexdigest()


def matcher(pattern: str) -> Callable[[str], object]:
    """A glob over whole relative paths: `*` stays in one folder, `**` goes through any number."""
    parts: list[str] = []
    for piece in re.split(r"(\*\*/|\*\*|\*|\?|\[[^\]]*\])", pattern.removeprefix("./")):
        if piece == "**/":
            parts.append(r"(?:[^/]+/)*")
        elif piece == "**":
            parts.append(r".*")
        elif piece == "*":
            parts.append(r"[^/]*")
        elif piece == "?":
            parts.append(r"[^/]")
        elif piece.startswith("[") and len(piece) > 2:
            inner = piece[1:-1].replace("\\", r"\\").replace("[", r"\[")
            parts.append(f"[^/{inner[1:]}]" if inner[0] in "!^" and len(inner) > 1 else f"[{inner}]")
        else:
            parts.append(re.escape(piece))
    try:
        return re.compile("".join(parts)).fullmatch
    except re.error:
        return re.compile(re.escape(pattern)).fullmatch
