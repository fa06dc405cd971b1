"""Docker's and Podman's engines for tests, each in a folder of its own, and an image made from this Python.

The first test in need starts one; `stop_engines` ends it and removes the folder. They work where the kernel
lets root raise no limits, and touch neither the machine's network nor its firewall.
"""

from __future__ import annotations

import functools
import io
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from support.waiting import wait_for

KINDS = ["docker", "podman"]
IMAGE = "localhost/trainforge-python:1"
LIMIT = "nofile=4096:4096", "nproc=20000:20000"
LEFT_OUT = {
    "test", "tests", "idlelib", "tkinter", "lib2to3", "ensurepip", "distutils", "pydoc_data", "turtledemo",
    "site-packages", "unittest", "sqlite3", "xmlrpc", "curses", "dbm", "wsgiref", "asyncio", "xml",
}  # fmt: skip
_stops: list[Callable[[], None]] = []


@dataclass(frozen=True)
class TestEngine:
    """`env` is what leads its commands, and executors, to it."""

    __test__ = False
    kind: str
    env: dict[str, str]

    def run(self, *arguments: str, given: bytes = b"") -> str:
        done = subprocess.run(
            [self.kind, *arguments], input=given, env=os.environ | self.env, capture_output=True, check=False,
            timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr.decode(errors="replace")
        return done.stdout.decode().strip()


@functools.cache
def engine(kind: str) -> TestEngine:
    """Running, with the image of this Python."""
    made = _docker() if kind == "docker" else _podman()
    made.run("import", "-", IMAGE, given=_image())
    return made


def stop_engines() -> None:
    while _stops:
        _stops.pop()()


def _podman() -> TestEngine:
    folder = _folder()
    limits = ", ".join(f'"{limit}"' for limit in LIMIT)
    (folder / "containers.conf").write_text(
        f'[containers]\ndefault_ulimits=[{limits}]\nnetns="host"\n[engine]\nruntime="runc"\ncgroup_manager="cgroupfs"\n'
        f'events_logger="file"\n'
    )
    (folder / "storage.conf").write_text(
        f'[storage]\ndriver="overlay"\ngraphroot="{folder}/graph"\nrunroot="{folder}/run"\n'
    )
    env = {
        "CONTAINERS_CONF": f"{folder}/containers.conf",
        "CONTAINERS_STORAGE_CONF": f"{folder}/storage.conf",
    }
    made = TestEngine("podman", env)

    def stop() -> None:
        made.run("rm", "-af")
        _remove(folder)

    _stops.append(stop)
    return made


def _docker() -> TestEngine:
    folder = _folder()
    socket = f"unix://{folder}/docker.sock"
    argv = ["setpriv", "--pdeathsig", "TERM", "dockerd", "--data-root", f"{folder}/data"]
    argv += ["--exec-root", f"{folder}/exec", "-p", f"{folder}/pid", "-H", socket, "--iptables=false"]
    argv += ["--bridge=none", "--ip-forward=false", "--exec-opt", "native.cgroupdriver=cgroupfs"]
    argv += [part for limit in LIMIT for part in ("--default-ulimit", limit)]
    with (folder / "log").open("wb") as log:
        daemon = subprocess.Popen(
            argv, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
        )
    made = TestEngine("docker", {"DOCKER_HOST": socket})

    def answers() -> bool:
        assert daemon.poll() is None, (folder / "log").read_text()
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        return (
            subprocess.run(["docker", "version"], env=os.environ | made.env, check=False, **quiet).returncode
            == 0
        )

    def stop() -> None:
        daemon.kill()  # at once: a parallel worker that takes long to end is killed itself
        daemon.wait()
        _remove(folder)

    _stops.append(stop)
    wait_for("dockerd", answers, 60, (folder / "log").read_text)
    return made


def _folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="trainforge-engine-"))


def _remove(folder: Path) -> None:
    mounted = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    for mount in sorted((name for name in mounted if name.startswith(f"{folder}/")), reverse=True):
        subprocess.run(["umount", "-l", mount], check=False)
    shutil.rmtree(folder, ignore_errors=True)


# --- the image ------------------------------------------------------------------------------------------


@functools.cache
def _image() -> bytes:
    """A system of this Python's standard library, a shell, and the libraries that both need."""
    base = Path(sys.base_prefix)
    python = Path(os.path.realpath(sys.executable))
    library = Path(sysconfig.get_path("stdlib", vars={"base": str(base), "installed_base": str(base)}))
    files = {"/bin/sh": Path("/bin/sh"), f"/usr/local/bin/{python.name}": python}
    for path in _library(library):
        files[f"/usr/local/lib/{library.name}/{path.relative_to(library)}"] = path
    programs = [Path("/bin/sh"), python, *(path for path in files.values() if path.suffix == ".so")]
    for name in _needed(programs):
        files[name] = Path(name)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name in ("tmp", "home", "proc", "sys", "dev", "etc"):
            _add(archive, tarfile.DIRTYPE, name, mode=0o1777 if name == "tmp" else 0o755)
        _add(archive, tarfile.SYMTYPE, "usr/local/bin/python3", python.name)
        for name, path in sorted(files.items()):
            entry = tarfile.TarInfo(name.lstrip("/"))
            content = path.read_bytes()
            entry.size, entry.mode = len(content), 0o755
            archive.addfile(entry, io.BytesIO(content))
    return packed.getvalue()


def _library(root: Path) -> Iterator[Path]:
    for folder, names, files in os.walk(root):
        names[:] = [name for name in names if name not in LEFT_OUT and not name.startswith("config-")]
        for name in files:
            if not re.search(r"\.opt-\d\.pyc$|^_test|_codec|^_tkinter|\.a$|\.exe$", name):
                yield Path(folder, name)


def _needed(programs: list[Path]) -> set[str]:
    listed = subprocess.run(["ldd", *map(str, programs)], capture_output=True, text=True, check=False).stdout
    return set(re.findall(r"(/\S+) \(0x", listed))


def _add(archive: tarfile.TarFile, kind: bytes, name: str, target: str = "", mode: int = 0o755) -> None:
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode, entry.linkname = kind, mode, target
    archive.addfile(entry)
