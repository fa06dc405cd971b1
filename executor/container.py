"""The arguments that run a program in a container: pure, and the same for Docker and Podman.

A job's container has the image's system, read-only, without any right (no capabilities, none to be gained),
and of the machine only the folders that it is shown, under the names that they have outside. What it runs,
and with which variables, comes on standard input (`contained.py`), so that neither arguments nor the
engine's own records hold them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from trainforge.config.containers import Mount
from trainforge.executor.engine import LABEL, Engine
from trainforge.executor.sandbox import HOME

INIT = str(Path(__file__).with_name("contained.py"))
OURS = tuple(str(Path(__file__).with_name(name)) for name in ("contained.py", "rank.py", "again.py"))


@dataclass(frozen=True)
class Image:
    """`id` is what is run: it names these very bytes, as `digest` does at the registry, if it is of one."""

    name: str
    id: str
    python: str
    digest: str = ""
    path: str = ""  # the image's own PATH
    version: str = ""
    engine: str = ""


@dataclass(frozen=True)
class View:
    """What one container has. 0 and empty bound nothing."""

    name: str
    node: str  # by which it is found again
    cwd: Path
    home: Path  # outside; HOME within
    user: int
    write: tuple[Path, ...] = ()
    read: tuple[Path, ...] = ()
    volumes: tuple[Mount, ...] = ()
    network: str = "none"  # or host; empty is the engine's own
    gpus: tuple[str, ...] = ()
    memory: int = 0
    cpus: float = 0.0
    cores: tuple[int, ...] = ()
    pids: int = 0
    shm: int = 0


def arguments(engine: Engine, image: str, view: View, program: list[str]) -> list[str]:
    """All that comes after the engine's own name; `program` begins with what to start."""
    made = ["run", "--rm", "--interactive", "--pull=never", "--name", view.name]
    made += ["--label", f"{LABEL}={view.node}", "--log-driver", "none"]
    made += ["--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
    made += [*_who(engine, view.user), "--workdir", str(view.cwd)]
    made += ["--network", view.network] if view.network else []
    made += engine.gpu_flags(view.gpus)
    made += _bounds(view)
    made += _mount(view.home, HOME, write=True)
    for seen in (*view.read, *map(Path, OURS)):
        made += _mount(seen, seen, write=False)
    for path in view.write:
        made += _mount(path, path, write=True)
    for volume in view.volumes:
        made += _mount(volume.source, volume.target, write=volume.write)
    return [*made, "--entrypoint", program[0], image, *program[1:]]


def _who(engine: Engine, user: int) -> list[str]:
    """Nobody with rights outside: the job's own user, or where the engine has no root itself, its user."""
    if not engine.rootless:
        return ["--user", f"{user}:{user}"]
    return ["--userns", "keep-id"] if engine.kind == "podman" else ["--user", "0:0"]


def _bounds(view: View) -> list[str]:
    made = []
    if view.memory:  # without swap beyond it
        made += ["--memory", f"{view.memory}b", "--memory-swap", f"{view.memory}b"]
    if view.cpus:
        made += ["--cpus", f"{view.cpus:g}"]
    if view.cores:
        made += ["--cpuset-cpus", ",".join(map(str, view.cores))]
    if view.pids:
        made += ["--pids-limit", str(view.pids)]
    shm = f",size={view.memory}" if view.memory else ""
    made += ["--tmpfs", f"/tmp:rw,exec,nosuid,nodev,mode=1777{shm}"]  # noqa: S108 - the container's own
    return made + (["--shm-size", f"{view.shm}b"] if view.shm else [])


def _mount(source: object, target: object, *, write: bool) -> list[str]:
    return ["--mount", f"type=bind,source={source},target={target}" + ("" if write else ",readonly")]
