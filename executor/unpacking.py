"""Unpacks archives that others made: plain files and folders, in a folder that nobody else writes to.

Links, devices, owners and rights in an archive are left out, so nothing that is unpacked leads anywhere. This
is stricter than `tarfile`'s filter `data`, whose checks of links had holes (CVE-2025-4517) in versions that
are still in use. Sizes are counted as they come, whatever the archive says of itself.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import lzma
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from trainforge.config.errors import NodeFailed

BLOCK = 2**20
LOOK_BYTES = 64 * BLOCK
MAX_FILES = 2_000_000
MAX_NAME = 4096
LEAST_ALLOWED = 2**30
MAX_RATIO = 1000  # more than any that is not made to fill disks
_BROKEN = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, gzip.BadGzipFile, EOFError)


@dataclass(frozen=True)
class Member:
    name: str
    folder: bool
    open: Callable[[], IO[bytes] | None]  # None: it is left out


def unpack(archive: Path, into: Path, check: Callable[[], None], room: Callable[[int], None]) -> list[str]:
    """Unpack to a folder that must not exist; gives remarks on what was left out.

    `room` raises where no more bytes fit.

    Raises:
        NodeFailed: `data_failed`, it is no archive, or one that does harm.
    """
    into.mkdir()
    counter = _Counter(max(LEAST_ALLOWED, MAX_RATIO * archive.stat().st_size), check, room)
    left_out = 0
    try:
        with _members(archive) as members:
            for member in members:
                counter.file(member.name)
                target = into.joinpath(*_parts(member.name))
                if member.folder:
                    target.mkdir(parents=True, exist_ok=True)
                elif (source := member.open()) is None:
                    left_out += 1
                else:
                    with source:
                        _write(source, target, counter)
    except _BROKEN as error:
        raise NodeFailed(f"the archive cannot be unpacked: {error}", code="data_failed") from error
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise _harmful(f"a file and a folder of one name: {error.filename}") from error
    except (RuntimeError, NotImplementedError) as error:  # zipfile: a password, an unknown compression
        raise NodeFailed(f"the archive cannot be unpacked: {error}", code="data_failed") from error
    return [f"{left_out} links and special files of the archive were left out"] if left_out else []


def _harmful(what: str) -> NodeFailed:
    return NodeFailed(f"the archive is not unpacked: {what}", code="data_failed")


@dataclass
class _Counter:
    most: int
    check: Callable[[], None]
    room: Callable[[int], None]
    size: int = 0
    files: int = 0

    def file(self, name: str) -> None:
        self.check()
        self.files += 1
        if self.files > MAX_FILES:
            raise _harmful(f"it has more than {MAX_FILES} files")
        if len(name) > MAX_NAME:
            raise _harmful(f"it has a name of more than {MAX_NAME} characters")

    def bytes(self, size: int) -> None:
        self.check()
        if self.size // LOOK_BYTES < (self.size + size) // LOOK_BYTES:
            self.room(0)
        self.size += size
        if self.size > self.most:
            raise _harmful(f"it holds more than {self.most} bytes, {MAX_RATIO} times its own size")


def _parts(name: str) -> list[str]:
    if name.startswith("/") or "\\" in name or "\0" in name:
        raise _harmful(f"{name[:200]!a} is no path within it")
    parts = [part for part in name.split("/") if part not in {"", "."}]
    if ".." in parts or any(len(part.encode(errors="replace")) > 255 for part in parts):
        raise _harmful(f"{name[:200]!a} is no path within it")
    return parts


def _write(source: IO[bytes], target: Path, counter: _Counter) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)  # of two of one name the later counts, as tar has it
    with target.open("xb") as file:
        while block := source.read(BLOCK):
            counter.bytes(len(block))
            file.write(block)


@contextlib.contextmanager
def _members(archive: Path) -> Iterator[Iterator[Member]]:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as opened:
            yield map(lambda info: _of_zip(opened, info), opened.infolist())  # noqa: C417 - read as it goes
        return
    with _decompressed(archive) as stream:
        try:
            careful = cast("IO[bytes]", _Careful(stream))
            tar = tarfile.open(fileobj=careful, mode="r:")  # noqa: SIM115 - it holds nothing open
        except (tarfile.ReadError, *_BROKEN) as error:
            raise NodeFailed("unpack: the data are no zip or tar archive", code="data_failed") from error
        yield _of_tar(tar)


def _decompressed(archive: Path) -> IO[bytes]:
    with archive.open("rb") as file:
        magic = file.read(6)
    if magic.startswith(b"\x1f\x8b"):
        return cast("IO[bytes]", gzip.open(archive))
    if magic.startswith(b"BZh"):
        return cast("IO[bytes]", bz2.open(archive))
    return cast("IO[bytes]", lzma.open(archive)) if magic == b"\xfd7zXZ\0" else archive.open("rb")


class _Careful:
    """`tarfile` reads the headers that say names of any length at once: not more than a name can need."""

    def __init__(self, inner: IO[bytes]) -> None:
        self._inner = inner
        self.seek, self.tell = inner.seek, inner.tell

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= 4 * BLOCK:
            raise tarfile.ReadError(f"it has a header of {size} bytes")
        return self._inner.read(size)


def _of_zip(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Member:
    kind = stat.S_IFMT(info.external_attr >> 16)
    plain = kind in {0, stat.S_IFREG}
    return Member(info.filename, info.is_dir(), lambda: archive.open(info) if plain else None)


def _of_tar(archive: tarfile.TarFile) -> Iterator[Member]:
    while (member := archive.next()) is not None:
        opened = archive.extractfile(member) if member.isreg() else None
        yield Member(member.name, member.isdir(), lambda opened=opened: opened)  # type: ignore[misc]
        archive.members = []  # type: ignore[attr-defined] # a description of each would be kept
