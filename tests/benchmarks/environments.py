"""How soon a job trains whose environment is kept from before, against one with the executor's own Python.

    python tests/benchmarks/environments.py [rounds]

From the order to the script's first line, through a whole executor: checkout, environment, sandbox where the
machine has one, supervisor. What is installed is a wheel that is made here, so nothing is fetched. Rounds are
interleaved and medians compared. Exit code 1 when a kept environment takes more than 1.2 times as long.
"""

from __future__ import annotations

import logging
import os
import statistics
import sys
import tempfile
import time
import zipfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.executors import Project, ended, forgotten, joined, running
from support.sender_double import SenderDouble

LIMIT = 1.2
SCRIPT = "import time\nprint('first', time.time(), flush=True)\n"
TRAINING = "project: {name: t}\ntraining: {script: t.py, launcher: python"
MODES = {
    "inherit": f"{TRAINING}}}\nenvironment: {{mode: inherit}}\n",
    "kept": f"{TRAINING}, requirements: r.txt}}\nenvironment: {{mode: isolated}}\n",
}


def wheel(folder: Path) -> None:
    about = "tiny_forge-1.0.dist-info"
    folder.mkdir()
    with zipfile.ZipFile(folder / "tiny_forge-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr("tiny_forge.py", "")
        archive.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: tiny-forge\nVersion: 1.0\n")
        tag = "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        archive.writestr(f"{about}/WHEEL", tag)
        archive.writestr(f"{about}/RECORD", "")


def measure(root: Path, rounds: int) -> dict[str, list[float]]:
    """Seconds of each round and mode, after one that makes what is kept."""
    wheel(root / "wheels")
    os.environ |= {
        "UV_FIND_LINKS": str(root / "wheels"),
        "UV_NO_INDEX": "1",
        "UV_CACHE_DIR": str(root / "uv"),
    }
    projects = {
        name: Project(root / name, {"trainforge.yaml": text, "t.py": SCRIPT, "r.txt": "tiny-forge==1.0\n"})
        for name, text in MODES.items()
    }
    taken: dict[str, list[float]] = {name: [] for name in MODES}
    double = SenderDouble()
    try:
        chosen, executor = joined(double, root / "machine")
        with running(chosen):
            for number in range(rounds + 1):
                for name, project in projects.items():
                    begun = time.time()
                    (node,) = double.run(project.job(f"{name}{number}"), [executor], project.order())
                    assert not ended(node)["code"], node.data("ended")
                    taken[name].append(float(node.text(0).split()[1]) - begun)
                    forgotten(chosen, node)
    finally:
        double.close()
    return {name: seconds[1:] for name, seconds in taken.items()}


def main() -> int:
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as folder:
        taken = measure(Path(folder), int(sys.argv[1]) if len(sys.argv) > 1 else 9)
    floor = statistics.median(taken["inherit"])
    own = statistics.median(taken["kept"])
    print(f"{floor:.3f} s inherited, {own:.3f} s kept: {own / floor:.2f} times to the first line")
    return 0 if own <= LIMIT * floor else 1


if __name__ == "__main__":
    sys.exit(main())
