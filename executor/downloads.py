"""Brings one file from elsewhere to this disk, in as many goes as it takes, whatever is killed meanwhile.

A part is a folder: `content` grows, `part.json` says how much of it is safely on the disk, and which version
of the source it is of. Only that version is gone on with; after another one the file begins anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from trainforge.config.errors import NodeFailed
from trainforge.executor.supervisor import write_atomically
from trainforge.hooks.fetching import FetchFailed

BLOCK = 2**20
SAFE_BYTES = 64 * 2**20
SAFE_S = 1.0
RETRY_S = (0.5, 2.0, 5.0, 10.0)  # as long as nothing comes; what comes lets it begin again
TELL_S = 5.0


@dataclass(frozen=True)
class Stream:
    """`offset` is where `blocks` begin, `size` that of the whole file or -1, `tag` its version or empty."""

    offset: int = 0
    size: int = -1
    tag: str = ""
    blocks: Iterable[bytes] = ()
    unchanged: bool = False


class Source(Protocol):
    """One file elsewhere; `shown` is what people are told of it."""

    @property
    def shown(self) -> str: ...

    def open(self, offset: int, tag: str, known: str) -> AbstractContextManager[Stream]:
        """From `offset` of the version `tag` if it still is that one; `unchanged` if it is the one `known`.

        Raises:
            FetchFailed: it cannot be had; `again` where another try may succeed, also out of `blocks`.
        """
        ...


@dataclass
class Trip:
    """What downloads share: whom to tell, when to stop, and where there has to be room."""

    tell: Callable[[str], None]  # of the progress; seldom
    check: Callable[[], None]  # often; raises to stop
    room: Callable[[int], None]  # for so many bytes; raises where there is none
    name: str = ""
    total: int = -1  # of all files; -1: that of each
    done: int = 0
    came: int = 0  # of it, in this trip
    begun: float = field(default_factory=time.monotonic)
    told: float = field(default_factory=time.monotonic)

    def moved(self, size: int, total: int) -> None:
        self.done += size
        self.came += size
        now = time.monotonic()
        if now - self.told >= TELL_S:
            self.told = now
            rate = self.came / max(now - self.begun, 0.001)
            of = f" of {size_words(total)}" if total >= 0 else ""
            self.tell(f"{self.name}: {size_words(self.done)}{of}, {size_words(rate)}/s")


@dataclass(frozen=True)
class Fetched:
    path: Path
    sha256: str
    size: int
    tag: str
    resumed: bool = False


def size_words(size: float) -> str:
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def download(source: Source, part: Path, trip: Trip, known: str = "") -> Fetched | None:
    """The whole file, or None where the source still has the version `known`.

    Raises:
        NodeFailed: `data_failed`, in the source's words; `disk_full`.
    """
    part.mkdir(parents=True, exist_ok=True)
    failures = 0
    while True:
        before = trip.came
        try:
            return _once(source, part, trip, known)
        except FetchFailed as failed:
            failures = 1 if trip.came > before else failures + 1
            if not failed.again or failures > len(RETRY_S):
                raise NodeFailed(failed.message, hint=failed.hint, code="data_failed") from failed
            trip.tell(f"{trip.name}: waiting to go on: {failed.message}")
            _pause(RETRY_S[failures - 1], trip.check)


def _pause(seconds: float, check: Callable[[], None]) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        check()
        time.sleep(0.1)


def _once(source: Source, part: Path, trip: Trip, known: str) -> Fetched | None:
    offset, tag = safe(part)
    with source.open(offset, tag, known) as stream, (part / "content").open("a+b") as file:
        if stream.unchanged:
            return None
        file.truncate(stream.offset)
        trip.done = stream.offset if trip.total < 0 else trip.done + stream.offset
        if stream.size >= 0:
            trip.room(stream.size - stream.offset)
        digest = _digest(part / "content", trip.check)
        size = _take(stream, file.fileno(), part, digest, trip)
    if 0 <= stream.size != size:
        raise FetchFailed(f"{source.shown} ended after {size} of {stream.size} bytes", again=True)
    write_atomically(part / "part.json", {"tag": stream.tag, "safe": size})
    return Fetched(part / "content", digest.hexdigest(), size, stream.tag, resumed=stream.offset > 0)


def safe(part: Path) -> tuple[int, str]:
    """How much of a file is here, and of which version."""
    try:
        note = json.loads((part / "part.json").read_bytes())
        return min(int(note["safe"]), (part / "content").stat().st_size), str(note["tag"])
    except (OSError, ValueError, KeyError):
        return 0, ""


def _digest(path: Path, check: Callable[[], None]) -> hashlib._Hash:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            check()
            digest.update(block)
    return digest


def _take(stream: Stream, descriptor: int, part: Path, digest: hashlib._Hash, trip: Trip) -> int:
    """Write and digest what comes; gives the file's size."""
    size, unsafe, last = stream.offset, 0, 0.0  # the first block is made safe at once
    total = trip.total if trip.total >= 0 else stream.size
    try:
        for block in stream.blocks:
            trip.check()
            size += len(block)
            if 0 <= stream.size < size:
                raise FetchFailed(f"more came than the {stream.size} bytes that were announced")
            if stream.size < 0 and size // SAFE_BYTES > (size - len(block)) // SAFE_BYTES:
                trip.room(0)
            _write(descriptor, block)
            digest.update(block)
            trip.moved(len(block), total)
            unsafe += len(block)
            if unsafe >= SAFE_BYTES or (unsafe >= BLOCK and time.monotonic() - last >= SAFE_S):
                _keep(descriptor, part, stream.tag, size)
                unsafe, last = 0, time.monotonic()
    finally:
        with contextlib.suppress(OSError):
            _keep(descriptor, part, stream.tag, os.fstat(descriptor).st_size)
    return size


def _write(descriptor: int, block: bytes) -> None:
    rest = memoryview(block)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _keep(descriptor: int, part: Path, tag: str, size: int) -> None:
    os.fsync(descriptor)
    write_atomically(part / "part.json", {"tag": tag, "safe": size})
