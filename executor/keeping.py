"""The checkpoints of one node of a job: where it finds them, and who looks after them while it trains."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from trainforge.config.errors import NodeFailed
from trainforge.config.manifest import Manifest
from trainforge.config.messages import NodeKey, RunOrder
from trainforge.executor.checkpoint_store import Store
from trainforge.executor.checkpoints import Checkpoints, Keeper, guarded
from trainforge.executor.restarts import Restarts

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
        if self.key.attempt == 1 or manifest.checkpoint.resume == "never":
            return []
        return self.offers(self.store(manifest))

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
