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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import uv

from trainforge.config.errors import NodeFailed
from trainforge.config.failpoints import failpoint
from trainforge.config.manifest import Manifest
from trainforge.executor import untrusted
from trainforge.executor.commands import Setup
from trainforge.executor.isolating import BARE, Bare, Walls
from trainforge.executor.launch import base_environment

READY = "trainforge-ready.json"
MAX_INCLUDES = 50
MAX_SOURCES = 2000
_EDITABLE = re.compile(r"^(?:-e|--editable)[\s=]+")
_INCLUDE = re.compile(r"^\s*(?:-r|--requirement|-c|--constraint)[\s=]+(\S+)")
_TO_BUILD = re.compile(r"no-build|source dist|[Bb]uilding|no usable wheels|only-binary")
_COMPARISON = re.compile(r"\s*(>=|<=|==|!=|~=|>|<|)\s*(\d+(?:\.\d+)*)(\.\*)?\s*")


@dataclass(frozen=True)
class Environment:
    python: str
    mode: str  # inherit, isolated
    key: str = ""
    base: str = ""  # the Python that an isolated one is built on

    @property
    def folders(self) -> list[Path]:
        """What has to be seen to run it, besides the executor's own Python."""
        home = Path(self.python).parent.parent
        return [home, *([Path(self.base)] if self.base else [])] if self.key else []


@dataclass(frozen=True)
class Recipe:
    """What to build: `python` is a version wanted, or empty for the executor's own."""

    python: str
    requirements: Path | None
    cwd: Path
    env: Mapping[str, str]
    walls: Walls | Bare = BARE

    @property
    def within(self) -> dict[str, str]:
        """The variables within the walls."""
        return self.walls.environment(self.env) | {"UV_CACHE_DIR": str(uv_cache(self.env))}

    def reading(self) -> list[Path]:
        """What uv's own settings name, such as a folder of wheels."""
        named = (Path(value) for name, value in self.env.items() if name.startswith(("UV_", "PIP_", "SSL_")))
        return [self.cwd, *(path for path in named if path.is_absolute() and path.exists())]


def prepare(
    manifest: Manifest,
    cwd: Path,
    cache: Path,
    setup: Setup,
    inherited: Mapping[str, str],
    *,
    walls: Walls | Bare = BARE,
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
    recipe = Recipe(wanted, requirements, cwd, _uv_environment(inherited), walls)
    if mode == "inherit" or (mode == "auto" and fits and satisfied(recipe)):
        return Environment(sys.executable, "inherit")
    return _isolated(recipe, cache, setup)


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


def satisfied(recipe: Recipe) -> bool:
    """Whether this interpreter already has what the file asks for: uv would install nothing, offline."""
    if recipe.requirements is None:
        return True
    argv = [uv.find_uv_bin(), "pip", "install", "--dry-run", "--offline", "--no-build", "--no-config"]
    argv += ["--python", sys.executable, "--break-system-packages", "-r", str(recipe.requirements)]
    answer = subprocess.run(
        [*_reader(recipe), *argv],
        cwd=recipe.cwd,
        env=recipe.within,
        capture_output=True,
        timeout=120,
        check=False,
    )
    return answer.returncode == 0 and b"Would install" not in answer.stderr


def _reader(recipe: Recipe, write: Sequence[Path] = ()) -> list[str]:
    """Around uv as ours, with the cache that all jobs share: it reads what a job wrote and runs nothing."""
    shared = uv_cache(recipe.env)
    shared.mkdir(parents=True, exist_ok=True)
    return recipe.walls.before(
        recipe.cwd, write=[shared, *write], read=recipe.reading(), network=True, as_us=True
    )


def uv_cache(env: Mapping[str, str]) -> Path:
    """Where uv keeps what it has fetched."""
    home = Path(env.get("XDG_CACHE_HOME") or Path(env.get("HOME") or Path.home()) / ".cache")
    return Path(env.get("UV_CACHE_DIR") or home / "uv")


def _uv_environment(inherited: Mapping[str, str]) -> dict[str, str]:
    """uv's own settings of the machine (an index, a cache) stay; bytecode is compiled while building."""
    kept = {name: value for name, value in inherited.items() if name.startswith(("UV_", "PIP_", "NETRC"))}
    return {**base_environment(inherited), **kept, "UV_PYTHON_DOWNLOADS": "never", "UV_NO_PROGRESS": "1"}


def _isolated(recipe: Recipe, cache: Path, setup: Setup) -> Environment:
    key = environment_key(recipe.python, recipe.requirements)
    home = cache / key
    cache.mkdir(parents=True, exist_ok=True)
    with _locked(cache / f"{key}.lock", setup):
        if not _whole(home, recipe.walls):
            shutil.rmtree(home, ignore_errors=True)
            _build(home, recipe, setup)
        else:
            setup.say(f"environment {key[:12]} is kept from before")
        os.utime(home)
    return Environment(str(home / "bin" / "python"), "isolated", key, _note(home)["base"])


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
            name = (
                include[1] if include else _EDITABLE.sub("", line.split("#")[0].strip()).rpartition("@ ")[2]
            )
            local = current.parent / name.removeprefix("file://").partition("[")[0]
            if name and len(name) < 500 and local.is_file():
                todo.append(local)
            elif name and len(name) < 500 and local.is_dir():
                yield from _sources(local)


def _sources(folder: Path) -> Iterator[bytes]:
    """All of a package that is built from the commit: another commit's is another one."""
    files = (path for path in sorted(folder.rglob("*")) if ".git" not in path.relative_to(folder).parts)
    for number, path in enumerate(path for path in files if path.is_file()):
        if number >= MAX_SOURCES:
            yield secrets.token_bytes(16)  # too many to look at: never found again
            return
        yield str(path.relative_to(folder)).encode()
        yield path.read_bytes()


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


def _note(home: Path) -> dict[str, str]:
    """What was written down of a whole environment; nothing of one that is not whole."""
    try:
        return {"base": "", **json.loads((home / READY).read_text())}
    except (OSError, ValueError):
        return {}


def _whole(home: Path, walls: Walls | Bare) -> bool:
    note = _note(home)
    return bool(note) and _runs(home, note["base"], walls)


def _runs(home: Path, base: str, walls: Walls | Bare) -> bool:
    code = "import sys; sys.exit(sys.prefix == sys.base_prefix)"
    before = walls.before(home, read=[home, Path(base)] if base else [home], network=False)
    try:
        argv = [*before, str(home / "bin" / "python"), "-I", "-c", code]
        env = walls.environment(os.environ)
        return subprocess.run(argv, env=env, capture_output=True, timeout=60, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def _build(home: Path, recipe: Recipe, setup: Setup) -> None:
    """Make it empty, install, compile, look whether it runs.

    What is installed runs code of its own from there on, and is built by code of its own if it is no wheel:
    that is the job's, and cannot reach the cache that all jobs share.
    """
    aside = home.with_name(f".{home.name}.{secrets.token_hex(4)}")
    setup.say(f"building environment {home.name[:12]}")
    try:
        python = recipe.python or sys.executable
        argv = [uv.find_uv_bin(), "venv", "--no-config", "--relocatable", "--python", python, str(aside)]
        setup.run(argv, cwd=home.parent, env=recipe.env, code="environment_failed")
        base = _base(aside)
        if recipe.requirements:
            _install(aside, base, recipe, setup)
        if not _runs(aside, base, recipe.walls):
            raise NodeFailed("the new environment's Python does not start", code="environment_failed")
        failpoint("25.executor.environment")
        recipe.walls.take_back(aside)
        note = {"python": recipe.python, "key": home.name, "base": base}
        untrusted.write_new(aside / READY, json.dumps(note))
        aside.rename(home)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _base(home: Path) -> str:
    """The Python that a new environment is built on, where its own links lead."""
    return str((home / "bin" / "python").resolve().parent.parent)


def _install(aside: Path, base: str, recipe: Recipe, setup: Setup) -> None:
    """Wheels if they are all there are, for which nothing of theirs runs; else what has to be built too."""
    argv = [uv.find_uv_bin(), "pip", "install", "--no-config"]
    argv += ["--python", str(aside / "bin" / "python"), "-r", str(recipe.requirements)]
    walls, code = recipe.walls, "environment_failed"
    alone = walls.apart or walls.user is not None
    if not alone:
        setup.run(argv, cwd=recipe.cwd, env=recipe.env, code=code, before=_reader(recipe, [aside]))
    else:
        try:
            before = _reader(recipe, [aside])
            wheels = [*argv, "--no-build", "--link-mode", "copy"]  # links do not reach out of a sandbox
            setup.run(wheels, cwd=recipe.cwd, env=recipe.within, code=code, before=before)
        except NodeFailed as failed:
            if not _TO_BUILD.search(failed.message):
                raise
            setup.say("some of these have to be built: once more, apart from other jobs")
            walls.hand_over([aside])
            before = walls.before(recipe.cwd, write=[aside], read=[*recipe.reading(), Path(base)])
            env = walls.environment(recipe.env)
            env["UV_CACHE_DIR"] = f"{env['TMPDIR']}/uv"
            setup.run(argv, cwd=recipe.cwd, env=env, code=code, before=before)
        walls.hand_over([aside])
    compiling = [
        str(aside / "bin" / "python"),
        "-I",
        "-m",
        "compileall",
        "-qq",
        "-j",
        "0",
        str(aside / "lib"),
    ]
    before = walls.before(aside, write=[aside], read=[Path(base)], network=False)
    with contextlib.suppress(NodeFailed):  # some packages hold files that are not for this Python
        setup.run(compiling, cwd=aside, env=walls.environment(recipe.env), code=code, before=before)


def freeze(chosen: Environment, inherited: Mapping[str, str], walls: Walls | Bare = BARE) -> str:
    """The installed packages with their versions, for the result."""
    argv = [uv.find_uv_bin(), "pip", "freeze", "--no-config", "--no-cache", "--python", chosen.python]
    home = Path(chosen.python).parent.parent
    answer = subprocess.run(
        [*walls.before(home, read=chosen.folders, network=False), *argv],
        env=walls.environment(_uv_environment(inherited)),
        capture_output=True,
        timeout=60,
        check=False,
    )
    return answer.stdout.decode("utf-8", "replace") if answer.returncode == 0 else ""
