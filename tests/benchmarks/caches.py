"""What data cost a job: kept from before, and fetched, against the plainest download and digest there is.

    python tests/benchmarks/caches.py [megabytes] [rounds]

Rounds are interleaved and medians compared, so that a busy machine slows all alike. Exit code 1 when data
that are kept take over a tenth of the time of fetching them, or fetching over twice that of the plain one.
"""

from __future__ import annotations

import hashlib
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import httpx2

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.files import FileServer, serving_files
from support.jobs import Job
from trainforge.executor.housekeeping import clean

KEPT = 0.1
FETCHED = 2.0
MB = 10**6


def seconds(what: Callable[[], object]) -> float:
    start = time.perf_counter()
    what()
    return time.perf_counter() - start


def plain(url: str, target: Path) -> None:
    digest = hashlib.sha256()
    with httpx2.stream("GET", url) as answer, target.open("wb") as file:
        for block in answer.iter_raw(2**20):
            digest.update(block)
            file.write(block)
        file.flush()
        os.fsync(file.fileno())


def once(server: FileServer, root: Path, number: int) -> tuple[float, float, float]:
    """Plain, fetched, kept."""
    (path, content), *_ = server.files.items()
    entry = {"url": f"{server.url}{path}", "sha256": hashlib.sha256(content).hexdigest()}
    floor = seconds(lambda: plain(entry["url"], root / "plain"))
    jobs = [Job(root, f"{number}-{which}") for which in ("fetches", "finds")]
    fetched, kept = (seconds(lambda job=job: job.get(entry)) for job in jobs)  # type: ignore[misc]
    for job in jobs:
        (job.folder / "leases").unlink()
    clean(root)
    return floor, fetched, kept


def main() -> int:
    size = int(sys.argv[1]) if len(sys.argv) > 1 else 64
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 7
    with tempfile.TemporaryDirectory() as folder, serving_files() as server:
        server.files["/data.bin"] = os.urandom(size * MB)
        found = [once(server, Path(folder), number) for number in range(rounds + 1)][1:]
    floor, fetched, kept = (statistics.median(times) for times in zip(*found, strict=True))
    print(
        f"{size} MB: plain {floor * 1000:.0f} ms, fetched {fetched * 1000:.0f} ms, kept {kept * 1000:.1f} ms"
    )
    print(f"fetched {fetched / floor:.2f} times the plain, kept {kept / fetched:.4f} of fetched")
    return 0 if kept <= KEPT * fetched and fetched <= FETCHED * floor else 1


if __name__ == "__main__":
    sys.exit(main())
