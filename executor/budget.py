"""What an executor keeps for later jobs, who uses it now, and what of it goes first when room is needed.

An entry is a folder below one of `KINDS`, named by what it holds, with its lock beside it:

    cache/data/<name>/          cache/data/<name>.lock
    cache/environments/<key>/   cache/environments/<key>.lock
    mirrors/<id>.git/           mirrors/<id>.git.lock       results/<id>.git/ alike

Who makes, uses or removes an entry holds its lock. A node that is to find an entry again, whatever becomes of
this program, leases it under that lock: a line in `nodes/<node>/leases`, which goes with the node's folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote

KINDS = {
    "data": "cache/data",
    "environments": "cache/environments",
    "mirrors": "mirrors",
    "results": "results",
}
LEASES = "leases"
WAIT_S = 0.1
MAKING_S = 600.0
_ASIDE = re.compile(r"\.(?P<name>.+)\.(?:[0-9a-z_]{8}|gone)")  # what an entry is made in, before it is one


@dataclass(frozen=True)
class Entry:
    """`used` is when a job last asked for it, in Unix seconds, `size` what it takes on the disk, in bytes."""

    kind: str
    path: Path
    used: float = 0.0
    size: int = 0
    name: str = ""  # for people


def lock_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.lock")


@contextlib.contextmanager
def locked(path: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold an entry's lock. `waiting` is called while another does, and may end that by raising."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with lock_of(path).open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                waiting()
                time.sleep(WAIT_S)
        os.utime(file.fileno())
        yield


@contextlib.contextmanager
def tried(path: Path) -> Iterator[bool]:
    """The same without waiting, and without counting as a use: whether it was free."""
    with lock_of(path).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


# --- leases -------------------------------------------------------------------------------------------


def lease(node: Path, entry: Path) -> None:
    """Keep an entry for as long as the node's folder is there. For who holds the entry's lock."""
    with (node / LEASES).open("a") as file:
        file.write(f"{quote(str(entry))}\n")


def leased(data_dir: Path) -> dict[Path, list[str]]:
    """Each leased entry, and the jobs that have it."""
    found: dict[Path, list[str]] = {}
    for node in _folders(data_dir / "nodes"):
        lines = {*_lines(node / LEASES)}
        for line in lines:
            found.setdefault(Path(line), []).append(node.name.partition(".")[0])
    return found


def _lines(path: Path) -> list[str]:
    try:
        return [unquote(line) for line in path.read_text().split()]
    except OSError:
        return []


# --- what is there ------------------------------------------------------------------------------------


def entries(data_dir: Path, known: Mapping[Path, Entry] | None = None) -> list[Entry]:
    """All of them; the size of one that has not been used since it was `known` is not looked up again."""
    found = []
    for kind, below in KINDS.items():
        for path in _folders(data_dir / below):
            if path.name.startswith("."):
                continue
            used = max(_changed(path), _changed(lock_of(path)))
            old = (known or {}).get(path)
            size = old.size if old and old.used == used else size_of(path)
            found.append(Entry(kind, path, used, size, _name(path)))
    return found


def _name(path: Path) -> str:
    """Data are called as their first job called them."""
    if path.name.startswith("part-"):
        return "a download under way"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return str(json.loads((path / "entry.json").read_bytes())["name"])
    return path.name[:12]


def halves(data_dir: Path) -> list[tuple[Path, Path]]:
    """What was being made or removed when something was killed, each with the entry whose lock it needs.

    git's repositories are made without that lock, and in less than `MAKING_S`.
    """
    found, young = [], time.time() - MAKING_S
    for kind, below in KINDS.items():
        for path in _folders(data_dir / below):
            match = _ASIDE.fullmatch(path.name)
            if match and (kind in {"data", "environments"} or _changed(path) < young):
                found.append((path, path.with_name(match["name"])))
    return found


def _folders(folder: Path) -> list[Path]:
    try:
        return [path for path in folder.iterdir() if path.is_dir() and not path.is_symlink()]
    except FileNotFoundError:
        return []


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def size_of(path: Path) -> int:
    """What a file or folder takes on the disk; a file with several names in it counts once."""
    seen: set[tuple[int, int]] = set()
    total = 0
    todo = [str(path)]
    while todo:
        current = todo.pop()
        with contextlib.suppress(OSError):  # others may be removing it
            status = os.lstat(current)
            if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
                if (status.st_dev, status.st_ino) in seen:
                    continue
                seen.add((status.st_dev, status.st_ino))
            total += status.st_blocks * 512
            if stat.S_ISDIR(status.st_mode):
                todo.extend(entry.path for entry in os.scandir(current))
    return total


# --- what goes ----------------------------------------------------------------------------------------


def choose(found: Iterable[Entry], held: Iterable[Path], need: int) -> list[Entry]:
    """What to remove to gain `need` bytes: the least recently used first, nothing that is held."""
    kept, chosen = set(held), []
    for entry in sorted(found, key=lambda entry: (entry.used, str(entry.path))):
        if need <= 0:
            break
        if entry.path not in kept:
            chosen.append(entry)
            need -= entry.size
    return chosen


def remove(data_dir: Path, path: Path) -> bool:
    """Remove an entry unless it is in use; whether it is gone. Seen by others whole, or not at all."""
    with tried(path) as free:
        if not free or path in leased(data_dir):
            return False
        aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        with contextlib.suppress(FileNotFoundError):
            path.rename(aside)
    discard(aside)
    return True


def remove_half(half: Path, entry: Path) -> bool:
    with tried(entry) as free:
        if free:
            discard(half)
        return free


def discard(path: Path) -> None:
    """Remove a folder, also one that is read-only."""
    for folder, _, _ in os.walk(path):
        with contextlib.suppress(OSError):
            Path(folder).chmod(0o700)
    shutil.rmtree(path, ignore_errors=True)
