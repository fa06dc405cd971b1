"""The real sender, started for a measurement in a folder that goes with it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def sender_in(name: str) -> Iterator[tuple[Path, subprocess.Popen[bytes]]]:
    """The folder, whose `sender/sender.json` says where the sender listens, and its process."""
    with tempfile.TemporaryDirectory(prefix=f"trainforge-{name}-") as made:
        folder = Path(made)
        env = os.environ | {
            "XDG_CONFIG_HOME": str(folder / "home"),
            "TRAINFORGE_SENDER_DATA_DIR": str(folder / "sender"),
            "TRAINFORGE_SENDER_PORT": "0",
        }
        with (folder / "sender.log").open("wb") as log:
            command = [sys.executable, "-m", "trainforge", "sender", "start"]
            process = subprocess.Popen(command, env=env, stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + 60
            while not (folder / "sender" / "sender.json").exists():
                if time.monotonic() > deadline or process.poll() is not None:
                    raise SystemExit((folder / "sender.log").read_text())
                time.sleep(0.05)
            yield folder, process
        finally:
            process.terminate()
            process.wait(30)
