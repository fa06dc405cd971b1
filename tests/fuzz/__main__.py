"""`python -m tests.fuzz NAME --seconds N` looks for inputs that a parser does not survive; `all` takes turns.

`api` asks a live sender instead. Found inputs are written to the folder named by `--into`; a time limit of a
second and 100 MB of memory beyond the start count as failures, too. Needs the extra `fuzz`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def look(name: str, seconds: int, into: Path) -> None:
    """In this process, which does not come back."""
    import atheris  # noqa: PLC0415
    import psutil  # noqa: PLC0415

    with atheris.instrument_imports(include=["trainforge", "yaml", "json"]):
        from fuzz.entries import ENTRIES  # noqa: PLC0415

    entry = ENTRIES[name]
    into.mkdir(parents=True, exist_ok=True)
    corpus = Path(tempfile.mkdtemp())
    for number, seed in enumerate(entry.seeds):
        (corpus / f"seed-{number}").write_bytes(seed)

    def one(data: bytes) -> None:
        began = time.process_time()
        entry.run(data)
        took = time.process_time() - began
        assert took < 1.0, f"{took:.1f} s for {len(data)} bytes"

    rss = psutil.Process().memory_info().rss // 2**20 + 100
    options = [f"-max_total_time={seconds}", f"-rss_limit_mb={rss}", "-max_len=16384", "-timeout=20"]
    options += [f"-artifact_prefix={into}/{name}-", "-print_final_stats=1", "-verbosity=0"]
    atheris.Setup([sys.argv[0], *options, str(corpus)], one)
    atheris.Fuzz()


def ask_the_api(seconds: int) -> None:
    """Rounds over all addresses, each with another seed."""
    from fuzz import api  # noqa: PLC0415

    end, seed = time.monotonic() + seconds, int(time.time())
    while time.monotonic() < end:
        with tempfile.TemporaryDirectory() as folder, api.live_api(Path(folder)) as live:
            asked = api.round_of(live, examples=20, seed=seed)
        print(f"seed {seed}: {asked} addresses held", flush=True)
        seed += 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--into", type=Path, default=Path("fuzz-found"))
    said = parser.parse_args()
    if said.name == "api":
        ask_the_api(said.seconds)
        return 0
    if said.name != "all":
        look(said.name, said.seconds, said.into)
        return 0
    from fuzz.entries import ENTRIES  # noqa: PLC0415

    failed = []
    for name in ENTRIES:
        argv = [sys.executable, "-m", "tests.fuzz", name, f"--seconds={said.seconds}", f"--into={said.into}"]
        if subprocess.run(argv, check=False).returncode:
            failed.append(name)
    print(f"failed: {', '.join(failed) or 'none'}")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
