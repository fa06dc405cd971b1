"""What a training has used, as far as it is seen from outside: disk, log, the processor time of a container.

Loaded by path into the supervisor (`supervisor.py`), so it uses the standard library alone. Disk is measured
a little at a time, so that who measures can do other things. Links are not followed, a file with several
names counts once, holes do not count. What was removed and is still held open is not seen.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

SLICE_S = 0.03
REST_S = 1.0
EASY_S = 30.0  # where nothing is to be held to it
SHARE = 20  # of the time at most one part is spent on it
INODE = 256  # what an empty file takes
BLOCK = 512
PLAIN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
LOOK = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class DiskUse:
    """`peak` is the most that was seen; `over` is True once that was more than `limit`, if there is one."""

    def __init__(self, roots: list[str], limit: int = 0) -> None:
        self.roots, self.limit = roots, limit
        self.peak = 0
        self.over = False
        self._walk: Iterator[int] | None = None
        self._used, self._spent = 0, 0.0
        self._rest_until = time.monotonic() + (REST_S if limit else EASY_S)

    def look(self) -> None:
        """Go on for a moment, unless it is time to rest."""
        if time.monotonic() >= self._rest_until:
            self._go_on(SLICE_S)

    def finish(self) -> None:
        """Look once more, if that can be done at once."""
        self._walk = None
        self._go_on(SLICE_S * 10)

    def _go_on(self, seconds: float) -> None:
        begun = time.monotonic()
        if self._walk is None:
            self._walk, self._used, self._spent = walk(self.roots), 0, 0.0
        for size in self._walk:
            self._used += size
            if self.limit and self._used > self.limit:
                self.over = True
                break
            if time.monotonic() - begun > seconds:
                self._spent += seconds
                return
        self.peak = max(self.peak, self._used)
        self._walk = None
        self._spent += time.monotonic() - begun
        rest = max(REST_S if self.limit else EASY_S, self._spent * SHARE)
        self._rest_until = time.monotonic() + rest


def walk(roots: list[str]) -> Iterator[int]:
    """What each thing below takes; a folder that is too deep to look at is more than anybody may have."""
    seen: set[tuple[int, int]] = set()
    todo = list(roots)
    while todo:
        folder = todo.pop()
        try:
            descriptor = os.open(folder, LOOK)
        except OSError as error:
            yield 2**62 if error.errno == errno.ENAMETOOLONG else 0
            continue
        try:
            with os.scandir(descriptor) as entries:
                for entry in entries:
                    yield _size(entry, seen)
                    if entry.is_dir(follow_symlinks=False):
                        todo.append(f"{folder}/{entry.name}")
        except OSError:
            pass
        finally:
            os.close(descriptor)


def _size(entry: os.DirEntry[str], seen: set[tuple[int, int]]) -> int:
    try:
        status = entry.stat(follow_symlinks=False)
    except OSError:
        return 0
    if status.st_nlink > 1 and not entry.is_dir(follow_symlinks=False):
        if (status.st_dev, status.st_ino) in seen:
            return 0
        seen.add((status.st_dev, status.st_ino))
    return status.st_blocks * BLOCK + INODE


def printed(run: Path) -> int:
    """The size of all logs and of what was reported."""
    size = 0
    with contextlib.suppress(OSError):
        size = (run / "metrics.jsonl").lstat().st_size
        for entry in os.scandir(run / "logs"):
            size += entry.stat(follow_symlinks=False).st_size
    return size


def noted(ranks: Path) -> list[int]:
    """The process numbers that the ranks have for themselves. A job's files: no link is followed."""
    found = []
    for note in ranks.glob("[0-9]*.json"):
        wrong = (OSError, ValueError, KeyError, TypeError, RecursionError)
        with contextlib.suppress(*wrong), open(os.open(note, PLAIN)) as file:  # noqa: PTH123
            found.append(int(json.loads(file.read(4096))["pid"]))
    return found


def spent(pids: list[int]) -> float:
    """Processor seconds of these and of all that they have waited for."""
    ticks = 0
    for pid in pids:
        with contextlib.suppress(OSError, ValueError, IndexError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += sum(int(field) for field in fields[11:15])
    return ticks / os.sysconf("SC_CLK_TCK")


def told_cpu(run: Path, elapsed: float) -> float:
    """The processor time that a container's first process told at its end, as far as that can be true."""
    wrong = (OSError, ValueError, KeyError, TypeError, RecursionError)
    with contextlib.suppress(*wrong), open(os.open(run / "ranks" / "contained.json", PLAIN)) as file:  # noqa: PTH123
        return min(max(0.0, float(json.loads(file.read(4096))["cpu_s"])), elapsed * (os.cpu_count() or 1))
    return 0.0
