"""How soon a script runs: from a prepared launch to its first line, against the same command by hand.

    python tests/benchmarks/launch.py [rounds]

For a plain script, and for Accelerate with one and two processes that import torch. Ours is the supervisor
and the rank program; checkout, environment and the way to the sender are not in it. Medians of rounds.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from trainforge.config import messages as m
from trainforge.config.manifest import parse_manifest
from trainforge.executor import launch
from trainforge.executor.supervise import Supervised

SCRIPTS = {"python": "print('here', flush=True)\n", "accelerate": "import torch\nprint('here', flush=True)\n"}


def plan(root: Path, launcher: str, processes: int) -> launch.Launch:
    folders = launch.Folders(
        work=root, run=root / "run", output=root, checkpoint=root, data=root,
        metrics_file=root / "metrics.jsonl", params_file=root / "params.json",
    )  # fmt: skip
    (root / "train.py").write_text(SCRIPTS[launcher])
    order = m.RunOrder(
        repository=m.Repository(id="git:x", name="x", url="https://x/x"), ref="refs/heads/main",
        commit="0" * 40, manifest_path="trainforge.yaml", manifest_blob="0" * 40, project="t",
        nodes=1, processes_per_node=processes, results_branch="r", lease_ttl=90,
    )  # fmt: skip
    text = f"project: {{name: t}}\ntraining: {{script: train.py, launcher: {launcher}}}\n"
    return launch.plan_launch(
        launch.Plan(
            manifest=parse_manifest(text),
            node=m.NodeKey(job="a" * 26, attempt=1, rank=0),
            order=order,
            folders=folders,
            python=sys.executable,
            inherited=os.environ,
        )
    )


def ours(launcher: str, processes: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        planned = plan(Path(folder), launcher, processes)
        supervised = Supervised(Path(folder) / "run")
        start = time.perf_counter()
        supervised.prepare(planned, timeout_s=None, grace_s=1)
        supervised.start()
        log = Path(folder) / "run" / "logs" / "0.stdout"
        while not (log.exists() and log.stat().st_size):
            time.sleep(0.001)
        taken = time.perf_counter() - start
        while supervised.exit() is None:
            time.sleep(0.01)
        return taken


def by_hand(launcher: str, processes: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        planned = plan(Path(folder), launcher, processes)
        argv = planned.argv[: planned.argv.index("-I") - 1] + planned.command
        start = time.perf_counter()
        with subprocess.Popen(
            argv, cwd=folder, env=planned.env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as process:
            assert process.stdout is not None
            process.stdout.readline()
            return time.perf_counter() - start


def main() -> int:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    for launcher, processes in (("python", 1), ("accelerate", 1), ("accelerate", 2)):
        pairs = [(by_hand(launcher, processes), ours(launcher, processes)) for _ in range(rounds + 1)][1:]
        floor, own = (statistics.median(side) for side in zip(*pairs, strict=True))
        print(f"{launcher:10} {processes}: {floor:.3f} s by hand, {own:.3f} s here: {own / floor:.2f} times")
    return 0


if __name__ == "__main__":
    sys.exit(main())
