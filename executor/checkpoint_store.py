"""Where a job's checkpoints are kept for other machines: a shared folder, or anything that fsspec opens.

Content goes first and then the marker that names it, so that whoever reads the store sees whole ones only:

    STORE/JOB/<attempt>-<random>/...   STORE/JOB/<attempt>.<name>.json (Marker)
"""

from __future__ import annotations

import secrets
import shutil
from pathlib import Path, PurePosixPath
from urllib.parse import quote

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from pydantic import ValidationError

from trainforge.executor.checkpoints import Seal, files_of, look
from trainforge.executor.supervisor import write_atomically

_ALONE = "file"  # the name of the content of a checkpoint that is a file itself


class Marker(Seal):
    folder: str  # of the content, below the job's
    single: bool
    files: dict[str, int]  # path below `folder` -> size


class Store:
    """One job's part of it, of which the newest `keep` checkpoints stay."""

    def __init__(self, url: str, job: str, keep: int) -> None:
        self.fs, root = url_to_fs(url)
        self.root = f"{root.rstrip('/')}/{job}"
        self.keep = keep

    def markers(self) -> list[Marker]:
        """The newest first. What cannot be read is being written or removed by another."""
        found = []
        self.fs.invalidate_cache()
        for path in self.fs.glob(f"{self.root}/*.json"):
            try:
                marker = Marker.model_validate_json(self.fs.cat_file(path))
            except (OSError, ValidationError):
                continue
            parts = [part for name in marker.files for part in name.split("/")]
            if all(_plain(part) for part in [marker.name, marker.folder, *parts]):
                found.append(marker)
        return sorted(found, key=lambda marker: marker.age, reverse=True)

    def put(self, seal: Seal, path: Path) -> None:
        """Publish one checkpoint, then drop those beyond `keep`."""
        single = path.is_file()
        folder = f"{seal.attempt}-{secrets.token_hex(6)}"
        files: dict[str, int] = {}
        for each in files_of(path):
            name = _ALONE if single else PurePosixPath(each.relative_to(path)).as_posix()
            target = f"{self.root}/{folder}/{name}"
            self.fs.makedirs(target.rpartition("/")[0], exist_ok=True)
            self.fs.put_file(str(each), target)
            files[name] = each.stat().st_size
        if look(path)[0] != seal.fingerprint:  # it has changed meanwhile: the next look sees that
            self._remove(folder)
            return
        marker = Marker(**seal.model_dump(), folder=folder, single=single, files=files)
        before = self.markers()
        self._write(marker)
        for old in before:
            if old.key == marker.key:
                self._remove(old.folder)
        for old in [old for old in before if old.key != marker.key][self.keep - 1 :]:
            self.fs.rm_file(self._path(old))
            self._remove(old.folder)

    def _path(self, seal: Seal) -> str:
        return f"{self.root}/{seal.attempt}.{quote(seal.name, safe='')}.json"

    def _write(self, marker: Marker) -> None:
        if isinstance(self.fs, LocalFileSystem):
            write_atomically(Path(self._path(marker)), marker.model_dump())
        else:  # an object appears whole or not at all
            self.fs.pipe_file(self._path(marker), marker.model_dump_json().encode())

    def _remove(self, folder: str) -> None:
        self.fs.rm(f"{self.root}/{folder}", recursive=True)

    def fetch(self, marker: Marker, target: Path) -> None:
        """Raises OSError when something is missing or has another size."""
        aside = target.with_name(f".fetching-{target.name}")
        _discard(aside)
        for name, size in marker.files.items():
            into = aside if marker.single else aside / name
            into.parent.mkdir(parents=True, exist_ok=True)
            self.fs.get_file(f"{self.root}/{marker.folder}/{name}", str(into))
            if into.stat().st_size != size:
                raise OSError(f"{name} of checkpoint {marker.key} has another size than was written")
        _discard(target)
        aside.rename(target)

    def clear(self) -> None:
        """The job is over."""
        if self.fs.exists(self.root):
            self.fs.rm(self.root, recursive=True)


def _plain(name: str) -> bool:
    return name not in ("", ".", "..") and "/" not in name and "\0" not in name


def _discard(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
