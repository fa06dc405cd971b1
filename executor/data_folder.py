"""Data that are a folder of files, of an object store or of this machine: listed first, then fetched."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainforge.config.errors import NodeFailed
from trainforge.config.manifest_data import Data
from trainforge.executor import budget
from trainforge.executor.data_sources import MAX_FILES, Stored, file_system, local_path, store_errors, tag_of
from trainforge.executor.downloads import Trip, download
from trainforge.hooks.fetching import FetchFailed

AT_ONCE = 32  # small files in one go, which fsspec fetches side by side
SMALL = 8 * 2**20


@dataclass(frozen=True)
class Listed:
    path: str  # in the store
    name: str  # below the folder
    size: int
    tag: str


@dataclass(frozen=True)
class Listing:
    fs: Any
    shown: str
    files: tuple[Listed, ...]

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)

    @property
    def tag(self) -> str:
        """Of all of it, as it is now."""
        lines = "\n".join(f"{file.name}\0{file.size}\0{file.tag}" for file in self.files)
        return hashlib.sha256(lines.encode(errors="surrogateescape")).hexdigest()


def listing(data: Data, secrets: Mapping[str, str]) -> Listing:
    """What is below a URL that ends in `/`.

    Raises:
        NodeFailed, FetchFailed: it cannot be listed, is empty, or has names that no folder can have.
    """
    with store_errors(data.shown):
        if data.scheme == "file":
            import fsspec  # noqa: PLC0415 - slow to load, and seldom needed

            fs, root = fsspec.filesystem("file"), str(local_path(data.url))
        else:
            fs = file_system(data, secrets)
            root = fs._strip_protocol(data.url)
        found = fs.find(root, detail=True)
    files = []
    for path, about in sorted(found.items()):
        name = path.removeprefix(root.rstrip("/") + "/")
        if name == path or path.endswith("/") or about.get("type") == "directory" or about.get("islink"):
            continue
        if any(part in {"", ".", ".."} for part in name.split("/")) or "\0" in name:
            raise NodeFailed(f"{data.shown}: {name[:200]!a} is no name for a file", code="data_failed")
        files.append(Listed(path, name, int(about["size"]), tag_of(about)))
    if not files:
        raise FetchFailed(f"{data.shown}: there are no files")
    if len(files) > MAX_FILES:
        raise FetchFailed(f"{data.shown}: there are more than {MAX_FILES} files")
    return Listing(fs, data.shown, tuple(files))


def fetch(listed: Listing, part: Path, trip: Trip) -> Path:
    """All files, in a folder below `part`; what is there from before is gone on with.

    Raises:
        NodeFailed, FetchFailed: as `download`.
    """
    tree = part / "tree"
    tree.mkdir(parents=True, exist_ok=True)
    done = _done(part)
    missing = [file for file in listed.files if done.get(file.name) != file.tag]
    trip.total, trip.done = listed.size, listed.size - sum(file.size for file in missing)
    trip.room(trip.total - trip.done)
    for group in _groups(missing):
        trip.check()
        _fetch_group(listed, group, tree, part, trip)
        with (part / "done.jsonl").open("a") as file:
            file.writelines(json.dumps([each.name, each.tag]) + "\n" for each in group)
    wanted = {file.name for file in listed.files}
    for name in set(done) - wanted:  # of the folder as it was before
        with contextlib.suppress(OSError):
            (tree / name).unlink()
    return tree


def _fetch_group(listed: Listing, group: list[Listed], tree: Path, part: Path, trip: Trip) -> None:
    targets = [tree / file.name for file in group]
    for target in targets:
        target.parent.mkdir(parents=True, exist_ok=True)
    if len(group) == 1:
        own = part / "file"
        fetched = download(Stored(listed.fs, group[0].path, f"{listed.shown}{group[0].name}"), own, trip)
        if fetched is not None:
            fetched.path.replace(targets[0])
        budget.discard(own)
        return
    with store_errors(listed.shown):
        listed.fs.get([file.path for file in group], [str(target) for target in targets])
    for file, target in zip(group, targets, strict=True):
        if target.stat().st_size != file.size:
            raise FetchFailed(f"{listed.shown}{file.name} has another size than was listed", again=True)
    trip.moved(sum(file.size for file in group), trip.total)


def _groups(files: list[Listed]) -> Iterator[list[Listed]]:
    """Large files alone, so that each can be gone on with; small ones many at once."""
    group: list[Listed] = []
    for file in files:
        if file.size > SMALL:
            yield [file]
            continue
        group.append(file)
        if len(group) == AT_ONCE:
            yield group
            group = []
    if group:
        yield group


def _done(part: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    with contextlib.suppress(OSError):
        for line in (part / "done.jsonl").read_text().splitlines():
            with contextlib.suppress(ValueError):
                name, tag = json.loads(line)
                found[str(name)] = str(tag)
    return found
