"""What this machine can enforce, found out once by really doing it."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from trainforge.config.errors import SettingsError
from trainforge.config.isolation import Isolation, Level
from trainforge.config.settings import ExecutorSettings
from trainforge.executor import cgroups, sandbox
from trainforge.executor.launch import RANK_PROGRAM

USERS = range(61184, 65520)  # those that systemd gives to services of no account
TRY_S = 20
ALL = {"memory", "cpu", "pids"}
OWN_USER = "only root can give a job a user of its own"


@dataclass(frozen=True)
class Abilities:
    """`no_...` says why not, and is empty where it works."""

    no_sandbox: str
    no_user: str
    no_own_user: str  # at `process`, where all of the way to its folder has to be open to others
    system: sandbox.System
    parents: cgroups.Parents
    python: tuple[Path, ...]
    prlimit: bool
    no_new_rights: tuple[str, ...]

    def own_user(self, level: Level) -> bool:
        return not (self.no_own_user if level == "process" else self.no_user)

    def shown(self, settings: ExecutorSettings) -> Isolation:
        """For the sender, and for the machine's owner."""
        lacks = {}
        levels: list[Level] = ["process"]
        if self.no_sandbox:
            lacks["sandbox"] = self.no_sandbox
        else:
            levels.append("sandbox")
        if self.no_own_user:
            lacks["a user of its own at process"] = self.no_own_user
        missing = ALL - self.parents.folders.keys()
        if missing:
            lacks[f"bounds by control groups on {', '.join(sorted(missing))}"] = (
                "the system lets us make none"
            )
        usual: Level = levels[-1] if settings.isolation == "auto" else settings.isolation
        return Isolation(
            usual=usual,
            levels=levels,
            own_user=not self.no_own_user,
            bounded=sorted(self.parents.folders),
            lacks=lacks,
        )


def check(settings: ExecutorSettings) -> None:
    """Raises SettingsError where the settings demand what this machine cannot enforce."""
    has = abilities(settings)
    if settings.isolation == "sandbox" and has.no_sandbox:
        hint = "install bubblewrap (apt-get install bubblewrap), or set isolation: process"
        raise SettingsError(f"isolation: sandbox does not work here: {has.no_sandbox}", hint=hint)


def abilities(settings: ExecutorSettings) -> Abilities:
    return _abilities(settings.data_dir, settings.job_user)


@functools.cache
def _abilities(data_dir: Path, job_user: str) -> Abilities:
    root = os.geteuid() == 0
    setpriv, program = shutil.which("setpriv"), shutil.which("bwrap")
    no_user = "" if root else OWN_USER
    if root and job_user == "none":
        no_user = "job_user: none"
    elif root and not setpriv:
        no_user = "setpriv is not installed"
    system = sandbox.find_system(program or "bwrap", root=root)
    python = python_folders(data_dir)
    found = Abilities(
        no_sandbox="" if program else "bubblewrap is not installed",
        no_user=no_user,
        no_own_user=no_user,
        system=system,
        parents=cgroups.try_out(cgroups.find()) if Path("/proc/self/cgroup").exists() else _NO_GROUPS,
        python=python,
        prlimit=bool(shutil.which("prlimit")),
        no_new_rights=("setpriv", "--no-new-privs") if setpriv else (),
    )
    no_sandbox = found.no_sandbox or _try_sandbox(found)
    no_own_user = no_user or _try_user(data_dir)
    return Abilities(**{**vars(found), "no_sandbox": no_sandbox, "no_own_user": no_own_user})


_NO_GROUPS = cgroups.Parents(2, {})


def python_folders(data_dir: Path) -> tuple[Path, ...]:
    """This Python, what it imports, and us: jobs that inherit it need them, and `rank.py` is ours.

    Not where the executor was started, which Python imports from as well, nor what has private things in it.
    """
    ours = Path(__file__).parents[1]
    started = {Path.cwd(), Path(sys.argv[0]).absolute().parent, ours}
    around = {Path.home(), *Path.home().parents, data_dir, *data_dir.parents}
    imported = [path for path in map(Path, sys.path) if path.is_absolute() and path not in started]
    found = [Path(sys.prefix), Path(sys.base_prefix), *imported]
    rooms = [(ours / name).resolve() for name in ("config", "executor", "hooks", "sender")]
    found += [ours, *rooms]  # an installation for development has the rooms beside
    return sandbox.outermost(
        [path for path in found if path.is_dir() and path not in around and not _of_system(path)]
    )


def _of_system(path: Path) -> bool:
    return any(path.is_relative_to(name) for name in sandbox.SYSTEM)


def _try_sandbox(has: Abilities) -> str:
    with tempfile.TemporaryDirectory(prefix="tf-try-") as name:
        folder = Path(name)
        user = None if has.no_user else USERS[0]
        if user is not None:
            os.chown(folder, user, user)
        view = sandbox.View(cwd=folder, home=folder, tmp=folder, write=(folder,), read=has.python, user=user)
        look = "import ctypes, sys; open('it', 'w'); open(sys.argv[1])"
        program = [sys.executable, "-I", "-S", "-c", look, RANK_PROGRAM]
        return _trying([*sandbox.argv(has.system, view), *program]) or (
            "" if (folder / "it").exists() else "its folder stayed empty"
        )


def _try_user(data_dir: Path) -> str:
    """Whether another user gets to the folders of jobs, once those are opened, and to Python."""
    for folder in data_dir.resolve().parents:
        with contextlib.suppress(FileNotFoundError):
            if not folder.stat().st_mode & 0o001:
                return f"{folder} is closed to other users; keep data_dir elsewhere, such as /var/lib"
    look = "import ctypes, sys; open(sys.argv[1]); sys.exit(sys.base_prefix != sys.argv[2])"
    program = [sys.executable, "-I", "-S", "-c", look, RANK_PROGRAM, sys.base_prefix]
    why = _trying([*sandbox.as_user(USERS[0]), *program])
    return f"other users cannot run {sys.executable}: {why}" if why else ""


def _trying(argv: list[str]) -> str:
    """Why it does not run, in its own last words."""
    try:
        done = subprocess.run(
            argv, cwd="/", capture_output=True, text=True, timeout=TRY_S, check=False, errors="replace"
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)[:300]
    words = done.stderr.strip().splitlines()
    return "" if done.returncode == 0 else (words[-1] if words else f"it exited with {done.returncode}")[:300]
