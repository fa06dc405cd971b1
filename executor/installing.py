"""Makes an environment: uv first, pip where uv is missing or cannot read the file, conda for its own files.

It is made aside, looked at, and renamed into place, so that what stands under a key is whole. conda writes
its folder's name into what it installs: it works in place, and the note that it is whole comes last.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import uv

from trainforge.config.errors import NodeFailed
from trainforge.config.failpoints import failpoint
from trainforge.executor import untrusted
from trainforge.executor.commands import Setup
from trainforge.executor.isolating import Bare, Walls
from trainforge.executor.recipe import Recipe, local_packages, uv_cache

READY = "trainforge-ready.json"
CODE = "environment_failed"
CONDA = ("micromamba", "mamba", "conda")
TORCH_INDEX = "https://download.pytorch.org/whl"
SCRIPT_MAX = 2**20
_TO_BUILD = re.compile(r"no-build|source dist|[Bb]uilding|no usable wheels|only-binary")
_NOT_FOR_UV = re.compile(
    r"Unsupported URL prefix|Expected `--hash`, found|Unexpected '-'|supported file extension"
)


def find_uv() -> str:
    """The program; empty where there is none."""
    try:
        return uv.find_uv_bin()
    except FileNotFoundError:
        return shutil.which("uv") or ""


def find_conda() -> str:
    """conda, or what does its work; empty where there is none."""
    return next(filter(None, map(shutil.which, CONDA)), "")


def installers() -> list[str]:
    """Those that this machine has."""
    has = {"uv": bool(find_uv()), "pip": find_spec("pip") is not None, "conda": bool(find_conda())}
    return [name for name, there in has.items() if there]


def build(home: Path, recipe: Recipe, setup: Setup) -> None:
    """Make it empty, install, compile, look whether it runs.

    What is installed runs code of its own from there on, and is built by code of its own if it is no wheel:
    that is the job's, and cannot reach the cache that all jobs share.

    Raises:
        NodeFailed: `environment_failed`, with the installer's last lines.
    """
    conda = recipe.wanted.kind == "conda"
    aside = home if conda else home.with_name(f".{home.name}.{secrets.token_hex(4)}")
    setup.say(f"building environment {home.name[:12]}")
    try:
        base = "" if conda else _empty(aside, recipe, setup)
        installer = _by_conda(aside, recipe, setup) if conda else _install(aside, home, base, recipe, setup)
        if recipe.wanted.file and not conda:
            _compile(aside, base, recipe, setup)
        if not runs(aside, base, recipe.walls):
            raise NodeFailed("the new environment's Python does not start", code=CODE)
        failpoint("25.executor.environment")
        recipe.walls.take_back(aside)
        python = aside / "bin" / "python"
        about = {"key": home.name, "base": base, "version": recipe.interpreter.version}
        about |= {"installer": installer, "stamp": stamp(python)}
        untrusted.write_new(aside / READY, json.dumps(about))
        if not conda:
            aside.rename(home)
    finally:
        if not (aside / READY).exists():
            shutil.rmtree(aside, ignore_errors=True)


def note(home: Path) -> dict[str, str]:
    """What was written down of a whole environment; nothing of one that is not whole."""
    try:
        return {"base": "", **json.loads((home / READY).read_text())}
    except (OSError, ValueError):
        return {}


def whole(home: Path, walls: Walls | Bare) -> bool:
    """As it was made, on the Python that it was made with; if that has changed, whether it starts."""
    about, python = note(home), home / "bin" / "python"
    if not about or not os.access(python, os.X_OK):
        return False
    return about.get("stamp") == stamp(python) or runs(home, about["base"], walls)


def stamp(python: Path) -> str:
    """Changes with the program that this Python is in the end."""
    try:
        status = python.resolve(strict=True).stat()
    except OSError:
        return ""
    return f"{status.st_ino}.{status.st_size}.{status.st_mtime_ns}"


def runs(home: Path, base: str, walls: Walls | Bare) -> bool:
    """Whether its Python starts, and is its own."""
    code = "import sys; sys.exit(sys.prefix != sys.argv[1])"
    before = walls.before(home, read=[home, Path(base)] if base else [home], network=False)
    try:
        argv = [*before, str(home / "bin" / "python"), "-I", "-c", code, str(home)]
        done = subprocess.run(
            argv, env=walls.environment({}), capture_output=True, timeout=60, check=False, cwd=home
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def reader(recipe: Recipe, write: Sequence[Path] = ()) -> list[str]:
    """Around uv as ours, with the cache that all jobs share: it reads what a job wrote and runs nothing."""
    shared = uv_cache(recipe.env)
    shared.mkdir(parents=True, exist_ok=True)
    return recipe.walls.before(
        recipe.cwd, write=[shared, *write], read=recipe.reading(), network=True, as_us=True
    )


def _empty(aside: Path, recipe: Recipe, setup: Setup) -> str:
    """A virtual environment with nothing in it; gives the folder of the Python that it is built on."""
    python, program = recipe.interpreter.path, find_uv()
    argv = [program, "venv", "--no-config", "--relocatable", "--python", python, str(aside)]
    if not program:
        argv = [python, "-I", "-m", "venv", "--without-pip", str(aside)]
    setup.run(argv, cwd=aside.parent, env=recipe.env, code=CODE)
    return str((aside / "bin" / "python").resolve().parent.parent)


def _install(aside: Path, home: Path, base: str, recipe: Recipe, setup: Setup) -> str:
    """Install what is wanted; gives the installer's name."""
    if recipe.wanted.file is None:
        recipe.walls.hand_over([aside])
        return ""
    program = find_uv()
    if program:
        try:
            _by_uv(program, aside, base, recipe, setup)
        except NodeFailed as failed:
            if recipe.wanted.kind != "requirements" or not _NOT_FOR_UV.search(failed.message):
                raise
            setup.say("uv does not know all of this: once more with pip")
        else:
            return "uv"
    _by_pip(aside, home, base, recipe, setup)
    return "pip"


# --- uv -------------------------------------------------------------------------------------------------


def _by_uv(program: str, aside: Path, base: str, recipe: Recipe, setup: Setup) -> None:
    """Wheels if they are all there are, for which nothing of theirs runs; else what has to be built too."""
    walls, own = recipe.walls, {"UV_PROJECT_ENVIRONMENT": str(aside)}
    argv = [program, *uv_arguments(recipe, str(aside / "bin" / "python"))]
    if not walls.apart and walls.user is None:
        setup.run(argv, cwd=recipe.cwd, env={**recipe.env, **own}, code=CODE, before=reader(recipe, [aside]))
        return
    wheels = [*argv, "--no-build", "--link-mode", "copy"]  # links do not reach out of a sandbox
    project = recipe.wanted.kind == "project"
    if project:
        wheels.append("--no-install-local")
    try:
        before, env = reader(recipe, [aside]), recipe.within | own
        setup.run(wheels, cwd=recipe.cwd, env=env, code=CODE, before=before)
        to_build = project and bool(local_packages(recipe.wanted.file or aside))
    except NodeFailed as failed:
        said = failed.message.partition("\n")[2]  # after the command, which names such options itself
        if not _TO_BUILD.search(said):
            raise
        to_build = True
    walls.hand_over([aside])
    if to_build:
        setup.say("some of these have to be built: apart from other jobs")
        _as_the_job([*argv, "--link-mode", "copy"], aside, base, recipe, setup)


def uv_arguments(recipe: Recipe, python: str) -> list[str]:
    """What uv is told to install, into the environment of this Python."""
    wanted = recipe.wanted
    extras = [part for extra in wanted.extras for part in ("--extra", extra)]
    if wanted.kind == "project":
        argv = ["sync", "--no-config", "--frozen", "--inexact", "--no-dev", "--no-editable"]
        return [*argv, "--python", python, *extras]
    exact = wanted.kind == "exact"
    argv = ["pip", "sync" if exact else "install", "--no-config", "--python", python]
    if recipe.backend:
        argv += ["--torch-backend", recipe.backend]
    if recipe.strict and wanted.file and wanted.file.suffix != ".toml":
        argv.append("--require-hashes")
    if exact:
        return [*argv, str(wanted.file)]
    return [*argv, *extras, *(part for file in wanted.files for part in ("-r", str(file)))]


def _as_the_job(argv: list[str], aside: Path, base: str, recipe: Recipe, setup: Setup) -> None:
    """Within the job's walls, with caches that no other job sees: what is built runs code of its own."""
    walls = recipe.walls
    walls.hand_over([aside])
    read = [*recipe.reading(), *([Path(base)] if base else [])]
    before = walls.before(recipe.cwd, write=[aside], read=read)
    env = walls.environment(recipe.env)
    env["UV_PROJECT_ENVIRONMENT"] = str(aside)
    if walls.apart or walls.user is not None:
        caches = ("UV_CACHE_DIR", "PIP_CACHE_DIR", "CONDA_PKGS_DIRS", "MAMBA_ROOT_PREFIX")
        env |= {name: f"{env['TMPDIR']}/{name.lower()}" for name in caches}
    setup.run(argv, cwd=recipe.cwd, env=env, code=CODE, before=before)


# --- pip ------------------------------------------------------------------------------------------------


def _by_pip(aside: Path, home: Path, base: str, recipe: Recipe, setup: Setup) -> None:
    wanted = recipe.wanted
    if find_spec("pip") is None:
        raise NodeFailed("there is no uv and no pip here: pip install uv", code=CODE)
    tables = [file.name for file in wanted.files if file.suffix in (".toml", ".lock")]
    if tables:
        name = tables[0]
        raise NodeFailed(f"{name} needs uv, which is not on this machine: pip install uv", code=CODE)
    argv = [sys.executable, "-m", "pip", "--python", str(aside / "bin" / "python"), "install", "--no-input"]
    argv += ["--disable-pip-version-check", *(["--require-hashes"] if recipe.strict else [])]
    argv += ["--no-deps"] if wanted.kind == "exact" else []
    argv += ["--extra-index-url", f"{TORCH_INDEX}/{recipe.backend}"] if recipe.backend else []
    _as_the_job([*argv, "-r", str(wanted.file)], aside, base, recipe, setup)
    _mend_scripts(aside, home)


def _mend_scripts(aside: Path, home: Path) -> None:
    """pip writes into each script which Python runs it, by the name that the environment has until now."""
    before, after = os.fsencode(aside), os.fsencode(home)
    for path in (aside / "bin").iterdir():
        if path.is_symlink() or not path.is_file() or path.stat().st_size > SCRIPT_MAX:
            continue
        content = path.read_bytes()
        if content.startswith(b"#!") and before in content:
            mode = path.stat().st_mode
            path.unlink()
            path.write_bytes(content.replace(before, after))
            path.chmod(mode)


# --- conda ----------------------------------------------------------------------------------------------


def _by_conda(home: Path, recipe: Recipe, setup: Setup) -> str:
    program, file = find_conda(), str(recipe.wanted.file)
    if not program:
        words = f"{Path(file).name} needs conda, and there is no {', '.join(CONDA[:-1])} or conda here"
        raise NodeFailed(f"{words}: install micromamba, or name a requirements file", code=CODE)
    name = Path(program).name
    listed = not file.endswith((".yml", ".yaml"))
    verb = ["install", "--yes"] if listed or name != "conda" else ["env", "update"]
    argv = [program, *verb, "--prefix", str(home), "--file", file]
    (home / "conda-meta").mkdir(parents=True)  # an empty environment, which the job's walls are built around
    (home / "conda-meta" / "history").touch()
    _as_the_job(argv, home, str(Path(program).resolve().parent.parent), recipe, setup)
    if not (home / "bin" / "python").exists():
        raise NodeFailed(f"{Path(file).name} asks for no python", code=CODE)
    return name


# --- then -----------------------------------------------------------------------------------------------


def _compile(aside: Path, base: str, recipe: Recipe, setup: Setup) -> None:
    """While it is made once, so that no job's imports wait for it."""
    walls = recipe.walls
    argv = [str(aside / "bin" / "python"), "-I", "-m", "compileall", "-qq", "-j", "0", str(aside / "lib")]
    before = walls.before(aside, write=[aside], read=[Path(base)], network=False)
    with contextlib.suppress(NodeFailed):  # some packages hold files that are not for this Python
        setup.run(argv, cwd=aside, env=walls.environment(recipe.env), code=CODE, before=before)
