"""How fast the command line starts: `trainforge --help` against `python -c 'import click'`.

    python tests/benchmarks/startup.py [rounds]

Rounds are interleaved and medians compared, so that a busy machine slows both alike. Exit code 1 when help
takes more than twice as long.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

LIMIT = 2.0
FLOOR = [sys.executable, "-c", "import click"]
HELP = [sys.executable, "-m", "trainforge", "--help"]


def seconds(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def measure(rounds: int) -> tuple[float, float]:
    """Median seconds of the floor and of help, after one round that fills the caches."""
    pairs = [(seconds(FLOOR), seconds(HELP)) for _ in range(rounds + 1)][1:]
    return statistics.median(pair[0] for pair in pairs), statistics.median(pair[1] for pair in pairs)


def main() -> int:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    floor, own = measure(rounds)
    print(
        f"import click {floor * 1000:.0f} ms, trainforge --help {own * 1000:.0f} ms: {own / floor:.2f} times"
    )
    return 0 if own <= LIMIT * floor else 1


if __name__ == "__main__":
    sys.exit(main())
