"""Keeps an executor's files within its budget and its disk above the low mark, before work is refused for it.

What goes, in this order: halves of what was being made when something was killed, results past their time,
the least recently used entries of the caches that no job has (see `budget`), and the oldest results that are
on their remote as well. Workspaces go by themselves, when their job's end is known everywhere.
"""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainforge.config import disk
from trainforge.config.errors import NodeFailed
from trainforge.config.settings import ExecutorSettings
from trainforge.executor import budget, keeping
from trainforge.executor.budget import Entry
from trainforge.executor.spool import Spool
from trainforge.executor.supervisor import write_atomically

log = logging.getLogger(__name__)

EVERY_S = 60.0
STATE = "disk.json"  # why nothing new is taken, for `capabilities` and other programs


@dataclass
class Freed:
    """What a clean-up removed, or would; and what it left because jobs have it."""

    removed: list[Entry] = field(default_factory=list)
    in_use: list[tuple[Entry, list[str]]] = field(default_factory=list)

    @property
    def size(self) -> int:
        return sum(entry.size for entry in self.removed)

    def told(self) -> dict[str, Any]:
        """For programs."""
        return {
            "freed_bytes": self.size,
            "removed": [_told(entry) for entry in self.removed],
            "in_use": [_told(entry) | {"jobs": jobs} for entry, jobs in self.in_use],
        }


def _told(entry: Entry) -> dict[str, Any]:
    about = {"kind": entry.kind, "name": entry.name, "path": str(entry.path)}
    return about | {"bytes": entry.size, "used": entry.used}


def clean(data_dir: Path, *, older_than: float = 0.0, dry_run: bool = False) -> Freed:
    """Remove all that is kept for later jobs and has not been used for `older_than` seconds."""
    freed, held = Freed(), budget.leased(data_dir)
    before = time.time() - older_than
    for half, whole in budget.halves(data_dir):
        size = budget.size_of(half)
        if dry_run or budget.remove_half(half, whole):
            freed.removed.append(Entry("unfinished", half, size=size, name=whole.name[:12]))
    for entry in sorted(budget.entries(data_dir), key=lambda entry: (entry.kind, entry.used)):
        if entry.used > before and older_than:
            continue
        if entry.path in held or not _gone(data_dir, entry.path, dry_run=dry_run):
            freed.in_use.append((entry, held.get(entry.path, [])))
        else:
            freed.removed.append(entry)
    return freed


def _gone(data_dir: Path, path: Path, *, dry_run: bool) -> bool:
    if not dry_run:
        return budget.remove(data_dir, path)
    with budget.tried(path) as free:
        return free


class Housekeeper:
    """Of one executor; from any thread."""

    def __init__(self, settings: ExecutorSettings) -> None:
        self.settings = settings
        self.data_dir = settings.data_dir
        self._lock = threading.Lock()
        self._known: dict[Path, Entry] = {}

    def run(self, closing: threading.Event, wake: threading.Event) -> None:
        """Look now and then, and when woken."""
        while not closing.is_set():
            self.refusal()
            wake.wait(EVERY_S)
            wake.clear()

    def refuses(self) -> str:
        """The same as was found last, in no time, unless the disk is low now."""
        if self._lacks() > 0:
            return self.refusal()
        return refusal_of(self.data_dir)

    def refusal(self) -> str:
        """Why nothing new is to be taken, after all was done about it; empty while there is room."""
        with self._lock:
            self._tidy()
            self._make_room(self._lacks)
            self._make_room(self._over)
            why = disk.low(self.data_dir, self.settings.disk_low)
            if not why and self._over() > 0:
                most = self.settings.disk_budget_gb or 0
                why = f"its files take {self._used() / 1e9:.2f} GB, disk_budget_gb is {most:g}"
            with contextlib.suppress(OSError):
                write_atomically(self.data_dir / STATE, {"refusal": why})
            return why

    def make_room(self, size: int, what: str) -> None:
        """Before something of this size is written; 0 while something of unknown size is.

        Raises:
            NodeFailed: `disk_full`, it does not fit.
        """

        def lack() -> int:
            over = self._over() + size if self.settings.disk_budget_gb and size else 0
            return max(self._lacks() + size, over)

        with self._lock:
            self._make_room(lack)
            needed = lack()
        if needed > 0:
            raise NodeFailed(
                f"{what} of {size / 1e6:,.1f} MB does not fit on this machine: by disk_low or disk_budget_gb "
                f"{needed / 1e6:,.1f} MB more would have to be free below {self.data_dir}",
                code="disk_full",
            )

    def _lacks(self) -> int:
        """By how much the disk is below its low mark; less than 0 while there is room."""
        return self.settings.disk_low - shutil.disk_usage(self.data_dir).free

    def _over(self) -> int:
        """By how much the files are above the budget; less than 0 while there is room."""
        most = self.settings.disk_budget_gb
        return 0 if most is None else self._used() - int(most * 1e9)

    def _used(self) -> int:
        """Everything below the data directory."""
        found = budget.entries(self.data_dir, self._known)
        self._known = {entry.path: entry for entry in found}
        apart = {self.data_dir / below for below in budget.KINDS.values()} | {self.data_dir / "cache"}
        others = [path for path in self.data_dir.iterdir() if path not in apart]
        return sum(entry.size for entry in found) + sum(map(budget.size_of, others))

    def _tidy(self) -> None:
        Spool(self.data_dir).tidy()
        keeping.tidy(self.data_dir)
        for half, entry in budget.halves(self.data_dir):
            budget.remove_half(half, entry)

    def _make_room(self, lacks: Callable[[], int]) -> None:
        """Remove what may go until nothing `lacks` any more."""
        held = set(budget.leased(self.data_dir))
        while (need := lacks()) > 0:
            chosen = budget.choose(budget.entries(self.data_dir, self._known), held, need)
            for entry in chosen:
                held.add(entry.path)
                if budget.remove(self.data_dir, entry.path):
                    log.info("removed %s %s: %.1f MB", entry.kind, entry.path.name, entry.size / 1e6)
            if not chosen:
                break
        for path in Spool(self.data_dir).published():
            if lacks() <= 0:
                return
            shutil.rmtree(path, ignore_errors=True)
            log.info("removed the kept result %s, which is on its remote", path.name)


def refusal_of(data_dir: Path) -> str:
    """What the housekeeper of the executor there found last."""
    try:
        found: dict[str, Any] = json.loads((data_dir / STATE).read_bytes())
        return str(found["refusal"])
    except (OSError, ValueError, KeyError):
        return ""
