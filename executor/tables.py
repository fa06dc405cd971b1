"""Follows the metrics.csv that Lightning's CSVLogger writes, and journals its rows as metrics.

The logger writes the whole file anew when a new name comes up, so what was taken is counted in rows. How many
is journalled with them: whoever follows next takes none twice.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

from trainforge.executor import lightning, metrics, untrusted
from trainforge.executor.journal import Journal

EVERY_S = 1.0
LARGEST = 16 * 2**20  # it is read as a whole each time it has changed
PATTERNS = ("lightning_logs/version_*/metrics.csv", "*/version_*/metrics.csv", "*/*/version_*/metrics.csv")


class Tables:
    """Those below `roots` that were written since the training began."""

    def __init__(self, journal: Journal, roots: list[Path], since: float) -> None:
        self.journal = journal
        self.roots = roots
        self.since = since
        self._seen: dict[Path, tuple[int, int]] = {}
        self._looked = 0.0

    def look(self, *, final: bool = False) -> None:
        now = time.monotonic()
        if now - self._looked < EVERY_S and not final:
            return
        self._looked = now
        for root, path in self._found():
            about = path.lstat()
            seen = (about.st_size, about.st_mtime_ns)
            if self._seen.get(path) != seen and about.st_mtime >= self.since and about.st_size <= LARGEST:
                self._seen[path] = seen
                with contextlib.suppress(FileNotFoundError):  # it was something else than it seemed
                    self._take(root, path)

    def _found(self) -> list[tuple[Path, Path]]:
        found = {path: root for root in self.roots for pattern in PATTERNS for path in root.glob(pattern)}
        return sorted(
            (root, path) for path, root in found.items() if path.is_file() and not path.is_symlink()
        )

    def _take(self, root: Path, path: Path) -> None:
        name = f"table:{path}"
        with untrusted.open_below(root, path.relative_to(root)) as file:
            text = file.read(LARGEST).decode("utf-8", "replace")
        rows, taken = lightning.from_csv(text, int(self.journal.positions.get(name, 0)))
        found = [metric for row in rows if (metric := metrics.from_mapping(row, 0)) is not None]
        if found:
            self.journal.append_step([("metric", each) for each in found], {name: taken})
