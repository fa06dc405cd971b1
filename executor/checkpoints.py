"""A job's checkpoints: which of them are whole, and where the next attempt finds them.

An entry of TRAINFORGE_CHECKPOINT_DIR is a checkpoint, a file or a folder. One that has not changed for
`SETTLE_S` is whole and gets a seal: its fingerprint, and the attempt that wrote it. After a kill only what
still matches its seal is gone on from. Names that begin with a dot or end in `.tmp` or `.part` are passed
over, so a training that writes aside and renames is never misread.

On disk:  files/ (TRAINFORGE_CHECKPOINT_DIR)   seals.json (name -> Seal)
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pydantic import BaseModel

from trainforge.executor.supervisor import write_atomically

if TYPE_CHECKING:
    from trainforge.executor.checkpoint_store import Store

log = logging.getLogger(__name__)

SETTLE_S = 2.0
LOOK_S = 0.5
_UNFINISHED = (".tmp", ".part")
T = TypeVar("T")


class Seal(BaseModel):
    name: str
    attempt: int
    time: float
    fingerprint: str

    @property
    def key(self) -> str:
        """Names it among all machines."""
        return f"{self.attempt}/{self.name}"

    @property
    def age(self) -> tuple[int, float]:
        return self.attempt, self.time


class Checkpoints:
    """Those of one job on this machine, as one attempt sees them."""

    def __init__(self, folder: Path, attempt: int) -> None:
        self.files = folder / "files"
        self.attempt = attempt
        self._seals = folder / "seals.json"

    def whole(self) -> list[Seal]:
        """What can be gone on from, the newest first."""
        found = [
            seal for seal in self._read().values() if look(self.files / seal.name)[0] == seal.fingerprint
        ]
        return sorted(found, key=lambda seal: seal.age, reverse=True)

    def path(self, key: str) -> str:
        """Where that checkpoint is; empty when it is not here."""
        return next((str(self.files / seal.name) for seal in self.whole() if seal.key == key), "")

    def seal(self, since: float, before: float) -> list[Seal]:
        """Seal what was written from `since` on and has not changed after `before`; gives what is new."""
        seals, new = self._read(), []
        for path in sorted(self.files.iterdir()):
            if path.name.startswith(".") or path.name.endswith(_UNFINISHED) or path.is_symlink():
                continue
            fingerprint, changed = look(path)
            known = seals.get(path.name)
            if fingerprint and since <= changed <= before and (not known or known.fingerprint != fingerprint):
                seals[path.name] = Seal(
                    name=path.name, attempt=self.attempt, time=changed, fingerprint=fingerprint
                )
                new.append(seals[path.name])
        if new:
            self._write(seals)
        return sorted(new, key=lambda seal: seal.age)

    def restore(self, store: Store) -> None:
        """Fetch the store's newest checkpoint where this machine has none as new."""
        markers, here = store.markers(), self.whole()
        if not markers or (here and here[0].age >= markers[0].age):
            return
        newest = markers[0]
        self.files.mkdir(parents=True, exist_ok=True)
        store.fetch(newest, self.files / newest.name)
        fingerprint, _ = look(self.files / newest.name)
        seal = Seal(name=newest.name, attempt=newest.attempt, time=newest.time, fingerprint=fingerprint)
        self._write({**self._read(), newest.name: seal})

    def _read(self) -> dict[str, Seal]:
        try:
            return {name: Seal(**data) for name, data in json.loads(self._seals.read_text()).items()}
        except FileNotFoundError:
            return {}

    def _write(self, seals: dict[str, Seal]) -> None:
        write_atomically(self._seals, {name: seal.model_dump() for name, seal in seals.items()})


def look(path: Path) -> tuple[str, float]:
    """Fingerprint and last change of a file or folder; empty while it is being moved or removed."""
    try:
        about = [(str(each.relative_to(path)), each.stat()) for each in files_of(path)]
    except OSError:
        return "", 0.0
    if not about:
        return "", 0.0
    seen = sorted((name, stat.st_size, stat.st_mtime_ns) for name, stat in about)
    return hashlib.sha256(repr(seen).encode()).hexdigest(), max(stat.st_mtime for _, stat in about)


def files_of(path: Path) -> list[Path]:
    """The regular files that make up a checkpoint."""
    if path.is_file():
        return [path]
    found = (Path(root, name) for root, _, names in os.walk(path) for name in names)
    return [each for each in found if not each.is_symlink()]


class Keeper(threading.Thread):
    """Seals and stores checkpoints beside a running training; `warn` is told once of each kind of trouble."""

    def __init__(
        self, checkpoints: Checkpoints, store: Store | None, since: float, warn: Callable[[str], None]
    ) -> None:
        super().__init__(name="checkpoints", daemon=True)
        self.checkpoints = checkpoints
        self.store = store
        self.since = since
        self.warn = warn
        self._over = threading.Event()
        self._left: dict[str, Seal] = {}  # sealed, but not in the store yet
        self._said: set[str] = set()

    def run(self) -> None:
        while not self._over.wait(LOOK_S):
            self.look(time.time() - SETTLE_S)

    def look(self, before: float) -> None:
        guarded(lambda: self._look(before), self._warn_once)

    def _look(self, before: float) -> None:
        self._left |= {seal.name: seal for seal in self.checkpoints.seal(self.since, before)}
        for name, seal in list(self._left.items()):
            if self.store is not None:
                self.store.put(seal, self.checkpoints.files / name)
            del self._left[name]

    def _warn_once(self, words: str) -> None:
        if words not in self._said:
            self._said.add(words)
            self.warn(words)

    def close(self) -> None:
        self._over.set()
        self.join()


def guarded(work: Callable[[], T], warn: Callable[[str], None]) -> T | None:
    """Do what no training is to fail for. Each of fsspec's file systems raises errors of its own."""
    try:
        return work()
    except Exception as error:
        log.exception("checkpoints")
        warn(f"checkpoints: {type(error).__name__}: {error}"[:2000])
        return None
