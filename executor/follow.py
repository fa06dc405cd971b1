"""Follows the files that a training writes and turns them into journal records.

The position reached is journalled with the records themselves (`journal.py`), so a follower that starts
again goes on where the journal ends: nothing twice, nothing missing. Only whole lines are taken while the
training runs; what is left without a line end is taken when it has ended.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from trainforge.config.messages import Log, Note
from trainforge.executor import metrics, untrusted
from trainforge.executor.journal import Entry, Journal

READ = 128 * 1024
LINE_LIMIT = 64 * 1024
REWRITTEN = 4096  # a progress bar that grows past this without a line end is cut at its last rewrite
TOTAL_LIMIT = 200 * 1024 * 1024
CUT = " … [line cut]"

Stream = Literal["stdout", "stderr", "setup"]


@dataclass
class Source:
    """One followed file. `rank` -1 is the node's own log; `kind` metrics is a file of JSON lines."""

    path: Path
    rank: int
    kind: Literal["stdout", "stderr", "setup", "metrics"]
    offset: int = 0
    cutting: bool = False  # inside a line that was too long: the rest of it is skipped

    @property
    def name(self) -> str:
        return f"{self.kind}:{self.path.name}"


class Follower:
    """Every file of one node. `step` takes what there is; call it until it returns False."""

    def __init__(
        self,
        journal: Journal,
        patterns: metrics.Patterns | None = None,
        limit: int = TOTAL_LIMIT,
        masked: Callable[[], bool] = lambda: True,
    ) -> None:
        self.journal = journal
        self.masked = masked  # whether what may hold secrets can be masked by now
        self.patterns = patterns
        self.limit = limit
        self.sources: dict[str, Source] = {}
        self.taken = 0

    def add(self, path: Path, rank: int, kind: Literal["stdout", "stderr", "setup", "metrics"]) -> None:
        source = Source(path, rank, kind)
        if source.name in self.sources:
            return
        source.offset, source.cutting = self.journal.positions.get(source.name, (0, False))
        self.taken += source.offset
        self.sources[source.name] = source

    def add_ranks(self, logs: Path) -> None:
        """Follow every `<rank>.stdout` and `<rank>.stderr` that has appeared, and the launcher's own."""
        try:
            names = sorted(os.listdir(logs))  # noqa: PTH208
        except FileNotFoundError:
            return
        for name in names:
            stem, _, stream = name.rpartition(".")
            rank = -1 if stem == "node" else int(stem) if stem.isdigit() else None
            if rank is None:
                continue
            if stream == "stdout":
                self.add(logs / name, rank, "stdout")
            elif stream == "stderr":
                self.add(logs / name, rank, "stderr")

    def step(self, *, final: bool = False) -> bool:
        """Journal what is new in each file; whether anything was.

        A file written earlier goes first, and the later ones of its process wait until it has been read: an
        error comes after what was printed before it.
        """
        found, unread = False, set()
        for source in sorted(self.sources.values(), key=_written):
            if source.rank in unread and source.kind != "metrics":
                continue
            begin = source.offset
            if self._step(source, final):
                found = True
                if source.kind != "metrics" and source.path.lstat().st_size - begin > READ:
                    unread.add(source.rank)
        return found

    def drain(self) -> None:
        while self.step(final=True):
            pass

    def _step(self, source: Source, final: bool) -> bool:
        if source.kind == "metrics" and not self.masked():
            return False
        try:
            with untrusted.open_plain(source.path) as file:
                file.seek(source.offset)
                data = file.read(READ)
        except FileNotFoundError:
            return False
        if not data:
            return False
        if self.taken > self.limit:
            return self._skip(source)
        chunk = take(data, cutting=source.cutting, final=final and len(data) < READ)
        if not chunk.size:
            return False
        reached = (source.offset + chunk.size, chunk.cutting)
        entries = self._entries(source, chunk.text)
        if entries:
            self.journal.append_step(entries, {source.name: reached})
        source.offset, source.cutting = reached
        self.taken += chunk.size
        return True

    def _skip(self, source: Source) -> bool:
        """Too much was printed: keep none of it, say so once."""
        source.offset = source.path.lstat().st_size
        if not self.journal.positions.get("over"):
            note = Note(level="warning", text=f"output beyond {self.limit // 2**20} MiB is not kept")
            self.journal.append_step([("note", note)], {source.name: (source.offset, False), "over": True})
        return False

    def _entries(self, source: Source, text: str) -> list[Entry]:
        if not text:
            return []
        lines = text.split("\n")
        entries: list[Entry] = []
        if source.kind == "metrics":
            reported = [metrics.from_json(line, source.rank) for line in lines]
        elif source.rank >= 0:
            reported = [metrics.from_line(line, source.rank, self.patterns) for line in lines]
        else:
            reported = []
        entries += [("metric", metric) for metric in reported if metric is not None]
        if source.kind != "metrics":
            entries.append(("log", Log(rank=source.rank, stream=source.kind, text=text)))
        return entries


def _written(source: Source) -> tuple[int, bool]:
    """When a file was last written; stdout first where both were at once."""
    try:
        return source.path.lstat().st_mtime_ns, source.kind == "stderr"
    except FileNotFoundError:
        return 0, False


@dataclass(frozen=True)
class Chunk:
    """What `take` decided: `size` bytes are done with, `text` is what they say."""

    size: int
    text: str
    cutting: bool = False


def take(data: bytes, *, cutting: bool, final: bool) -> Chunk:
    """What to take from the front of what is unread: whole lines, unless a line is too long or the last.

    `cutting`: the front is the rest of a line whose beginning was already given out and cut.
    """
    lead = 0
    if cutting:
        lead = data.find(b"\n") + 1
        if not lead:
            return Chunk(len(data), "", cutting=True)
    rest = data[lead:]
    end = len(rest) if final else rest.rfind(b"\n") + 1
    if not end and len(rest) > REWRITTEN:
        end = rest.rfind(b"\r") + 1
    if not end and len(rest) > LINE_LIMIT:
        return Chunk(lead + LINE_LIMIT, _line(rest[: LINE_LIMIT + 1]), cutting=True)
    lines = rest[:end].removesuffix(b"\n").split(b"\n") if end else []
    return Chunk(lead + end, "".join(map(_line, lines)))


def _line(raw: bytes) -> str:
    """One line as text: of a progress bar only its last state, of a very long line its beginning."""
    shown = raw.rstrip(b"\r").rpartition(b"\r")[2]
    text = shown[:LINE_LIMIT].decode("utf-8", "replace")
    return text + (CUT if len(shown) > LINE_LIMIT else "") + "\n"
