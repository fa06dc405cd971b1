"""Where a job's checkpoints are kept for other machines: a shared folder, or anything that fsspec opens.

Content goes first and then the marker that names it, so that whoever reads the store sees whole ones only:

    STORE/JOB/<attempt>-<rank>-<random>/...   STORE/JOB/<attempt>.<rank>.<name>.json (Marker)
    STORE/JOB/<attempt>.<rank>.json           that node has ended, and has stored all of its parts

Each node stores its part. A checkpoint is complete when every node of its attempt has stored a part or is
known to have none: because it has ended, or has seen another's part for a while and has begun nothing of that
name. Parts of a name that was written twice might be of two moments: more than one is never complete.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import quote, unquote

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from pydantic import Field, ValidationError

from trainforge.config.errors import NodeFailed
from trainforge.executor.checkpoints import Seal, files_of, look
from trainforge.executor.supervisor import write_atomically
from trainforge.executor.untrusted import open_below

_ALONE = "file"  # the name of the content of a checkpoint that is a file itself
_PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs", "az": "adlfs"}


class Marker(Seal):
    folder: str = ""  # of the content, below the job's; empty: this node has no part
    single: bool = False
    files: dict[str, int] = Field(default={})  # path below `folder` -> size


@dataclass(frozen=True)
class Complete:
    """A checkpoint of which every part is here, in the order of their ranks."""

    parts: tuple[Marker, ...]

    @property
    def name(self) -> str:
        return self.parts[0].name

    @property
    def attempt(self) -> int:
        return self.parts[0].attempt

    @property
    def nodes(self) -> int:
        return self.parts[0].nodes

    @property
    def key(self) -> str:
        return self.parts[0].key

    @property
    def time(self) -> float:
        return self.parts[0].time

    @property
    def age(self) -> tuple[int, float]:
        return self.parts[0].age


class Store:
    """One job's part of it, of which the newest `keep` complete checkpoints stay.

    Raises:
        NodeFailed: what opens such a URL is not installed here.
    """

    def __init__(self, url: str, job: str, keep: int) -> None:
        scheme = url.partition("://")[0]
        try:
            self.fs, root = url_to_fs(url)
        except ImportError as error:
            name = _PACKAGES.get(scheme, "")
            install = f"pip install {name}" if name else str(error)
            raise NodeFailed(
                f"checkpoint.store: this executor cannot open {scheme}:// ({install}, then start it again)",
                code="environment_failed",
            ) from error
        self.root = f"{root.rstrip('/')}/{job}"
        self.keep = keep

    # --- what is there ----------------------------------------------------------------------------------

    def markers(self) -> list[Marker]:
        """The newest first. What cannot be read is being written or removed by another."""
        found = []
        self.fs.invalidate_cache()
        for path in self.fs.glob(f"{self.root}/*.*.*.json"):
            try:
                marker = Marker.model_validate_json(self.fs.cat_file(path))
            except (OSError, ValidationError):
                continue
            parts = [part for name in marker.files for part in name.split("/")]
            if all(_plain(part) for part in [marker.name, *parts, *filter(None, [marker.folder])]):
                found.append(marker)
        return sorted(found, key=lambda marker: marker.age, reverse=True)

    def complete(self) -> list[Complete]:
        """What can be gone on from on any machine, the newest first."""
        groups: dict[str, list[Marker]] = defaultdict(list)
        ended = self._ended()
        for marker in self.markers():
            groups[marker.key].append(marker)
        found = [made for group in groups.values() if (made := _completed(group, ended))]
        return sorted(found, key=lambda made: made.age, reverse=True)

    def _ended(self) -> set[tuple[int, int]]:
        stems = [path.rpartition("/")[2].split(".") for path in self.fs.glob(f"{self.root}/*.*.json")]
        return {(int(a), int(r)) for a, r, *rest in stems if rest == ["json"] and a.isdigit() and r.isdigit()}

    def others(self, attempt: int, rank: int) -> set[str]:
        """Names that other nodes of an attempt have stored something under, and this one nothing."""
        self.fs.invalidate_cache()
        said: dict[str, set[str]] = defaultdict(set)
        for path in self.fs.glob(f"{self.root}/{attempt}.*.*.json"):
            _, by, name = path.rpartition("/")[2].removesuffix(".json").split(".", 2)
            said[unquote(name)].add(by)
        return {name for name, ranks in said.items() if str(rank) not in ranks}

    # --- writing ----------------------------------------------------------------------------------------

    def put(self, seal: Seal, path: Path) -> None:
        """Publish one part, then drop this node's of checkpoints beyond `keep`."""
        single = path.is_file()
        folder = f"{seal.attempt}-{seal.rank}-{secrets.token_hex(6)}"
        files: dict[str, int] = {}
        for each in files_of(path):
            name = _ALONE if single else PurePosixPath(each.relative_to(path)).as_posix()
            target = f"{self.root}/{folder}/{name}"
            self.fs.makedirs(target.rpartition("/")[0], exist_ok=True)
            with open_below(path.parent, each.relative_to(path.parent)) as file:  # what it is now, by no link
                self.fs.put_file(f"/proc/self/fd/{file.fileno()}", target)
                files[name] = os.fstat(file.fileno()).st_size
        if look(path)[0] != seal.fingerprint:  # it has changed meanwhile: the next look sees that
            self._remove(folder)
            return
        marker = Marker(**seal.model_dump(), folder=folder, single=single, files=files)
        before = self.markers()
        self._write(marker)
        for old in before:
            if (old.key, old.rank) == (marker.key, marker.rank) and old.folder:
                self._remove(old.folder)
        self._drop(marker)

    def put_absent(self, seal: Seal) -> None:
        """Say that this node has no part of that checkpoint."""
        self._write(Marker(**seal.model_dump()))

    def put_ended(self, attempt: int, rank: int) -> None:
        """Say that this node has ended and all of its parts are here."""
        self.fs.makedirs(self.root, exist_ok=True)
        self.fs.pipe_file(f"{self.root}/{attempt}.{rank}.json", b"{}")

    def _drop(self, by: Marker) -> None:
        """Remove this node's parts of what is older than what is kept, rank 0 earlier attempts' too."""
        kept = self.complete()[: self.keep]
        if len(kept) < self.keep:
            return
        oldest = kept[-1]
        own = next(
            (part.time for part in oldest.parts if part.rank == by.rank), oldest.time
        )  # by its own clock
        keys = {made.key for made in kept}
        for old in self.markers():
            earlier = old.attempt < oldest.attempt and by.rank in (0, old.rank)
            older = (old.attempt, old.rank) == (oldest.attempt, by.rank) and old.time < own
            if (earlier or older) and old.key not in keys:
                self.fs.rm_file(self._path(old))
                if old.folder:
                    self._remove(old.folder)

    def _path(self, seal: Seal) -> str:
        return f"{self.root}/{seal.attempt}.{seal.rank}.{quote(seal.name, safe='')}.json"

    def _write(self, marker: Marker) -> None:
        if isinstance(self.fs, LocalFileSystem):
            write_atomically(Path(self._path(marker)), marker.model_dump())
        else:  # an object appears whole or not at all
            self.fs.pipe_file(self._path(marker), marker.model_dump_json().encode())

    def _remove(self, folder: str) -> None:
        self.fs.rm(f"{self.root}/{folder}", recursive=True)

    def clear(self) -> None:
        """The job is over."""
        if self.fs.exists(self.root):
            self.fs.rm(self.root, recursive=True)

    # --- reading ----------------------------------------------------------------------------------------

    def fetch(self, made: Complete, target: Path, rank: int | None = None) -> None:
        """All parts in one place. Where two have a file of one name this node's is taken, else the first's.

        Raises:
            OSError: something is missing or has another size.
        """
        aside = target.parent.with_name(f".fetching-{target.name}")  # where no job that runs can reach
        _discard(aside)
        alike = [part for part in made.parts if part.single == made.parts[0].single]
        for part in sorted(alike, key=lambda part: (part.rank == rank, -part.rank)):
            self._fetch(part, aside)
        _discard(target)
        aside.rename(target)

    def _fetch(self, part: Marker, aside: Path) -> None:
        for name, size in part.files.items():
            into = aside if part.single else aside / name
            into.parent.mkdir(parents=True, exist_ok=True)
            self.fs.get_file(f"{self.root}/{part.folder}/{name}", str(into))
            if into.stat().st_size != size:
                raise OSError(f"{name} of checkpoint {part.key} has another size than was written")


def _completed(group: list[Marker], ended: set[tuple[int, int]]) -> Complete | None:
    """One checkpoint of these markers, if all nodes of its attempt are accounted for."""
    parts = sorted((marker for marker in group if marker.folder), key=lambda marker: marker.rank)
    said = {marker.rank for marker in group}
    attempt, nodes = group[0].attempt, group[0].nodes
    missing = [rank for rank in range(nodes) if rank not in said and (attempt, rank) not in ended]
    if not parts or missing or (len(parts) > 1 and any(part.version > 1 for part in parts)):
        return None
    return Complete(tuple(parts))


def _plain(name: str) -> bool:
    return name not in ("", ".", "..") and "/" not in name and "\0" not in name


def _discard(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
