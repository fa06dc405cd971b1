"""The promises hold through faults, and the simulator finds the bugs that would break them."""

from __future__ import annotations

from pathlib import Path

import pytest

from simulator.mutants import MUTANTS
from simulator.run import failure, first_failure, story
from simulator.scenario import Run
from simulator.twin import compare

SEEDS, TURNS, WITHIN = 2000, 8, 200
CORPUS = [
    int(line.split()[0])
    for line in (Path(__file__).parent / "corpus.txt").read_text().splitlines()
    if line and not line.startswith("#")
]


@pytest.mark.parametrize("turn", range(TURNS))
def test_every_promise_is_kept(turn: int) -> None:
    for seed in range(turn, SEEDS, TURNS):
        if why := failure(seed):
            pytest.fail(f"seed {seed}: {why}\n{story(seed)}", pytrace=False)


@pytest.mark.parametrize("seed", CORPUS)
def test_what_was_broken_once_stays_mended(seed: int) -> None:
    assert failure(seed) is None


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_planted_bug_is_found(mutant: str) -> None:
    assert first_failure(mutant, range(WITHIN)) is not None, f"{mutant} was not found within {WITHIN} seeds"


@pytest.mark.parametrize("seed", range(4))
def test_the_model_of_the_store_answers_as_the_real_one(seed: int, tmp_path: Path) -> None:
    assert compare(seed, tmp_path) > 100


def test_a_seed_is_the_same_run_every_time() -> None:
    first, second = (list(Run(7).run().world.trace) for _ in range(2))
    assert first == second
    assert len(first) > 20
