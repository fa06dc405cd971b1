"""The checkpoints of one node of a job: where it finds them, and who looks after them while it trains."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from trainforge.config.errors import NodeFailed
from trainforge.config.manifest import Manifest
from trainforge.config.messages import NodeKey, RunOrder
from trainforge.executor.checkpoint_store import Store
from trainforge.executor.checkpoints import Checkpoints, Keeper, guarded
from trainforge.executor.restarts import Restarts
from trainforge.executor.spool import KEEP_S

ONLY_PARTS = "this machine has parts of checkpoints and not those that other machines wrote"


@dataclass(frozen=True)
class Keeping:
    """`warn` is told of trouble that no training is to fail for."""

    data_dir: Path
    key: NodeKey
    order: RunOrder
    warn: Callable[[str], None]

    @property
    def folder(self) -> Path:
        return self.data_dir / "checkpoints" / self.key.job

    def here(self) -> Checkpoints:
        return Checkpoints(self.folder, self.key.attempt, self.key.rank, self.order.nodes)

    def store(self, manifest: Manifest) -> Store | None:
        """Raises NodeFailed where such a URL can never be opened here."""
        url, keep = manifest.checkpoint.store, manifest.checkpoint.keep
        return guarded(lambda: Store(url, self.key.job, keep), self.warn) if url else None

    def resumable(self, manifest: Manifest) -> list[str]:
        """What this node could go on from, the newest first."""
        if manifest.checkpoint.resume == "never" or (self.key.attempt == 1 and not self.order.resume_of):
            return []
        if self.order.resume_of and not self.here().whole():
            self._take_over(manifest, self.order.resume_of)
        return self.offers(self.store(manifest))

    def _take_over(self, manifest: Manifest, job: str) -> None:
        """Begin with what the job has left that this one goes on from."""
        here, url = self.here(), manifest.checkpoint.store
        if url:
            guarded(lambda: here.restore(Store(url, job, manifest.checkpoint.keep), attempt=0), self.warn)
        else:
            before = Checkpoints(
                self.folder.with_name(job), self.key.attempt, self.key.rank, self.order.nodes
            )
            guarded(lambda: here.adopt(before), self.warn)
        if not here.whole():
            where = "in checkpoint.store" if url else "on this machine"
            self.warn(f"job {job[:8]} has left no checkpoint {where} to go on from: this one begins anew")

    def newest(self, manifest: Manifest) -> str:
        return next(iter(self.resumable(manifest)), "")

    def offers(self, store: Store | None) -> list[str]:
        here = self.here()
        if store is not None:
            guarded(lambda: here.restore(store), self.warn)
        if here.only_parts():
            self.warn(ONLY_PARTS if store else f"{ONLY_PARTS}; checkpoint.store would bring them here")
        return [seal.key for seal in here.whole()][:16]

    def keeper(self, manifest: Manifest, since: float, run: Path) -> Keeper:
        store = self.store(manifest)
        restarts = Restarts(run, self.here(), lambda: self.offers(store), manifest.retry.in_place, self.warn)
        return Keeper(self.here(), store, since, self.warn, also=restarts.look)

    def clear(self, manifest: Manifest | None) -> None:
        """The job is over."""
        shutil.rmtree(self.folder, ignore_errors=True)
        with contextlib.suppress(NodeFailed):
            if manifest is not None and (store := self.store(manifest)) is not None:
                guarded(store.clear, self.warn)


def tidy(data_dir: Path) -> None:
    """Remove the checkpoints of jobs that have gone from here, once nobody has resumed them for `KEEP_S`."""
    for left in (data_dir / "checkpoints").glob("*"):
        marked = left / "seals.json"
        since = (marked if marked.exists() else left).stat().st_mtime
        if time.time() - since > KEEP_S and not any((data_dir / "nodes").glob(f"{left.name}.*")):
            shutil.rmtree(left, ignore_errors=True)
