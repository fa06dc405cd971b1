"""Watches one training from start to end: follows its files, measures it, stops it, and says how it ended."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from trainforge.config.failpoints import failpoint
from trainforge.config.messages import Ended, Log, Note, StopOrder
from trainforge.executor import endings
from trainforge.executor.deadline import Deadline
from trainforge.executor.follow import Follower
from trainforge.executor.job_gpus import JobGpus
from trainforge.executor.journal import Journal
from trainforge.executor.launch import WARNED
from trainforge.executor.supervise import Exit, Supervised
from trainforge.executor.tables import Tables

TOLD = "warned.told"
BUSY_S = 0.05
QUIET_S = 0.15
USAGE_S = 10.0


class Watch:
    """`wait(seconds)` sleeps until something was ordered, `stopping()` gives what was ordered."""

    def __init__(
        self,
        supervised: Supervised,
        follower: Follower,
        journal: Journal,
        *,
        wait: Callable[[float], None],
        stopping: Callable[[], StopOrder | None],
        out_of_memory: Callable[[], bool] = lambda: False,
        gpus: JobGpus | None = None,
    ) -> None:
        self.supervised = supervised
        self.follower = follower
        self.journal = journal
        self.wait = wait
        self.stopping = stopping
        self.out_of_memory = out_of_memory
        self.gpus = gpus or JobGpus([], supervised.run)
        self.spec: dict[str, Any] = supervised.spec()
        roots = [Path(self.spec["cwd"]), supervised.run.parent / "output"]
        self.tables = Tables(journal, roots, (supervised.run / "spec.json").stat().st_mtime)
        self.stop: StopOrder | None = None
        self._counted = False
        self._warned = (supervised.run / TOLD).exists()
        self._measured = time.monotonic()

    def until_ended(self) -> Ended:
        logs = self.supervised.run / "logs"
        while True:
            done = self.supervised.exit()
            self.follower.add_ranks(logs)
            moved = self.follower.step()
            if done is not None:
                failpoint("28.executor.exited")
                self.follower.drain()
                self.tables.look(final=True)
                return self._ended(done)
            self._obey()
            self._tell()
            self.tables.look()
            self._count()
            self._measure()
            self.wait(BUSY_S if moved else QUIET_S)

    def _obey(self) -> None:
        stop = self.stopping()
        if stop is not None and self.stop is None:
            failpoint("44.executor.stop")
            self.stop = stop
            self.supervised.stop(stop.grace_s)

    def _count(self) -> None:
        """Once all processes have started, see that they are in one world of the planned size."""
        if self._counted:
            return
        ranks = self.supervised.ranks()
        least, most = self.spec["least_world"], self.spec["world_size"]
        wrong = [rank for rank in ranks if not least <= rank["world_size"] <= most]
        self._counted = len(ranks) >= self.spec["processes"] or bool(wrong)
        if wrong and self.stop is None:
            size = wrong[0]["world_size"]
            reason = f"the processes see a world of {size} instead of {self.spec['world_size']}"
            self.stop = StopOrder(code="wrong_world_size", reason=reason, grace_s=5)
            self.supervised.stop(5)

    def _tell(self) -> None:
        """Once, that the training was warned of its end."""
        if self._warned or not (self.supervised.run / WARNED).exists():
            return
        self._warned = True
        (self.supervised.run / TOLD).touch()
        end = Deadline(**self.spec["end"])
        text = f"warned of its end in {end.at - end.warn_at:.0f} s, by {end.words}"
        self.journal.append("note", Note(level="warning", text=text))
        self.journal.append("log", Log(rank=-1, stream="stderr", text=f"TrainForge: {text}\n"))

    def _measure(self) -> None:
        now = time.monotonic()
        self.gpus.sample()
        if now - self._measured >= USAGE_S:
            self._measured = now
            self.journal.append("usage", self.gpus.usage(self.supervised.usage()))

    def _ended(self, done: Exit) -> Ended:
        if done.memory_limit and not done.stopped and done.exit_code and self.out_of_memory():
            done = replace(done, stopped="memory_limit")  # the kernel was faster than the supervisor
        used = {"peak_memory_bytes": done.peak_memory_bytes or None, "cpu_s": round(done.cpu_s, 2)}
        used |= {"peak_disk_bytes": done.peak_disk_bytes, "log_bytes": done.log_bytes}
        return self._how(done).model_copy(update={**used, "gpus": self.gpus.used()})

    def _how(self, done: Exit) -> Ended:
        return endings.ended(
            done,
            endings.last_words(self.supervised.run / "logs"),
            stop=self.stop or self.stopping(),
            ranks=self.supervised.ranks(),
            processes=int(self.spec["processes"]),
            world_size=int(self.spec["world_size"]),
            least_world=int(self.spec["least_world"]),
            run_timeout=self.spec.get("timeout_s"),
            contained=bool(self.spec.get("remove")),
        )
