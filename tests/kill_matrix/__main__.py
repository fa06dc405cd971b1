"""`python -m tests.kill_matrix --all` strikes every point in every way; `--point 17` those of one number."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Empty, Queue

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from kill_matrix import scenarios
from kill_matrix.world import World

Work = Queue[tuple[scenarios.Failpoint, str]]


def work_off(work: Work, root: Path, failed: list[str]) -> None:
    """Cases one after the other in one world; after a case that failed, in a new one."""
    world, number = None, 0
    try:
        while True:
            point, action = work.get_nowait()
            if world is None:
                number += 1
                world = World(root / str(number))
            begun, words = time.monotonic(), "well"
            try:
                scenarios.run(world, point, action)
            except Exception as error:  # noqa: BLE001 - a case may fail in any way, and others follow
                words = f"FAILED: {str(error)[:300]}"
                failed.append(f"{point} {action}\n{traceback.format_exc()[-20000:]}")
                world.close()
                world = None
            print(f"{point:32} {action:7} {time.monotonic() - begun:5.1f} s  {words}", flush=True)
    except Empty:
        pass
    finally:
        if world is not None:
            world.close()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.kill_matrix", description=__doc__)
    parser.add_argument("--all", action="store_true", help="every point, every action")
    parser.add_argument("--point", default="", help="only points that begin so, such as 17")
    parser.add_argument("--action", default="", help="only kill, error, stall or enospc")
    parser.add_argument("--worlds", type=int, default=2, help="fleets side by side")
    said = parser.parse_args()
    wanted = scenarios.cases() if said.all or said.point else scenarios.telling_cases()
    work: Work = Queue()
    for point, action in wanted:
        if point.startswith(said.point) and (not said.action or said.action == action):
            work.put((point, action))
    total, begun = work.qsize(), time.monotonic()
    failed: list[str] = []
    with tempfile.TemporaryDirectory(prefix="kill-matrix-") as root, ThreadPoolExecutor(said.worlds) as pool:
        for done in [pool.submit(work_off, work, Path(root) / f"w{n}", failed) for n in range(said.worlds)]:
            done.result()
    for words in failed:
        print(f"\n--- {words}")
    print(f"{total - len(failed)} of {total} cases well, {time.monotonic() - begun:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
