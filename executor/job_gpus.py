"""The GPUs of one node's job: looked at and held before they are given, measured while it trains."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

from trainforge.config.errors import NodeFailed
from trainforge.config.messages import GpuUse, Usage
from trainforge.executor import gpus
from trainforge.executor.gpu_health import Reading
from trainforge.executor.supervisor import write_atomically

SAMPLE_S = 2.0
SPARE = 20  # nvidia-smi takes long to answer: it is asked for a twentieth of the time at most
PATIENCE_S = 10.0  # until whoever had it before is gone


class JobGpus:
    """`file` keeps what was measured over a restart of this program."""

    def __init__(self, uuids: Sequence[str], file: Path) -> None:
        self.uuids = list(uuids)
        self.file = file
        self.held: dict[str, int] = {}  # UUID -> descriptor
        self.meter = gpus.Meter(self.uuids, self._read())
        self._next = 0.0
        self._last: list[Reading] = []

    def _read(self) -> dict[str, dict[str, float]]:
        try:
            total: dict[str, dict[str, float]] = json.loads(self.file.read_text())
        except (OSError, ValueError):
            return {}
        return total

    def take(self) -> None:
        """Hold them all, if they are there and healthy; again without effect.

        Raises:
            NodeFailed: `gpu_unavailable`, with what is wrong with which.
        """
        missing = [uuid for uuid in self.uuids if uuid not in self.held]
        if not missing:
            return
        for uuid in missing:
            descriptor = gpus.hold(uuid, PATIENCE_S)
            if descriptor is None:
                self.release()
                raise _unavailable(uuid, "another job on this machine has it")
            self.held[uuid] = descriptor
        found = gpus.readings()
        said = gpus.problems(found, self.held)
        for uuid in missing:
            why = said.get(uuid, "this machine has it no more")
            if why:
                self.release()
                raise _unavailable(uuid, why)

    @property
    def descriptors(self) -> list[int]:
        """What its supervisor inherits, and holds them with for as long as it lives."""
        return list(self.held.values())

    def release(self) -> None:
        for descriptor in self.held.values():
            os.close(descriptor)
        self.held.clear()

    def sample(self) -> None:
        """Measure, if the last time is long enough ago."""
        begun = time.monotonic()
        if self.uuids and begun >= self._next:
            self._last = self.meter.add(gpus.readings())
            write_atomically(self.file, self.meter.total)
            took = time.monotonic() - begun
            self._next = begun + max(SAMPLE_S, took * SPARE)

    def usage(self, usage: Usage) -> Usage:
        """With what the last sample said."""
        percent = [one.percent for one in self._last]
        memory = [one.used_bytes for one in self._last]
        return usage.model_copy(update={"gpu_percent": percent, "gpu_memory_bytes": memory})

    def used(self) -> list[GpuUse]:
        return self.meter.used()


def _unavailable(uuid: str, why: str) -> NodeFailed:
    return NodeFailed(f"GPU {uuid}: {why}", code="gpu_unavailable")
