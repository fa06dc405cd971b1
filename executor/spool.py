"""What was published, or could not be, kept for a while: `spool/<node>/` below the data directory.

    record.json, collected.json, artifacts/   what the result is made of
    orders.jsonl                              where it belongs
    files/                                    the artifacts again, by their own names

A result that somebody deletes from the remote can be published again from here, and an artifact that the
remote refused can be fetched from here. It lies here for `KEEP_S`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import time
from collections.abc import Iterable
from pathlib import Path

from trainforge.config.messages import JobId, NodeKey

log = logging.getLogger(__name__)

KEEP_S = 14 * 86_400.0
PARTS = ("record.json", "collected.json", "artifacts", "orders.jsonl", "blocked.json")


class Spool:
    """Of one executor. Every step may be repeated after a kill."""

    def __init__(self, data_dir: Path) -> None:
        self.folder = data_dir / "spool"

    def keep(self, node: NodeKey, folder: Path) -> None:
        """Take over what a node's folder has of its result, which must have been rendered."""
        if not (folder / "record.json").exists():
            return
        kept = self.folder / str(node)
        kept.mkdir(parents=True, exist_ok=True)
        for name in reversed(PARTS):  # the record last: it is what `keep` looks for
            with contextlib.suppress(FileNotFoundError):
                (folder / name).rename(kept / name)
        _name_files(kept)

    def find(self, job: JobId) -> Path | None:
        """What is kept of a job, the newest attempt's."""
        found = [path for path in self._entries() if path.name.startswith(f"{job}.")]
        return max(found, key=lambda path: int(path.name.split(".")[1]), default=None)

    def tidy(self) -> None:
        for path in self._entries():
            if time.time() - path.stat().st_mtime > KEEP_S:
                shutil.rmtree(path, ignore_errors=True)

    def published(self) -> list[Path]:
        """Those of which all is on the remote as well, the oldest first."""
        found = [path for path in self._entries() if not (path / "blocked.json").exists()]
        return sorted(found, key=lambda path: path.stat().st_mtime)

    def _entries(self) -> Iterable[Path]:
        return sorted(self.folder.iterdir()) if self.folder.is_dir() else ()


def _name_files(kept: Path) -> None:
    """Second names for the artifacts that a person understands; they were checked when collected."""
    try:
        copies: dict[str, str] = json.loads((kept / "collected.json").read_bytes())["copies"]
    except (OSError, ValueError, KeyError):
        return
    for path, copy in copies.items():
        target = kept / "files" / path
        with contextlib.suppress(OSError):
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(kept / "artifacts" / copy, target)
