"""Data that a machine has, kept by what they are: `cache/data/`, whose entries are in the care of `budget`.

    <entry>/content      a file named as it was first called, or a folder of that name; nobody writes to it
    <entry>/entry.json   what it is: Kept
    part-<key>/          one that is on its way; its lock is that of the whole way, so that others wait for it
    ../data-names/<key>.json   what was found at an address last: Known

A file's entry has its SHA-256 for a name, so a second job with the same content finds it whatever its
address was. What was fetched with credentials is for jobs of the same repository alone: their scope is part
of the name. Content that was changed on the disk since it was kept is noticed by its times, which no program
without special rights can set back, and is not used.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel, ValidationError

from trainforge.executor import budget
from trainforge.executor.supervisor import write_atomically

NOTE = "entry.json"
BLOCK = 2**20


class Kept(BaseModel):
    """One entry. `stamp` is that of its files' names, sizes and times."""

    name: str
    sha256: str = ""  # of a file, and of an archive that was unpacked
    commit: str = ""
    size: int
    files: int = 1
    stamp: str = ""


class Known(BaseModel):
    """What an address had last, and the tag by which it says that this has not changed."""

    entry: str
    tag: str


class Cache:
    """`lease` keeps an entry for as long as its node is there, `in_use` says whether any node has it."""

    def __init__(
        self,
        folder: Path,
        *,
        lease: Callable[[Path], None],
        in_use: Callable[[Path], bool],
        check: Callable[[], None],
    ) -> None:
        self.folder = folder
        self._in_use = in_use
        self.names = folder.with_name("data-names")
        self._lease = lease
        self._check = check
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o711)  # a job that may read one entry does not see which others there are

    def find(self, entry: str) -> Kept | None:
        """An entry that is whole and as it was, leased; else it is gone."""
        path = self.folder / entry
        if not path.is_dir():
            return None
        with budget.locked(path, self._check):
            try:
                kept = Kept.model_validate_json((path / NOTE).read_bytes())
            except (OSError, ValidationError):
                return None
            if kept.stamp != _look(path / kept.name).stamp and not self._mended(path, kept):
                if not self._in_use(path):
                    self._remove(path)
                return None
            self._lease(path)
            return kept

    def content(self, entry: str, kept: Kept) -> Path:
        return self.folder / entry / kept.name

    def part(self, key: str) -> Path:
        return self.folder / f"part-{key}"

    def keep(self, entry: str, content: Path, kept: Kept) -> Kept | None:
        """Put a new entry in its place and lease it; None where a changed one is in the way, and in use."""
        path = self.folder / entry
        whole = content.parent / "entry"
        whole.mkdir(exist_ok=True)
        content.rename(whole / kept.name)
        _protect(whole / kept.name)
        look = _look(whole / kept.name)
        kept = kept.model_copy(update={"stamp": look.stamp, "size": look.size, "files": look.files})
        write_atomically(whole / NOTE, kept.model_dump())
        whole.chmod(0o711)
        for _ in range(3):
            if (there := self.find(entry)) is not None:  # another address led to the same content meanwhile
                budget.discard(whole)
                return there
            with budget.locked(path, self._check):
                if not path.exists():
                    whole.rename(path)
                    self._lease(path)
                    return kept
        return None

    # --- addresses --------------------------------------------------------------------------------------

    def known(self, key: str) -> Known | None:
        try:
            return Known.model_validate_json((self.names / f"{key}.json").read_bytes())
        except (OSError, ValidationError):
            return None

    def remember(self, key: str, known: Known) -> None:
        self.names.mkdir(exist_ok=True, mode=0o700)
        write_atomically(self.names / f"{key}.json", known.model_dump())

    # --- content ----------------------------------------------------------------------------------------

    def _mended(self, path: Path, kept: Kept) -> bool:
        """A file whose times alone have changed, as after a backup, is the same file."""
        content = path / kept.name
        if not kept.sha256 or not content.is_file() or content.is_symlink():
            return False
        if content.stat().st_size != kept.size or digest_of(content, self._check) != kept.sha256:
            return False
        write_atomically(path / NOTE, kept.model_dump() | {"stamp": _look(content).stamp})
        return True

    def _remove(self, path: Path) -> None:
        aside = path.with_name(f".{path.name}.{os.urandom(4).hex()}")
        with contextlib.suppress(FileNotFoundError):
            path.rename(aside)
        budget.discard(aside)


def digest_of(path: Path, check: Callable[[], None]) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            check()
            digest.update(block)
    return digest.hexdigest()


class _Look(BaseModel):
    stamp: str
    size: int = 0
    files: int = 0


def _look(path: Path) -> _Look:
    """By what a change of the content shows: names, kinds, sizes and times."""
    digest, size, files = hashlib.sha256(), 0, 0
    todo = [(path, "")]
    with contextlib.suppress(OSError):
        while todo:
            current, name = todo.pop()
            status = current.lstat()
            if stat.S_ISDIR(status.st_mode):
                digest.update(f"{name}\0folder\0".encode(errors="surrogateescape"))
                below = sorted(os.listdir(current))  # noqa: PTH208 - the names alone
                todo.extend((current / each, f"{name}/{each}") for each in below)
                continue
            facts = (status.st_mode, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
            digest.update(f"{name}\0{facts}\0".encode(errors="surrogateescape"))
            size += status.st_size
            files += 1
        return _Look(stamp=digest.hexdigest(), size=size, files=files)
    return _Look(stamp="")


def _protect(path: Path) -> None:
    """Readable by every job that is shown it, writable by none."""
    if path.is_symlink():
        return
    if not path.is_dir():
        path.chmod(0o444)
        return
    for folder, _, files in os.walk(path):
        for name in files:
            if not (file := Path(folder) / name).is_symlink():
                file.chmod(0o555 if file.stat().st_mode & 0o100 else 0o444)
        Path(folder).chmod(0o555)
