"""A site with something on every page: jobs that ran, one that runs on three machines, and all they said."""

from __future__ import annotations

import math
from typing import Any

import sqlalchemy as sa

from support.web import Web
from trainforge.config.messages import Gpu, Load
from trainforge.sender import schema
from trainforge.sender.levels import level_of

EPOCHS, STEPS = 20, 30
MANIFEST = """project: {name: digits}
training:
  script: train.py
  params: {epochs: 20, batch_size: 96, learning_rate: 0.01}
metrics: {primary: val_accuracy, mode: max}
"""


class Lively:
    """`old` and `other` have ended, `running` trains on alpha, beta and gamma since ten minutes."""

    def __init__(self, site: Web) -> None:
        self.site = site
        self.now = site.sender.now()
        self.executors = [self._executor(name) for name in ("alpha", "beta", "gamma")]
        self.old = self._ended(0.01, 0)
        self.other = self._ended(0.03, 5)
        self.running = site.add_job(subject="Warm the learning rate up", author="Ada", manifest_text=MANIFEST)
        self._run()

    def _executor(self, name: str) -> str:
        gpu = Gpu(uuid=f"GPU-{name}", model="NVIDIA L4", memory_bytes=24 << 30)
        executor = self.site.add_executor(name, gpus=[gpu])
        load = Load(
            cpu_percent=62.0, memory_bytes=5 << 30, disk_free_bytes=9 << 30, gpu_percent=[91.0],
            gpu_memory_bytes=[17 << 30],
        )  # fmt: skip
        with self.site.sender.store.write() as c:
            mine = schema.executors.c.id == executor
            c.execute(sa.update(schema.executors).where(mine).values(load=load.model_dump()))
        return executor

    def _plan(self, rate: float) -> dict[str, Any]:
        adjusted = {"key": "batch_size", "before": 96, "after": 32, "rule": "divided by 3 processes"}
        nodes = [
            {"rank": rank, "executor": one, "gpus": [f"GPU-{rank}"]}
            for rank, one in enumerate(self.executors)
        ]
        params = {"epochs": EPOCHS, "batch_size": 32, "learning_rate": rate}
        return {"nodes": nodes, "processes_per_node": 1, "params": params, "adjusted": [adjusted]}

    def _ended(self, rate: float, seed: int) -> str:
        job = self.site.add_job(subject=f"Train with {rate}", author="Ada", manifest_text=MANIFEST)
        self._metrics(job, EPOCHS, rate, seed, ranks=1)
        self.site.set(job, plan=self._plan(rate), started=self.now - 4000)
        self.site.end(job, "completed")
        return job

    def _run(self) -> None:
        job, began = self.running, self.now - 600
        for rank, executor in enumerate(self.executors):
            self._node(job, rank, executor, began)
        self._phases(job, began)
        self._metrics(job, 12, 0.02, 2, ranks=3)
        self._log(job, began)
        self.site.set(
            job, state="running", attempt=1, nodes=3, created=began - 30, started=began, progress=0.6,
            plan=self._plan(0.02), artifacts=[{"path": "curve.png", "size": 70, "sha256": "ab" * 32}],
        )  # fmt: skip

    def _node(self, job: str, rank: int, executor: str, began: float) -> None:
        node = {"job_id": job, "attempt": 1, "rank": rank, "executor_id": executor, "state": "running"}
        node |= {"gpus": [], "lease_until": self.now + 90, "created": began, "phase": "training"}
        attempt = {"job_id": job, "number": 1, "state": "running", "created": began, "started": began}
        with self.site.sender.store.write() as c:
            if not rank:
                c.execute(
                    sa.insert(schema.attempts).values(attempt | {"token_incarnation": 1, "token_number": 1})
                )
            c.execute(sa.insert(schema.nodes).values(node))

    def _insert(self, table: sa.Table, job: str, rows: list[dict[str, Any]]) -> None:
        store = self.site.sender.store
        with store.write() as c:
            first = store.take_cursors(c, job, len(rows))
            c.execute(
                sa.insert(table), [{**row, "job_id": job, "cursor": first + i} for i, row in enumerate(rows)]
            )

    def _phases(self, job: str, began: float) -> None:
        at = {"checkout": 1, "environment": 4, "data": 45, "ready": 60, "training with 1 processes": 72}
        self._insert(schema.timeline, job, [
            {"time": began + after + 3 * rank, "kind": "phase", "attempt": 1, "rank": rank, "text": phase}
            for rank in range(3) for phase, after in at.items()
        ])  # fmt: skip

    def _metrics(self, job: str, epochs: int, rate: float, seed: int, ranks: int) -> None:
        rows = []
        for step in range(epochs * STEPS):
            for rank in range(ranks):
                loss = math.exp(-step * rate / 3) + 0.05 * math.sin(step * 1.7 + rank + seed) + 0.08
                values = {"loss": loss, "epoch": step // STEPS, "progress": step / (EPOCHS * STEPS)}
                if step % STEPS == STEPS - 1:
                    values["val_accuracy"] = 1 - loss / 3
                rows.append({"time": self.now - 520 + step, "attempt": 1, "node": rank, "rank": rank,
                             "step": step, "epoch": step / STEPS, "values": values})  # fmt: skip
        self._insert(schema.metric_points, job, rows)
        self.site.set(job, metrics={"loss": loss, "val_accuracy": 1 - loss / 3, "progress": epochs / EPOCHS})

    def _log(self, job: str, began: float, lines: int = 3000) -> None:
        def text(number: int) -> str:
            if number % 400 == 399:
                return f"WARNING: gradient norm {number / 100} is large"
            if number % 900 == 899:
                return f"ERROR could not write sample {number}"
            return f"step {number} loss {1 / (1 + number):.5f}"

        said = [text(number) for number in range(lines)]
        self._insert(schema.log_lines, job, [
            {"time": began + 72 + number / 8, "attempt": 1, "node": number % 3, "rank": number % 3,
             "stream": "stdout", "text": one, "level": level_of(one)}
            for number, one in enumerate(said)
        ])  # fmt: skip
