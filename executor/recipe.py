"""What a job wants installed, read from its commit: the files, what they include, and the digest of it all.

The digest is the environment's key: two jobs share an environment only where nothing that decides what gets
installed differs.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import secrets
import sys
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit, urlunsplit

from trainforge.config.errors import NodeFailed
from trainforge.config.manifest import Manifest
from trainforge.config.manifest_types import is_conda
from trainforge.executor.isolating import BARE, Bare, Walls

Kind = Literal["nothing", "requirements", "exact", "project", "conda"]

FORMAT = "2"  # of the key: another one when the way environments are made changes what is in them
MAX_INCLUDES = 50
MAX_SOURCES = 2000
MAX_NAME = 500
MAX_FILE = 16 * 2**20
EDITABLE = re.compile(r"^(?:-e|--editable)[\s=]+")
_INCLUDE = re.compile(r"^\s*(-r|--requirement|-c|--constraint)[\s=]+(\S+)")
_URL = re.compile(r"[a-z+]+:/")  # as it is once taken for a path
# Settings of uv and pip that decide how something is fetched, and not what is installed.
_HOW = re.compile(
    r"UV_(CACHE_DIR|OFFLINE|NO_PROGRESS|LINK_MODE|HTTP_\w+|CONCURRENT_\w+|REQUEST_\w+|PYTHON_\w+|NATIVE_TLS|"
    r"SYSTEM_CERTS|NO_CACHE|COMPILE_\w+|TOOL_\w+|INDEX_\w+_(USERNAME|PASSWORD)|KEYRING_\w+|LOCK_TIMEOUT)"
    r"|PIP_(CACHE_DIR|CERT|DEFAULT_TIMEOUT|DISABLE_\w+|NO_INPUT|NO_CACHE_DIR|PROGRESS_BAR|QUIET|RETRIES|PROXY)"
)


@dataclass(frozen=True)
class Wanted:
    """`file` is a requirements file or pyproject.toml, an exact list, uv.lock, or conda's file."""

    kind: Kind = "nothing"
    file: Path | None = None
    extras: tuple[str, ...] = ()
    project: Path | None = None  # the pyproject.toml that has the extras, beside a requirements file

    @property
    def files(self) -> list[Path]:
        return [path for path in (self.file, self.project) if path]


@dataclass(frozen=True)
class Interpreter:
    """The Python to build on: its program and its version, such as 3.11.7."""

    path: str = sys.executable
    version: str = field(default_factory=platform.python_version)


OWN = Interpreter()


@dataclass(frozen=True)
class Recipe:
    """All that decides what an environment is. `backend` is the build of torch: cpu, cu128; empty: any."""

    wanted: Wanted
    cwd: Path
    env: Mapping[str, str]
    interpreter: Interpreter = OWN
    strict: bool = False
    backend: str = ""
    work: Path | None = None  # the commit's folder, which `cwd` is in
    walls: Walls | Bare = BARE

    @property
    def root(self) -> Path:
        return self.work or self.cwd

    @property
    def within(self) -> dict[str, str]:
        """The variables within the walls."""
        return self.walls.environment(self.env) | {"UV_CACHE_DIR": str(uv_cache(self.env))}

    def reading(self) -> list[Path]:
        """What uv's own settings name, such as a folder of wheels, and the Python to build on."""
        named = (Path(value) for name, value in self.env.items() if name.startswith(("UV_", "PIP_", "SSL_")))
        base = Path(self.interpreter.path).resolve().parent.parent
        return [self.cwd, base, *(path for path in named if path.is_absolute() and path.exists())]


def uv_cache(env: Mapping[str, str]) -> Path:
    """Where uv keeps what it has fetched."""
    home = Path(env.get("XDG_CACHE_HOME") or Path(env.get("HOME") or Path.home()) / ".cache")
    return Path(env.get("UV_CACHE_DIR") or home / "uv")


# --- which files ----------------------------------------------------------------------------------------


def wanted_of(manifest: Manifest, cwd: Path) -> Wanted:
    """What the manifest names, which has to be in the commit. A lock file is stronger than requirements.

    Raises:
        NodeFailed: `environment_failed`, when there is no such file.
    """
    training = manifest.training
    extras = tuple(training.extras)
    if training.lockfile is not None:
        file = _file(cwd, "lockfile", training.lockfile)
        kind = _kind_of_lock(file)
        if kind == "project":
            _file(
                file.parent, "lockfile", "pyproject.toml", f"{training.lockfile} goes with a pyproject.toml"
            )
        return Wanted(kind, file, extras)
    if training.requirements is None and not extras:
        return Wanted()
    project = _file(cwd, "extras", "pyproject.toml") if extras else None
    if training.requirements is None:
        return Wanted("requirements", project, extras)
    file = _file(cwd, "requirements", training.requirements)
    if is_conda(training.requirements):
        return Wanted("conda", file, extras)
    return Wanted("requirements", file, extras, None if file == project else project)


def _kind_of_lock(file: Path) -> Kind:
    if file.name == "uv.lock":
        return "project"
    return "conda" if is_conda(file.name) else "exact"


def _file(cwd: Path, key: str, name: str, why: str = "") -> Path:
    path = cwd / name
    if not path.is_file() or not path.resolve().is_relative_to(cwd.resolve()):
        words = f"training.{key}: there is no file {name} in this commit"
        raise NodeFailed(f"{words}: {why}" if why else words, code="environment_failed")
    return path


# --- the key --------------------------------------------------------------------------------------------


def key_of(recipe: Recipe) -> str:
    """The digest of all that decides what gets installed: 40 characters, a folder's name."""
    wanted, digest = recipe.wanted, hashlib.sha256()
    parts = [FORMAT, recipe.interpreter.version, sys.implementation.cache_tag or "", *_platform()]
    if recipe.interpreter != OWN:
        parts.append(str(Path(recipe.interpreter.path).resolve()))
    parts += [wanted.kind, *sorted(wanted.extras), str(recipe.strict), recipe.backend]
    parts += _settings(recipe.env) if wanted.file else []
    for part in parts:
        digest.update(part.encode() + b"\0")
    for content in contents(recipe):
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()[:40]


def _platform() -> tuple[str, ...]:
    return sys.platform, platform.machine(), "-".join(platform.libc_ver())


def _settings(env: Mapping[str, str]) -> list[str]:
    """The machine's own for uv and pip, such as its index; without who asks there."""
    named = sorted((n, v) for n, v in env.items() if n.startswith(("UV_", "PIP_")) and not _HOW.fullmatch(n))
    return [f"{name}={' '.join(_no_user(part) for part in value.split())}" for name, value in named]


def _no_user(text: str) -> str:
    parts = urlsplit(text)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])) if "@" in parts.netloc else text


def contents(recipe: Recipe) -> Iterator[bytes]:
    """Digests of all files that say what is installed, and of packages built from the commit itself.

    Raises:
        NodeFailed: `environment_failed`, when one of them leads out of the commit.
    """
    wanted, root = recipe.wanted, recipe.root
    if wanted.file is None:
        return
    if wanted.kind == "project":
        yield _digest(wanted.file)
        yield _digest(wanted.file.parent / "pyproject.toml")
        for package in local_packages(wanted.file):
            yield from _local(package, root)
        return
    for path, content in (one for file in wanted.files for one in files(file, root)):
        yield secrets.token_bytes(16) if remote(path) else content  # it may be another each time
        for name in _names(path, content):
            yield from _local(path.parent / name, root)


def files(first: Path, root: Path, *, constraints: bool = True) -> Iterator[tuple[Path, bytes]]:
    """A requirements file and every file that it includes; those named by URL have no content here."""
    todo, seen = [first], set[Path]()
    while todo and len(seen) < MAX_INCLUDES:
        current = todo.pop(0)
        if current in seen:
            continue
        seen.add(current)
        content = b"" if remote(current) else read(_inside(current, root))
        yield current, content
        for line in lines_of(content) if _lists(current) else ():
            include = _INCLUDE.match(line)
            if (
                include
                and len(include[2]) < MAX_NAME
                and (constraints or include[1] in ("-r", "--requirement"))
            ):
                name = include[2]
                todo.append(Path(name) if "://" in name else current.parent / name)


def remote(path: Path) -> bool:
    """Whether it is a URL."""
    return bool(_URL.match(str(path)))


def _lists(path: Path) -> bool:
    return path.suffix in ("", ".txt", ".in")


def _inside(path: Path, root: Path) -> Path:
    """A path that a commit names, which has to stay in it: what is read here is read with our rights."""
    if not path.resolve().is_relative_to(root.resolve()):
        raise NodeFailed(f"{path.name}: {path} leads out of the commit", code="environment_failed")
    return path


def read(path: Path) -> bytes:
    if not path.is_file():
        return b"missing"  # the installer says it better
    if path.stat().st_size > MAX_FILE:
        raise NodeFailed(f"{path.name} is larger than {MAX_FILE} bytes", code="environment_failed")
    return path.read_bytes()


def _digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def lines_of(content: bytes) -> list[str]:
    return content.decode("utf-8", "replace").splitlines()


def _names(path: Path, content: bytes) -> Iterator[str]:
    """The local files and folders that a requirements file names as packages."""
    if path.name == "pyproject.toml":
        tool = _table(content).get("tool", {}).get("uv", {}).get("sources", {})
        named = [each.get("path") for each in tool.values() if isinstance(each, dict)]
        yield from (name for name in named if isinstance(name, str))
    for line in lines_of(content) if _lists(path) else ():
        name = EDITABLE.sub("", line.split("#")[0].strip()).rpartition("@ ")[2].split(" --hash")[0]
        if name and not _INCLUDE.match(line):
            yield name.removeprefix("file://").partition("[")[0].partition(";")[0].strip()


def _local(path: Path, root: Path) -> Iterator[bytes]:
    """A package that lies in the commit, as a file or a folder; nothing if there is none of that name."""
    if len(str(path)) >= MAX_NAME + len(str(root)) or not path.exists():
        return
    _inside(path, root)
    if path.is_file():
        yield _digest(path)
        return
    count = 0
    for folder, names, found in os.walk(path):
        names[:] = sorted(name for name in names if name != ".git")
        for name in sorted(found):
            file = Path(folder, name)
            count += 1
            if count > MAX_SOURCES:
                yield secrets.token_bytes(16)  # too many to look at: never found again
                return
            yield str(file.relative_to(path)).encode()
            if file.is_file() and file.resolve().is_relative_to(root.resolve()):
                yield _digest(file)


def _table(content: bytes) -> dict[str, Any]:
    try:
        return tomllib.loads(content.decode("utf-8", "replace"))
    except tomllib.TOMLDecodeError:
        return {}  # the installer says what is wrong with it, and where


def local_packages(lock: Path) -> list[Path]:
    """What uv.lock has built from the commit, the project itself too if it is a package."""
    found = []
    for package in _table(read(lock)).get("package", []):
        source = package.get("source", {})
        name = source.get("editable") or source.get("directory") or source.get("path")
        if isinstance(name, str) and (lock.parent / name).exists():
            found.append(lock.parent / name)
    return sorted(found)
