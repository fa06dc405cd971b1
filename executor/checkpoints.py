"""A job's checkpoints: which of them are whole, and where the next attempt finds them.

An entry of TRAINFORGE_CHECKPOINT_DIR is a checkpoint, a file or a folder. One that has not changed for
`SETTLE_S` is whole and gets a seal: its fingerprint, and the attempt that wrote it. After a kill only what
still matches its seal is gone on from. Names that begin with a dot or end in `.tmp` or `.part` are passed
over, so a training that writes aside and renames is never misread.

Where several nodes train together an entry is this node's part of a checkpoint. A node goes on from its own
part only as the same one of equally many, or once the parts of all have been fetched from a store. A name
that is written again can be matched with no other node's part, and is passed over there.

On disk:  files/ (TRAINFORGE_CHECKPOINT_DIR)   seals.json (name -> Seal)
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pydantic import BaseModel

from trainforge.config.errors import NodeFailed
from trainforge.executor.supervisor import write_atomically

if TYPE_CHECKING:
    from trainforge.executor.checkpoint_store import Store

log = logging.getLogger(__name__)

SETTLE_S = 2.0
LOOK_S = 0.5
OTHERS_S = 5.0  # how often to look what the other nodes have stored
LACKING_S = 10.0  # nodes that save together begin together, this is much later
STAYS = "checkpoints stay on this machine: without checkpoint.store no other one can go on from them"
_UNFINISHED = (".tmp", ".part")
T = TypeVar("T")


class Seal(BaseModel):
    name: str
    attempt: int
    time: float
    fingerprint: str
    rank: int = 0  # of the node whose part it is
    nodes: int = 1  # that trained together
    version: int = 1  # how often this name was written in that attempt
    merged: bool = False  # the parts of all nodes are here

    @property
    def key(self) -> str:
        """Names it among all machines."""
        return f"{self.attempt}/{self.name}"

    @property
    def age(self) -> tuple[int, float]:
        return self.attempt, self.time


class Checkpoints:
    """Those of one job on this machine, as one node of one attempt sees them."""

    def __init__(self, folder: Path, attempt: int, rank: int = 0, nodes: int = 1) -> None:
        self.files = folder / "files"
        self.attempt, self.rank, self.nodes = attempt, rank, nodes
        self._seals = folder / "seals.json"

    def whole(self) -> list[Seal]:
        """What this node can go on from, the newest first."""
        found = [
            seal
            for seal in self._read().values()
            if self._suffices(seal) and look(self.files / seal.name)[0] == seal.fingerprint
        ]
        return sorted(found, key=lambda seal: seal.age, reverse=True)

    def _suffices(self, seal: Seal) -> bool:
        own = (seal.rank, seal.nodes, seal.version) == (self.rank, self.nodes, 1)
        return seal.nodes == 1 or seal.merged or own

    def only_parts(self) -> bool:
        """Whether this machine has checkpoints and none that it could go on from."""
        return bool(self._read()) and not self.whole()

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
                again = known is not None and known.attempt == self.attempt
                seals[path.name] = Seal(
                    name=path.name,
                    attempt=self.attempt,
                    time=changed,
                    fingerprint=fingerprint,
                    rank=self.rank,
                    nodes=self.nodes,
                    version=known.version + 1 if known and again else 1,
                )
                new.append(seals[path.name])
        if new:
            self._write(seals)
        return sorted(new, key=lambda seal: seal.age)

    def adopt(self, other: Checkpoints) -> None:
        """Begin with the newest of another job's here, as if it was written before the first attempt."""
        for seal in other.whole()[:1]:
            self.files.mkdir(parents=True, exist_ok=True)
            source, target = other.files / seal.name, self.files / seal.name
            if source.is_dir():
                shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True)
            else:
                shutil.copy2(source, target)
            fingerprint, _ = look(target)
            self._write(
                {
                    **self._read(),
                    seal.name: seal.model_copy(update={"attempt": 0, "fingerprint": fingerprint}),
                }
            )

    def restore(self, store: Store, attempt: int | None = None) -> None:
        """Fetch the store's newest complete checkpoint where this machine has none as new.

        The newest here may be a part that the other nodes lack, then what they can have is fetched too.
        `attempt` is what it counts as having been written by, where the store is another job's.
        """
        found, here = store.complete(), self.whole()
        if not found:
            return
        newest, *_ = found
        if any(seal.key == newest.key for seal in here):
            return
        if self.nodes == 1 and here and here[0].age >= newest.age:
            return
        self.files.mkdir(parents=True, exist_ok=True)
        store.fetch(newest, self.files / newest.name, self.rank if self.nodes == newest.nodes else None)
        fingerprint, _ = look(self.files / newest.name)
        seal = Seal(
            name=newest.name,
            attempt=newest.attempt if attempt is None else attempt,
            time=newest.time,
            fingerprint=fingerprint,
            rank=self.rank,
            nodes=newest.nodes,
            merged=True,
        )
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
    """Seals and stores checkpoints beside a running training; `warn` is told once of each kind of trouble.

    `also` is called with it at each look, before it.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        store: Store | None,
        since: float,
        warn: Callable[[str], None],
        *,
        also: Callable[[Keeper], None] = lambda _: None,
    ) -> None:
        super().__init__(name="checkpoints", daemon=True)
        self.checkpoints = checkpoints
        self.store = store
        self.since = since
        self.warn = warn
        self.also = also
        self._over = threading.Event()
        self._left: dict[str, Seal] = {}  # sealed, but not in the store yet
        self._lacking: dict[str, float] = {}  # others' names that nothing here has, and since when
        self._asked = 0.0
        self._said: set[str] = set()

    def run(self) -> None:
        while not self._over.wait(LOOK_S):
            guarded(lambda: self.also(self), self._warn_once)
            self.look(time.time() - SETTLE_S)

    def look(self, before: float) -> None:
        guarded(lambda: self._look(before), self._warn_once)

    def begin_again(self, at: float) -> None:
        """The processes have ended and start anew: what they left half written is nobody's."""
        self.look(at - SETTLE_S)
        self.since = at

    def end(self, before: float) -> None:
        """The last look, once the training has ended other than well."""
        guarded(lambda: self._end(before), self._warn_once)

    def _look(self, before: float) -> None:
        self._left |= {seal.name: seal for seal in self.checkpoints.seal(self.since, before)}
        for name, seal in list(self._left.items()):
            if self.store is not None:
                self.store.put(seal, self.checkpoints.files / name)
            else:
                self._warn_once(STAYS)
            del self._left[name]
        if (
            self.store is not None
            and self.checkpoints.nodes > 1
            and time.monotonic() > self._asked + OTHERS_S
        ):
            self._asked = time.monotonic()
            self._look_at_others(self.store)

    def _look_at_others(self, store: Store) -> None:
        """This node has no part of what others have stored and it has not begun for a while."""
        here = self.checkpoints
        known = store.others(here.attempt, here.rank)
        for name in known:
            since = self._lacking.setdefault(name, time.monotonic())
            if not self._begun(here.files / name) and time.monotonic() >= since + LACKING_S:
                about = {"attempt": here.attempt, "rank": here.rank, "nodes": here.nodes}
                store.put_absent(Seal(name=name, time=time.time(), fingerprint="", **about))
        self._lacking = {name: since for name, since in self._lacking.items() if name in known}

    def _begun(self, path: Path) -> bool:
        found, changed = look(path)
        return changed >= self.since if found else path.exists()

    def _end(self, before: float) -> None:
        self._look(before)
        if self.store is not None and self.checkpoints.nodes > 1:
            self.store.put_ended(self.checkpoints.attempt, self.checkpoints.rank)

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
    except NodeFailed:
        raise
    except Exception as error:
        log.exception("checkpoints")
        warn(f"checkpoints: {type(error).__name__}: {error}"[:2000])
        return None
