"""The Python that a training runs with: the executor's own, or one made for it and kept by its key.

What a job wants is in `recipe`, how it is made in `installing`, for how long it is kept in `budget`.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from trainforge.config.errors import NodeFailed
from trainforge.config.manifest import Manifest
from trainforge.executor import budget, installing, torch_fit
from trainforge.executor.commands import Setup
from trainforge.executor.isolating import BARE, Bare, Walls
from trainforge.executor.launch import base_environment
from trainforge.executor.pinned import check_strict
from trainforge.executor.recipe import OWN, Interpreter, Recipe, key_of, wanted_of
from trainforge.executor.torch_fit import UNKNOWN, Driver

_COMPARISON = re.compile(r"\s*(>=|<=|==|!=|~=|>|<|)\s*(\d+(?:\.\d+)*)(\.\*)?\s*")
MACHINE = "machine.json"  # in the node's folder: what it ran on, for the result
USES_TORCH = ("accelerate", "torchrun")


@dataclass(frozen=True)
class Environment:
    python: str
    mode: str  # inherit, isolated
    key: str = ""
    base: str = ""  # the Python that an isolated one is built on
    version: str = ""  # of Python, such as 3.11.7
    installer: str = ""  # what it was made with: uv, pip, micromamba
    wanted: str = ""  # the file that says what is in it
    torch: str = ""  # its version, with its CUDA version
    strict: bool = False

    @property
    def folders(self) -> list[Path]:
        """What has to be seen to run it, besides the executor's own Python."""
        home = Path(self.python).parent.parent
        return [home, *([Path(self.base)] if self.base else [])] if self.key else []


@dataclass(frozen=True)
class Place:
    """Where a job's environment is chosen: its commit, this machine's cache, driver and given GPUs."""

    cwd: Path
    cache: Path
    walls: Walls | Bare = BARE
    work: Path | None = None  # the commit's folder; default: `cwd`
    node: Path | None = None  # the node's, which has a lease on what it uses
    driver: Driver = UNKNOWN
    gpus: Sequence[str] = ()


def prepare(manifest: Manifest, place: Place, setup: Setup, inherited: Mapping[str, str]) -> Environment:
    """The environment that the manifest asks for, made now if it has to be; a container has its own.

    Raises:
        NodeFailed: `environment_failed`, with the installer's last lines; `requirements_unpinned`;
            `torch_misfit`, when its torch cannot use the machine's GPUs.
    """
    wanted, around = wanted_of(manifest, place.cwd), manifest.environment
    asked = manifest.training.python or ""
    fits = python_fits(asked, platform.python_version())
    if around.mode == "inherit" and not fits:
        raise NodeFailed(
            f"the executor runs Python {platform.python_version()}, training.python asks for {asked}",
            code="environment_failed",
        )
    if around.mode == "inherit" and around.strict:
        words = "environment.strict takes an environment of the job's own, and this executor gives it none"
        raise NodeFailed(f"{words} (environment_mode: inherit)", code="policy_refused")
    backend = around.torch_backend or ""
    backend = torch_fit.backend(place.driver, place.gpus) if backend == "auto" else backend
    env = _installers_environment(inherited, place.cache)
    recipe = Recipe(wanted, place.cwd, env, OWN, around.strict, backend, place.work, place.walls)
    if around.strict:
        check_strict(recipe)
    if around.mode == "inherit" or (around.mode == "auto" and fits and satisfied(recipe)):
        chosen = Environment(sys.executable, "inherit", version=platform.python_version())
    else:
        own = fits or wanted.kind == "conda"
        recipe = recipe if own else replace(recipe, interpreter=_interpreter(asked, recipe, setup))
        chosen = _isolated(recipe, place, setup)
    file = os.path.relpath(wanted.file, place.cwd) if wanted.file else ""
    return _with_torch(replace(chosen, wanted=file, strict=around.strict), manifest, place, setup)


def _with_torch(chosen: Environment, manifest: Manifest, place: Place, setup: Setup) -> Environment:
    """Before anything trains: whether its torch can use the job's GPUs."""
    torch = torch_fit.torch_of(chosen.python)
    why = torch_fit.misfit(torch, place.driver, place.gpus)
    if why and manifest.training.launcher in USES_TORCH:
        raise NodeFailed(why, code="torch_misfit")
    if why:  # the script may use the GPUs by other means
        setup.say(f"warning: {why}")
    if torch is None:
        return chosen
    return replace(chosen, torch=f"{torch.version}, CUDA {torch.cuda}" if torch.cuda else torch.version)


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
    """Whether this interpreter already has what the file asks for: nothing would be installed, offline."""
    wanted = recipe.wanted
    if wanted.file is None:
        return not recipe.strict
    if wanted.kind != "requirements" or recipe.strict or recipe.backend:
        return False
    program = installing.find_uv()
    argv = [program, "pip", "install", "--dry-run", "--offline", "--no-build", "--no-config"]
    argv += ["--python", sys.executable, "--break-system-packages"]
    if not program:
        argv = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-index"]
    argv += [part for extra in wanted.extras for part in ("--extra", extra)]
    argv += [part for file in wanted.files for part in ("-r", str(file))]
    answer = subprocess.run(
        [*installing.reader(recipe), *argv],
        cwd=recipe.cwd,
        env=recipe.within,
        capture_output=True,
        timeout=120,
        check=False,
    )
    return answer.returncode == 0 and b"Would install" not in answer.stderr + answer.stdout


def _installers_environment(inherited: Mapping[str, str], cache: Path) -> dict[str, str]:
    """uv's and pip's own settings of the machine stay; Pythons that uv fetches lie with the environments."""
    kept = {name: value for name, value in inherited.items() if name.startswith(("UV_", "PIP_", "NETRC"))}
    ours = {"UV_NO_PROGRESS": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    fetched = {
        "UV_PYTHON_DOWNLOADS": "manual",
        "UV_PYTHON_INSTALL_DIR": str(cache.parent / "python"),
        "UV_PYTHON_INSTALL_BIN": "0",
    }
    return {**base_environment(inherited), **ours, **fetched, **kept}


def _interpreter(asked: str, recipe: Recipe, setup: Setup) -> Interpreter:
    """A Python of the version asked for: one of the machine's, else one that uv fetches."""
    program = installing.find_uv()
    if not program:
        words = f"training.python asks for {asked}, this is {platform.python_version()}"
        raise NodeFailed(
            f"{words}, and without uv there is no other: pip install uv", code="environment_failed"
        )
    found = _find_python(program, asked, recipe)
    if found is None:
        setup.say(f"there is no Python {asked} here: fetching one")
        argv = [program, "python", "install", "--no-config", asked]
        setup.run(argv, cwd=recipe.cwd, env=recipe.env, code="environment_failed")
        found = _find_python(program, asked, recipe)
    if found is None:
        raise NodeFailed(f"there is no Python {asked} for this machine", code="environment_failed")
    return found


def _find_python(program: str, asked: str, recipe: Recipe) -> Interpreter | None:
    argv = [program, "python", "find", "--no-config", "--no-project", "--system", "--no-python-downloads"]
    said = [
        subprocess.run(
            [*argv, *more, asked], env=recipe.env, cwd="/", capture_output=True, timeout=60, check=False
        ).stdout.decode().strip()
        for more in ([], ["--show-version"])
    ]  # fmt: skip
    return Interpreter(said[0], said[1]) if all(said) else None


def _isolated(recipe: Recipe, place: Place, setup: Setup) -> Environment:
    key = key_of(recipe)
    home = place.cache / key
    with budget.locked(home, setup.check):
        if not installing.whole(home, place.walls):
            budget.discard(home)
            installing.build(home, recipe, setup)
        else:
            setup.say(f"environment {key[:12]} is kept from before")
        if place.node is not None:
            budget.lease(place.node, home)
    note = installing.note(home)
    python = str(home / "bin" / "python")
    return Environment(python, "isolated", key, note["base"], note["version"], note["installer"])


def freeze(chosen: Environment, inherited: Mapping[str, str], walls: Walls | Bare = BARE) -> str:
    """The installed packages with their versions, for the result."""
    home, program = Path(chosen.python).parent.parent, installing.find_uv()
    if (home / "conda-meta").is_dir():
        return _conda_list(home)
    argv = [program, "pip", "freeze", "--no-config", "--no-cache", "--python", chosen.python]
    if not program:
        argv = [sys.executable, "-m", "pip", "--python", chosen.python, "freeze"]
    answer = subprocess.run(
        [*walls.before(home, read=chosen.folders, network=False), *argv],
        env=walls.environment(_installers_environment(inherited, home)),
        capture_output=True,
        timeout=60,
        check=False,
    )
    return answer.stdout.decode("utf-8", "replace") if answer.returncode == 0 else ""


def _conda_list(home: Path) -> str:
    """As `conda list --explicit --md5` has it, which conda makes the same environment from."""
    urls = []
    for path in (home / "conda-meta").glob("*.json"):
        about = json.loads(path.read_text())
        urls.append(f"{about.get('url', path.stem)}#{about.get('md5', '')}")
    return "\n".join(["@EXPLICIT", *sorted(urls)]) + "\n"
