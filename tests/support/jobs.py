"""Nodes that want data, without an executor around them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainforge.config.manifest import Manifest, parse_manifest
from trainforge.config.result import DataRecord
from trainforge.executor import budget, data
from trainforge.executor.commands import Setup


def manifest(*entries: dict[str, Any], secrets: tuple[str, ...] = ()) -> Manifest:
    text = "project: {name: p}\ntraining: {script: t.py}\n"
    return parse_manifest(f"{text}data: {json.dumps(entries)}\nsecrets: {json.dumps(secrets)}\n")


class Job:
    """One node that wants data; all of a test share a machine."""

    def __init__(
        self, root: Path, name: str = "a", stopping: Callable[[], bool] = lambda: False, **given: Any
    ) -> None:
        self.folder = root / "nodes" / f"{name}.1.0"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.told: list[str] = []
        setup = Setup(
            self.folder / "setup.log", time.monotonic() + 60, stopping,
            lease=lambda entry: budget.lease(self.folder, entry),
        )  # fmt: skip
        self.node = data.Node(self.folder, root / "cache" / "data", setup, tell=self.told.append, **given)

    def get(self, *entries: dict[str, Any], secrets: tuple[str, ...] = ()) -> Path:
        return data.prepare(manifest(*entries, secrets=secrets), self.node).folder

    def records(self) -> list[DataRecord]:
        return data.recorded(self.folder)

    def record(self) -> dict[str, Any]:
        (found,) = self.records()
        return found.model_dump()
