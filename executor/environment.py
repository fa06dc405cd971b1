"""The Python that a training runs with: the executor's own, or one built for it and kept by its key.

A built environment is made aside, checked, and renamed into place under a lock: what stands under its key
is whole. The key is the digest of everything that decides what gets installed.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import re
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import uv

from trainforge.config.errors import NodeFailed
from trainforge.config.failpoints import failpoint
from trainforge.config.manifest import Manifest
from trainforge.executor.commands import Setup
from trainforge.executor.launch import base_environment

READY = "trainforge-ready.json"
MAX_INCLUDES = 50
_INCLUDE = re.compile(r"^\s*(?:-r|--requirement|-c|--constraint)[\s=]+(\S+)")
_COMPARISON = re.compile(r"\s*(>=|<=|==|!=|~=|>|<|)\s*(\d+(?:\.\d+)*)(\.\*)?\s*")


@dataclass(frozen=True)
class Environment:
    python: str
    mode: str  # inherit, isolated
    key: str = ""


@dataclass(frozen=True)
class Recipe:
    """What to build: `python` is a version wanted, or empty for the executor's own."""

    python: str
    requirements: Path | None
    cwd: Path
    env: Mapping[str, str]


def prepare(
    manifest: Manifest, cwd: Path, cache: Path, setup: Setup, inherited: Mapping[str, str]
) -> Environment:
    """The environment that the manifest asks for, built now if it has to be.

    Raises:
        NodeFailed: `environment_failed`, with the installer's last lines.
    """
    requirements = _requirements(manifest, cwd)
    mode = manifest.environment.mode
    if mode == "container":
        raise NodeFailed("environment.mode container is not in effect yet", code="environment_failed")
    wanted = manifest.training.python or ""
    fits = python_fits(wanted, platform.python_version())
    if mode == "inherit" and not fits:
        raise NodeFailed(
            f"the executor runs Python {platform.python_version()}, training.python asks for {wanted}",
            code="environment_failed",
        )
    if mode == "inherit" or (mode == "auto" and fits and satisfied(requirements, cwd, inherited)):
        return Environment(sys.executable, "inherit")
    return _isolated(Recipe(wanted, requirements, cwd, _uv_environment(inherited)), cache, setup)


def _requirements(manifest: Manifest, cwd: Path) -> Path | None:
    name = manifest.training.requirements
    if name is None:
        return None
    path = cwd / name
    if not path.is_file() or not path.resolve().is_relative_to(cwd.resolve()):
        raise NodeFailed(
            f"training.requirements: there is no file {name} in this commit", code="environment_failed"
        )
    return path


def python_fits(wanted: str, version: str) -> bool:
    """Whether a version satisfies `3.11`, `>=3.11,<3.14` and the like."""
    have = tuple(int(part) for part in re.findall(r"\d+", version)[:3])
    for clause in filter(None, wanted.split(",")):
        match = _COMPARISON.fullmatch(clause)
        if match is None:
            return False
        want = tuple(int(part) for part in match[2].split("."))
        same = have[: len(want)] == want
        at_least = have >= want
        verdicts = {
            "": same, "==": same, "!=": not same, ">=": at_least, "<": not at_least,
            "<=": same or not at_least, ">": at_least and not same,
            "~=": at_least and have[: len(want) - 1] == want[:-1],
        }  # fmt: skip
        if not verdicts[match[1]]:
            return False
    return True


def satisfied(requirements: Path | None, cwd: Path, inherited: Mapping[str, str]) -> bool:
    """Whether this interpreter already has what the file asks for: uv would install nothing, offline."""
    if requirements is None:
        return True
    argv = [uv.find_uv_bin(), "pip", "install", "--dry-run", "--offline", "--no-config"]
    argv += ["--python", sys.executable, "--break-system-packages", "-r", str(requirements)]
    answer = subprocess.run(
        argv, cwd=cwd, env=_uv_environment(inherited), capture_output=True, timeout=120, check=False
    )
    return answer.returncode == 0 and b"Would install" not in answer.stderr


def _uv_environment(inherited: Mapping[str, str]) -> dict[str, str]:
    """uv's own settings of the machine (an index, a cache) stay; bytecode is compiled while building."""
    kept = {name: value for name, value in inherited.items() if name.startswith(("UV_", "PIP_", "NETRC"))}
    return {**base_environment(inherited), **kept, "UV_PYTHON_DOWNLOADS": "never", "UV_NO_PROGRESS": "1"}


def _isolated(recipe: Recipe, cache: Path, setup: Setup) -> Environment:
    key = environment_key(recipe.python, recipe.requirements)
    home = cache / key
    cache.mkdir(parents=True, exist_ok=True)
    with _locked(cache / f"{key}.lock", setup):
        if not _whole(home):
            shutil.rmtree(home, ignore_errors=True)
            _build(home, recipe, setup)
        else:
            setup.say(f"environment {key[:12]} is kept from before")
        os.utime(home)
    return Environment(str(home / "bin" / "python"), "isolated", key)


def environment_key(wanted: str, requirements: Path | None) -> str:
    digest = hashlib.sha256()
    for part in ("1", wanted or platform.python_version(), sys.implementation.cache_tag, platform.machine()):
        digest.update(part.encode() + b"\0")
    for content in _contents(requirements):
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()[:40]


def _contents(path: Path | None) -> Iterator[bytes]:
    """A requirements file, every file it includes, and every local file it names."""
    todo = [path] if path else []
    seen: set[Path] = set()
    while todo and len(seen) < MAX_INCLUDES:
        current = todo.pop()
        if current in seen:
            continue
        seen.add(current)
        try:
            content = current.read_bytes()
        except OSError:
            continue
        yield content
        for line in (
            content.decode("utf-8", "replace").splitlines() if current.suffix in ("", ".txt", ".in") else ()
        ):
            include = _INCLUDE.match(line)
            name = include[1] if include else line.split("#")[0].strip().rpartition("@ ")[2]
            local = current.parent / name.removeprefix("file://")
            if name and len(name) < 500 and local.is_file():
                todo.append(local)


@contextlib.contextmanager
def _locked(path: Path, setup: Setup) -> Iterator[None]:
    """Wait for whoever builds the same environment, as long as this node may."""
    with path.open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                setup.check()
                time.sleep(0.1)
        yield


def _whole(home: Path) -> bool:
    return (home / READY).is_file() and _runs(home)


def _runs(home: Path) -> bool:
    try:
        argv = [
            str(home / "bin" / "python"),
            "-I",
            "-c",
            "import sys; sys.exit(sys.prefix == sys.base_prefix)",
        ]
        return subprocess.run(argv, capture_output=True, timeout=60, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def _build(home: Path, recipe: Recipe, setup: Setup) -> None:
    aside = home.with_name(f".{home.name}.{secrets.token_hex(4)}")
    setup.say(f"building environment {home.name[:12]}")
    program = uv.find_uv_bin()
    try:
        python = recipe.python or sys.executable
        argv = [program, "venv", "--no-config", "--relocatable", "--python", python, str(aside)]
        setup.run(argv, cwd=recipe.cwd, env=recipe.env, code="environment_failed")
        if recipe.requirements:
            argv = [program, "pip", "install", "--no-config", "--compile-bytecode"]
            argv += ["--python", str(aside / "bin" / "python"), "-r", str(recipe.requirements)]
            setup.run(argv, cwd=recipe.cwd, env=recipe.env, code="environment_failed")
        if not _runs(aside):
            raise NodeFailed("the new environment's Python does not start", code="environment_failed")
        failpoint("25.executor.environment")
        (aside / READY).write_text(json.dumps({"python": recipe.python, "key": home.name}))
        aside.rename(home)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def freeze(python: str, inherited: Mapping[str, str]) -> str:
    """The installed packages with their versions, for the result."""
    argv = [uv.find_uv_bin(), "pip", "freeze", "--no-config", "--python", python]
    answer = subprocess.run(
        argv, env=_uv_environment(inherited), capture_output=True, timeout=60, check=False
    )
    return answer.stdout.decode("utf-8", "replace") if answer.returncode == 0 else ""
