"""What walls cost: the start of a Python that does nothing, in a sandbox and in containers, and an image.

    python -m tests.benchmarks.isolation [rounds]

As root, with bubblewrap, Docker and Podman. Rounds are interleaved and medians compared with `process`. Of a
Dockerfile it tells how long building took, and how long taking the same again. Exit code 1 when a sandbox
takes more than 3 times as long as no wall, or an image again more than a fifth of building it.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from support import engines
from trainforge.config.manifest import parse_manifest
from trainforge.config.settings import ExecutorSettings
from trainforge.executor import containing, images
from trainforge.executor.commands import Setup
from trainforge.executor.isolating import Walls

SANDBOX_TIMES, AGAIN_SHARE = 3.0, 0.2
MANIFEST = "project: {name: b}\ntraining: {script: t.py}\n"
DOCKERFILE = f"FROM {engines.IMAGE}\nRUN echo built > /built\nCOPY said /said\n"


def walls(root: Path, level: str) -> tuple[Walls, str, tuple[float, float] | None]:
    """Those of a node at that level, its Python, and the seconds that its image took, twice."""
    engine = level if level in engines.KINDS else "none"
    around = "{dockerfile: Dockerfile, network: none}" if engine != "none" else f"{{isolation: {level}}}"
    folder = root / level / "nodes" / "n"
    (folder / "work").mkdir(parents=True)
    settings = ExecutorSettings(
        data_dir=root / level, name=level, container_engine=engine, isolation="process"
    )
    made, manifest = Walls(folder, settings), parse_manifest(f"{MANIFEST}environment: {around}\n")
    made.build(manifest, None, [])
    if engine == "none":
        return made, sys.executable, None
    (folder / "work" / "Dockerfile").write_text(DOCKERFILE)
    (folder / "work" / "said").write_text("hello")
    here, took = images.Images(made.engine, root / level / "images"), []
    for _ in range(2):
        setup = Setup(folder / "setup.log", time.monotonic() + 100, lambda: False)
        begun = time.perf_counter()
        image, _ = here.prepare(manifest, folder / "work", "", setup)
        took.append(time.perf_counter() - begun)
    containing.keep_image(folder, image)
    return made, image.python, (took[0], took[1])


def seconds(made: Walls, python: str) -> float:
    work = made.folder / "work"
    begun = time.perf_counter()
    argv = [*made.before(work, write=[work]), python, "-I", "-S", "-c", "pass"]
    subprocess.run(argv, cwd=work, env=made.environment(os.environ), check=True)
    return time.perf_counter() - begun


def main() -> int:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    for kind in engines.KINDS:
        os.environ.update(engines.engine(kind).env)
    fine = True
    with tempfile.TemporaryDirectory(prefix="trainforge-isolation-") as name:
        made = {level: walls(Path(name), level) for level in ("process", "sandbox", *engines.KINDS)}
        took: dict[str, list[float]] = {level: [] for level in made}
        for _ in range(rounds):
            for level, (wall, python, _) in made.items():
                took[level].append(seconds(wall, python))
        floor = statistics.median(took["process"])
        for level, (wall, _, image) in made.items():
            median = statistics.median(took[level])
            print(f"{level:8} {median * 1000:5.0f} ms, {median / floor:.1f} times process")
            fine = fine and (level != "sandbox" or median <= SANDBOX_TIMES * floor)
            if image:
                first, again = image
                print(f"         image {first:.2f} s, again {again:.2f} s: {again / first:.2f} of it")
                fine = fine and again <= AGAIN_SHARE * first
            wall.remove()
    engines.stop_engines()
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
