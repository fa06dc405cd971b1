"""A node's journal: append-only, numbered from 1 without gaps, readable again after a crash at any byte.

On disk each line is one record and, beside it, what only the executor needs: `at` says how far a followed
file had been read, `more` that the next line belongs to the same step. A torn last line and an unfinished
step are cut off when the journal is opened, so a record and the file position it stands for live or die
together.
"""

from __future__ import annotations

import json
import os
import threading
import time
from array import array
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from trainforge.config.messages import Record, RecordKind

BATCH_RECORDS = 1000
BATCH_BYTES = 3 * 1024 * 1024
STREAMED: frozenset[str] = frozenset({"log", "metric", "usage"})

Entry = tuple[RecordKind, BaseModel]


class Journal:
    """One writer thread, any number of readers."""

    def __init__(self, path: Path, notify: Callable[[], None] = lambda: None) -> None:
        self.path = path
        self.positions: dict[str, Any] = {}  # followed file -> how far it is journalled
        self.mask: Callable[[RecordKind, dict[str, Any]], dict[str, Any]] = lambda _, data: data
        self._notify = notify
        self._lock = threading.Lock()
        self._starts = array("Q")
        self._kept: list[Record] = []  # everything but logs, metrics and usage: there are few
        self._file = path.open("a+b", buffering=0)
        self._end = self._load()

    def _load(self) -> int:
        self._file.seek(0)
        end = 0
        step: list[tuple[int, dict[str, Any]]] = []
        start = 0
        for line in self._file.readlines():
            data = _whole(line)
            if data is None:
                break
            step.append((start, data))
            start += len(line)
            if not data.get("more"):
                for position, item in step:
                    self._remember(position, item)
                step, end = [], start
        self._file.truncate(end)
        return end

    def _remember(self, position: int, data: dict[str, Any]) -> None:
        self._starts.append(position)
        if data.get("at"):
            self.positions.update(data["at"])
        if data["kind"] not in STREAMED:
            self._kept.append(_record(data))

    def append(self, kind: RecordKind, data: BaseModel) -> None:
        self.append_step([(kind, data)])

    def append_step(self, entries: Sequence[Entry], at: Mapping[str, Any] | None = None) -> None:
        """Add records that stand or fall together, with the file positions that they reach."""
        now = time.time()
        with self._lock:
            lines: list[tuple[dict[str, Any], bytes]] = []
            for index, (kind, model) in enumerate(entries):
                item: dict[str, Any] = {
                    "n": len(self._starts) + index + 1,
                    "time": now,
                    "kind": kind,
                    "data": self.mask(kind, model.model_dump(mode="json")),
                }
                if index + 1 < len(entries):
                    item["more"] = True
                elif at:
                    item["at"] = dict(at)
                lines.append((item, json.dumps(item, separators=(",", ":")).encode() + b"\n"))
            self._write(b"".join(line for _, line in lines))
            for item, line in lines:
                self._remember(self._end, item)
                self._end += len(line)
        self._notify()

    def _write(self, data: bytes) -> None:
        try:
            view = memoryview(data)
            while view:
                view = view[self._file.write(view) or 0 :]
        except OSError:
            self._file.truncate(self._end)  # a full disk leaves no half record behind
            raise

    def sync(self) -> None:
        with self._lock:
            if not self._file.closed:
                os.fdatasync(self._file.fileno())

    @property
    def last(self) -> int:
        return len(self._starts)

    def find(self, kind: RecordKind) -> Record | None:
        """The newest record of a kind that is not a stream."""
        with self._lock:
            return next((record for record in reversed(self._kept) if record.kind == kind), None)

    def after(self, number: int) -> list[Record]:
        """What follows `number`, as much as one batch may carry."""
        with self._lock:
            if number >= len(self._starts) or self._file.closed:
                return []
            start = self._starts[number]
            stop = self._end
            if len(self._starts) > number + BATCH_RECORDS:
                stop = self._starts[number + BATCH_RECORDS]
            data = os.pread(self._file.fileno(), min(stop - start, BATCH_BYTES), start)
        lines = data.splitlines(keepends=True)
        return [_record(json.loads(line)) for line in lines if line.endswith(b"\n")]

    def close(self) -> None:
        with self._lock:
            self._file.close()


def _whole(line: bytes) -> dict[str, Any] | None:
    """The record in a line, if it is one from end to end."""
    try:
        data = json.loads(line) if line.endswith(b"\n") else None
        if isinstance(data, dict) and isinstance(data.get("at", {}), dict):
            _record(data)
            return data
    except (ValueError, KeyError, RecursionError):
        pass
    return None


def _record(data: dict[str, Any]) -> Record:
    return Record(n=data["n"], time=data["time"], kind=data["kind"], data=data["data"])
