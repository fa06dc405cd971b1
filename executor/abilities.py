"""What this machine can enforce, found out once by really doing it."""

from __future__ import annotations

import contextlib
import dataclasses
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
from trainforge.executor import cgroups, container, engine, sandbox
from trainforge.executor.engine import Engine, EngineFailed
from trainforge.executor.launch import RANK_PROGRAM

USERS = range(61184, 65520)  # those that systemd gives to services of no account
TRY_S = 20
CONTAINER_S = 60
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
    no_container: str = "no engine was looked for"
    engine: Engine | None = None

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
        self._show_containers(levels, lacks, settings)
        if self.no_own_user:
            lacks["a user of its own at process"] = self.no_own_user
        missing = ALL - self.parents.folders.keys()
        if missing:
            lacks[f"bounds by control groups on {', '.join(sorted(missing))}"] = (
                "the system lets us make none"
            )
        strict: list[Level] = [level for level in levels if level != "container"]  # which needs an image
        usual: Level = strict[-1] if settings.isolation == "auto" else settings.isolation
        return Isolation(
            engine=self.engine.words if self.engine else "",
            image=settings.container_image,
            gpus=bool(self.engine and self.engine.gpus),
            usual=usual,
            levels=levels,
            own_user=not self.no_own_user,
            bounded=sorted(self.parents.folders),
            lacks=lacks,
        )

    def _show_containers(
        self, levels: list[Level], lacks: dict[str, str], settings: ExecutorSettings
    ) -> None:
        if self.engine is None or self.no_container:
            if settings.container_engine != "none":
                lacks["container"] = self.no_container
            return
        levels.append("container")
        if missing := ALL - set(self.engine.bounded):
            what = f"bounds of containers on {', '.join(sorted(missing))}"
            lacks[what] = f"{self.engine.words} cannot set any here"
        if not self.engine.network:
            lacks["a network of their own for containers"] = "the engine has none, so they have the machine's"
        if not self.engine.gpus and Path("/dev/nvidiactl").exists():
            lacks["GPUs in containers"] = engine.NO_GPUS


def check(settings: ExecutorSettings) -> None:
    """Raises SettingsError where the settings demand what this machine cannot enforce."""
    has = abilities(settings)
    if settings.isolation == "sandbox" and has.no_sandbox:
        hint = "install bubblewrap (apt-get install bubblewrap), or set isolation: process"
        raise SettingsError(f"isolation: sandbox does not work here: {has.no_sandbox}", hint=hint)
    if settings.isolation == "container" and not settings.container_image:
        hint = "such as container_image: pytorch/pytorch:2.6.0"
        raise SettingsError("isolation: container needs container_image", hint=hint)
    if settings.isolation == "container" and has.no_container:
        hint = "install Docker or Podman, or set isolation: sandbox"
        raise SettingsError(f"isolation: container does not work here: {has.no_container}", hint=hint)


def abilities(settings: ExecutorSettings) -> Abilities:
    return _abilities(settings.data_dir, settings.job_user, settings.container_engine)


@functools.cache
def _abilities(data_dir: Path, job_user: str, wanted: str) -> Abilities:
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
    around = tuple(sorted(engine.environment(os.environ).items()))
    no_container, usable = _find_engine(wanted, os.geteuid() if no_user else USERS[0], around)
    tried = {"no_sandbox": no_sandbox, "no_own_user": no_own_user, "no_container": no_container}
    return Abilities(**{**vars(found), **tried, "engine": usable})


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


# --- containers -----------------------------------------------------------------------------------------

# What a shell can tell of where it is: exit statuses, with what they mean.
TELLS = {
    11: "what it is shown to write to cannot be written to",
    12: "the image's own files can be written to",
    13: "it keeps rights of root",
    14: "it may gain new rights",
}
LOOK = """\
read said; test "$said" = hello || exit 10
: > "$1/it" || exit 11
(: > /it) 2>/dev/null && exit 12
while read -r name value rest; do case $name in
CapEff:|CapBnd:) test "$value" = 0000000000000000 || exit 13;;
NoNewPrivs:) test "$value" = 1 || exit 14;;
esac; done < /proc/self/status
"""


@functools.cache
def _find_engine(wanted: str, user: int, around: tuple[tuple[str, str], ...]) -> tuple[str, Engine | None]:
    """The first engine in which a container really runs as it has to; else why there is none."""
    if wanted == "none":
        return "container_engine: none", None
    why = []
    kinds: list[engine.Kind] = ["docker", "podman"]
    for kind in kinds if wanted == "auto" else [kind for kind in kinds if kind == wanted]:
        try:
            return "", _try_engine(engine.find(kind, dict(around)), user)
        except EngineFailed as error:
            words = str(error)
            why.append(words if words.startswith(kind) else f"{kind}: {words}")
    return "; ".join(why)[:300], None


def _try_engine(found: Engine, user: int) -> Engine:
    """Run a container like a job's; without a network of its own where the engine has none.

    Raises:
        EngineFailed: none runs, or it is not kept apart.
    """
    image = engine.try_image(found)
    try:
        _try_container(found, image, user, "")
    except EngineFailed as first:
        try:
            _try_container(found, image, user, "host")
        except EngineFailed:
            raise first from None
        return dataclasses.replace(found, network=False)
    return found


def _try_container(found: Engine, image: str, user: int, network: str) -> None:
    with tempfile.TemporaryDirectory(prefix="tf-try-") as name:
        folder = Path(name)
        os.chown(folder, user, -1)
        view = container.View(
            name=f"trainforge-try-{folder.name[-8:].strip('-_')}", node="try", cwd=folder, home=folder,
            user=user, write=(folder,), network=network, memory=2**28, cpus=1.0, pids=50,
        )  # fmt: skip
        program = ["/bin/sh", "-c", LOOK, "sh", name]
        try:
            found.call(
                *container.arguments(found, image, view, program), given=b"hello\n", timeout=CONTAINER_S
            )
        except EngineFailed as error:
            number = str(error).rpartition("exited with ")[2]
            raise EngineFailed(
                TELLS.get(int(number), str(error)) if number.isdigit() else str(error)
            ) from None
        if not found.rootless and (folder / "it").stat().st_uid != user:
            raise EngineFailed("who writes in a container is somebody else outside")
