"""How long one planning pass takes over 10,000 waiting jobs and 1,000 executors, beside a naive pass.

    python tests/benchmarks/planning.py

The naive pass does what one would write first: for each job in order it looks at every machine. Both
get the same fleet, first nearly full as in steady state, then with nothing to do. Printed besides: how
long it takes to say why jobs wait, once for each different need. All is processor time, so that what else
the machine does counts little.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.planning import GIB, machine, node
from trainforge.config.manifest import GpuRequest, NodeRange
from trainforge.sender.fit import Machine, Need, fit, rooms_of, suits
from trainforge.sender.queue import QueuedJob, plan_queue


def fleet(count: int, free: float, chance: random.Random) -> list[Machine]:
    """Machines with none to eight GPUs; the part `free` of them has nothing to do."""
    machines = []
    for number in range(count):
        busy = () if chance.random() < free else (node(ends=float(chance.randrange(10_000))),)
        machines.append(
            machine(
                f"box{number:04}",
                chance.choice((0, 1, 2, 8)),
                chance.choice((24, 80)),
                running=busy,
                labels={"zone": chance.choice("abc")},
            )
        )
    return machines


def queue(count: int, needs: int, chance: random.Random) -> list[QueuedJob]:
    kinds = [
        Need(
            nodes=NodeRange(nodes := chance.choice((1, 1, 1, 2, 4, 16)), nodes),
            gpu=GpuRequest(gpus := chance.choice((0, 1, 2, 8)), gpus, chance.choice((0, 40)) * GIB),
            memory=number * 2**20,
            labels=chance.choice(((), (("zone", "a"),))),
        )
        for number in range(needs)
    ]
    return [
        QueuedJob(f"job{number:05}", chance.choice(kinds), chance.choice((0, 0, 0, 5)), float(number))
        for number in range(count)
    ]


def naive(jobs: list[QueuedJob], machines: list[Machine]) -> int:
    rooms = rooms_of(machines, 0)
    placed = 0
    for job in sorted(jobs, key=lambda job: job.order):
        fitting = [room for room in rooms if room.open and suits(job.need, room.machine)]
        keys = sorted((key, room) for room in fitting if (key := fit(job.need, room)) is not None)
        if len(keys) >= job.need.nodes.min:
            placed += 1
            for _, room in keys[: job.need.nodes.min]:
                room.hold(node(job=job.id))
    return placed


def median_ms(times: int, work: Callable[[], Any]) -> float:
    took = []
    for _ in range(times):
        begun = time.process_time()
        work()
        took.append((time.process_time() - begun) * 1000)
    return statistics.median(took)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--executors", type=int, default=1000)
    parser.add_argument("--needs", type=int, default=40, help="how many different needs the jobs have")
    asked = parser.parse_args()
    for free in (0.01, 1.0):
        chance = random.Random(7)  # noqa: S311
        machines = fleet(asked.executors, free, chance)
        jobs = queue(asked.jobs, asked.needs, chance)
        ours = median_ms(9, lambda: plan_queue(jobs, machines, 0))  # noqa: B023
        made = plan_queue(jobs, machines, 0)
        some = {job.need: job for job in made.waiting}
        begun = time.process_time()
        for job in some.values():
            made.why(job)
        words = (time.process_time() - begun) * 1000
        simple = median_ms(1, lambda: naive(jobs, machines))  # noqa: B023
        print(
            f"{free:4.0%} of {asked.executors} executors free, {asked.jobs} jobs of {asked.needs} needs: "
            f"{len(made.placed)} placed in {ours:.1f} ms; naive {simple:.0f} ms, {simple / ours:.0f} times "
            f"as long; reasons for {len(some)} needs {words:.0f} ms"
        )


if __name__ == "__main__":
    main()
