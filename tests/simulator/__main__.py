"""`python -m tests.simulator --seeds 100000` runs seeds; `--seed N` shows one."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from simulator.run import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
