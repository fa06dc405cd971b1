"""Writes down what a container of one node is to be, and reads what it left: the files around `contain.py`.

image.json             that it is of        containers/NAME.json   how to run it
run/container.json     which process it is on this machine
run/ranks/contained.json   what its first process told at its end
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from trainforge.executor import untrusted
from trainforge.executor.container import INIT, Image, View, arguments
from trainforge.executor.engine import Engine
from trainforge.executor.sandbox import HOME
from trainforge.executor.supervisor import write_atomically

PROGRAM = str(Path(__file__).with_name("contain.py"))
TOLD = Path("run", "ranks", "contained.json")
PROCESS = Path("run", "container.json")
IMAGE = "image.json"
TOLD_LIMIT = 4096
# Of the machine's own variables only these mean the same within.
PASSED = {"TZ", "http_proxy", "https_proxy", "no_proxy", "all_proxy"}
SOCKETS = ("docker.sock", "podman.sock", "containerd.sock", "crio.sock")
BELOW_RUN = (Path("/run"), Path("/var/run"))


def before(folder: Path, engine: Engine, image: Image, view: View) -> list[str]:
    """What comes before the arguments of the program in the container."""
    notes = folder / "containers"
    notes.mkdir(mode=0o700, exist_ok=True)
    trains = any(path.is_relative_to(folder / "run") for path in view.write)
    spec = {
        "engine": engine.argv,
        "env": dict(engine.env),
        "run": arguments(engine, image.id, view, [image.python, "-I", "-S", INIT]),
        "name": view.name,
        "note": str(folder / TOLD) if trains else "",
        "pid": str(folder / PROCESS) if trains else "",
    }
    note = notes / f"{view.name}.json"
    note.touch(mode=0o600)
    note.write_text(json.dumps(spec))
    return [sys.executable, "-I", "-S", PROGRAM, str(note), "--"]


def end(prefix: list[str]) -> list[str]:
    """The command that ends what `before` begins, whatever became of its program."""
    here = prefix.index(PROGRAM)
    return [*prefix[: here + 1], "--end", prefix[here + 1]]


def kept_image(folder: Path) -> Image | None:
    """The node's, as it was prepared."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        return Image(**json.loads((folder / IMAGE).read_text()))
    return None


def keep_image(folder: Path, image: Image) -> None:
    write_atomically(folder / IMAGE, asdict(image))


def variables(env: Mapping[str, str], image: Image | None) -> dict[str, str]:
    """The image's own system decides all but what a job is given."""
    made = {name: value for name, value in env.items() if name in PASSED or name.lower() in PASSED}
    made |= {"HOME": HOME, "TMPDIR": "/tmp", "USER": "job", "LOGNAME": "job"}  # noqa: S108 - within
    return made | ({"PATH": image.path} if image else {})


def told(folder: Path) -> dict[str, Any]:
    """What the first process of the training's container left; the job may have written anything there."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        with untrusted.open_plain(folder / TOLD) as file:
            data = json.loads(file.read(TOLD_LIMIT))
        return data if isinstance(data, dict) else {}
    return {}


def forbidden(source: Path, data_dir: Path) -> str:
    """Why a folder is never shown to a job, whatever the policy says; empty where nothing is against it."""
    real, ours = source.resolve(), data_dir.resolve()
    machines = (*(Path(name) for name in ("/proc", "/sys", "/dev")), *BELOW_RUN)
    if real != source:
        return f"leads to {real}: name that folder"
    if not real.is_dir():
        return "is no folder of this machine"
    if _overlap(real, ours):
        return "holds this executor's own files"
    if any(_overlap(real, folder) for folder in machines) or any(_is_socket(real / name) for name in SOCKETS):
        return "holds what is the machine's own"
    return ""


def _overlap(one: Path, other: Path) -> bool:
    return one.is_relative_to(other) or other.is_relative_to(one)


def _is_socket(path: Path) -> bool:
    with contextlib.suppress(OSError):
        return stat.S_ISSOCK(os.lstat(path).st_mode)
    return False
