"""Running many seeds, on all cores if asked to, and telling of one that failed."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
import traceback
from collections.abc import Iterable, Iterator
from contextlib import ExitStack

from simulator.scenario import Run
from simulator.world import Violation

LINES = 120


def failure(seed: int, mutant: str = "") -> str | None:
    """What went wrong with this seed, in a line; None if nothing did."""
    from simulator.mutants import MUTANTS  # noqa: PLC0415

    with ExitStack() as stack:
        if mutant:
            stack.enter_context(MUTANTS[mutant]())
        try:
            Run(seed, trace=False).run()
        except Violation as broken:
            return str(broken)
        except Exception as error:  # noqa: BLE001
            return f"{type(error).__name__}: {error} at {traceback.extract_tb(error.__traceback__)[-1]}"
    return None


def story(seed: int, mutant: str = "", lines: int = LINES) -> str:
    """The last lines of a seed's trace, to be read by a person."""
    from simulator.mutants import MUTANTS  # noqa: PLC0415

    with ExitStack() as stack:
        if mutant:
            stack.enter_context(MUTANTS[mutant]())
        run = Run(seed)
        end = "every promise was kept"
        try:
            run.run()
        except Violation as broken:
            end = f"broken: {broken}"
        except Exception:  # noqa: BLE001
            end = traceback.format_exc()
    return "\n".join([*list(run.world.trace)[-lines:], f"seed {seed}: {end}"])


def failures(seeds: Iterable[int], jobs: int = 1) -> Iterator[tuple[int, str]]:
    if jobs <= 1:
        found = ((seed, failure(seed)) for seed in seeds)
        yield from ((seed, why) for seed, why in found if why)
        return
    with multiprocessing.get_context("fork").Pool(jobs) as pool:
        for seed, why in pool.imap_unordered(_one, seeds, chunksize=50):
            if why:
                yield seed, why


def _one(seed: int) -> tuple[int, str | None]:
    return seed, failure(seed)


def main(argv: list[str]) -> int:
    ask = argparse.ArgumentParser(prog="python -m tests.simulator", description=__doc__)
    ask.add_argument("--seeds", type=int, default=2000, help="how many seeds to run")
    ask.add_argument("--first", type=int, default=0, help="the first of them")
    ask.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    ask.add_argument("--seed", type=int, help="run this one alone and show its trace")
    ask.add_argument("--mutant", default="", help="with this planted bug (for --seed)")
    ask.add_argument("--lines", type=int, default=LINES, help="of the trace")
    ask.add_argument("--most", type=int, default=10, help="failures to list before it stops")
    said = ask.parse_args(argv)
    if said.seed is not None:
        print(story(said.seed, said.mutant, said.lines))
        return 0
    began, count = time.monotonic(), 0
    for seed, why in failures(range(said.first, said.first + said.seeds), said.jobs):
        print(f"seed {seed}: {why}", flush=True)
        count += 1
        if count >= said.most:
            break
    took = time.monotonic() - began
    print(f"{said.seeds} seeds in {took:.1f} s, {count} failures; `--seed N` shows one")
    return 1 if count else 0


def first_failure(mutant: str, seeds: Iterable[int]) -> tuple[int, str] | None:
    """The first seed that a planted bug is found by."""
    for seed in seeds:
        if why := failure(seed, mutant):
            return seed, why
    return None
