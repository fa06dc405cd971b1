"""Keeps the programs of one node's job apart from the machine, as far as it lets us (see `abilities`).

`Walls` says what comes before a program's own arguments, and with which variables it runs. All programs of a
job go through it: its setup commands, the building of its environment, its training. It is found again by the
node's folder, since a training outlives the executor:  isolation.json   scratch/{home,tmp}
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pwd
import secrets
import shutil
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trainforge.config.containers import Mount, parse_volume
from trainforge.config.errors import NodeFailed
from trainforge.config.isolation import Level, demanded, lacking, strictest
from trainforge.config.manifest import Manifest
from trainforge.config.policy import Policy
from trainforge.config.settings import ExecutorSettings
from trainforge.executor import cgroups, container, containing, gpu_devices, sandbox, untrusted
from trainforge.executor.abilities import USERS, Abilities, abilities
from trainforge.executor.engine import LABEL, Engine
from trainforge.executor.limits import Limits
from trainforge.executor.supervisor import write_atomically

NOTE = "isolation.json"
MEMORY_SLACK = 64 * 2**20  # the supervisor, which asks first, sees it before the kernel kills
CACHES = ("TORCH_HOME", "XDG_CACHE_HOME", "HF_HOME", "HF_HUB_CACHE", "HF_DATASETS_CACHE")
JOIN = 'umask 022; while [ "$1" != -- ]; do echo $$ >"$1" || exit 125; shift; done; shift; exec "$@"'
WAYS = {"nodes", "checkpoints", "cache", "mirrors"}
_choosing = threading.Lock()


@dataclass(frozen=True)
class Chosen:
    """What a node's job is kept apart by; `user` is its own, -1 for the executor's."""

    level: Level = "process"
    network: bool = True
    user: int = -1
    tmp: str = ""
    gpus: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    together: bool = False  # whether several nodes have to find each other


def choose(
    has: Abilities,
    settings: ExecutorSettings,
    policy: Policy | None,
    manifest: Manifest,
    gpus: Sequence[str] = (),
) -> Level:
    """The strictest of what the job, the machine's owner and the machine's settings say.

    Raises:
        NodeFailed: `policy_refused`, when that cannot be enforced here.
    """
    around = manifest.environment
    least: Level = "container" if around.contained else around.isolation
    needs = strictest([demanded(least, around.network), policy.isolation if policy else "process"])
    shown = has.shown(settings)
    if why := lacking(shown, needs, image=bool(around.image or around.dockerfile), gpus=len(gpus)):
        raise NodeFailed(f"{settings.name}: {why}", code="policy_refused")
    strict = strictest([needs, shown.usual])
    return strict if strict in shown.levels else "container"  # in the image that this machine has for all


class Bare:
    """No walls at all."""

    apart, user = False, None

    def before(
        self,
        cwd: Path,
        *,
        write: Sequence[Path] = (),
        read: Sequence[Path] = (),
        network: bool | None = None,
        as_us: bool = False,
    ) -> list[str]:
        return []

    def environment(self, env: Mapping[str, str]) -> dict[str, str]:
        return dict(env)

    def hand_over(self, paths: Sequence[Path]) -> None:
        pass

    def take_back(self, path: Path) -> None:
        pass


BARE = Bare()


class Walls:
    """Those around one node's job. `build` once its manifest is known; `remove` once all of it has ended."""

    def __init__(self, folder: Path, settings: ExecutorSettings) -> None:
        self.folder = folder
        self.settings = settings
        self.chosen = self._read()
        self.short = _short(folder)
        self.group = cgroups.Group(f"trainforge-{self.short}", abilities(settings).parents)

    def _read(self) -> Chosen:
        try:
            data = json.loads((self.folder / NOTE).read_text())
        except FileNotFoundError:
            return Chosen()
        return Chosen(**data | {name: tuple(data.get(name, ())) for name in ("gpus", "volumes")})

    @property
    def apart(self) -> bool:
        return self.chosen.level != "process"

    @property
    def user(self) -> int | None:
        return None if self.chosen.user < 0 else self.chosen.user

    @property
    def contained(self) -> bool:
        return self.chosen.level == "container"

    @property
    def engine(self) -> Engine:
        """Raises NodeFailed where there is none any more."""
        has = abilities(self.settings)
        if has.engine is None:
            raise NodeFailed(f"{self.settings.name}: {has.no_container}", code="container_failed")
        return has.engine

    def build(
        self, manifest: Manifest, policy: Policy | None, gpus: Sequence[str], *, nodes: int = 1
    ) -> None:
        """Decide, write down, and make what a job needs of its own.

        Raises:
            NodeFailed: the machine cannot isolate this job as it has to be.
        """
        if (self.folder / NOTE).exists():
            return
        has = abilities(self.settings)
        level = choose(has, self.settings, policy, manifest, gpus)
        own = has.own_user(level)
        with _choosing:
            user = _free_user(self.folder) if own else -1
            tmp = "" if level != "process" else tempfile.mkdtemp(prefix="tf-")
            network = manifest.environment.network != "none"
            volumes = tuple(manifest.environment.volumes)
            self.chosen = Chosen(level, network, user, tmp, tuple(gpus), volumes, nodes > 1)
            write_atomically(self.folder / NOTE, asdict(self.chosen))
        self._make_scratch(self.folder / "scratch")
        self.hand_over([Path(tmp)] if tmp else [])
        if user >= 0 and level == "process":
            self._open_way()

    def _make_scratch(self, scratch: Path, *, own: bool = True) -> None:
        """A home and a temporary folder, anew after the job's end: publishing runs programs, too."""
        missing = [path for path in (scratch / "home", scratch / "tmp") if not path.is_dir()]
        for path in missing:
            path.mkdir(parents=True, mode=0o700)
        if own and missing:
            self.hand_over(missing)

    def _open_way(self) -> None:
        """To this job's own folders, and what all jobs read; a folder of another job's stays its user's."""
        data_dir = self.settings.data_dir
        for folder in (path for path in data_dir.iterdir() if path.is_dir() and not path.is_symlink()):
            folder.chmod(0o711 if folder.name in WAYS else 0o700)
        data_dir.chmod(0o711)

    def hand_over(self, paths: Sequence[Path]) -> None:
        """Make them the job's own."""
        if self.user is not None:
            os.chown(self.folder, -1, self.user)
            self.folder.chmod(0o710)
            untrusted.own([path for path in paths if path.exists()], self.user)

    def take_back(self, path: Path) -> None:
        """What a job made and others will use."""
        if self.user is not None:
            untrusted.own([path], os.geteuid())

    # --- programs --------------------------------------------------------------------------------------

    def before(
        self,
        cwd: Path,
        *,
        write: Sequence[Path] = (),
        read: Sequence[Path] = (),
        network: bool | None = None,
        as_us: bool = False,
    ) -> list[str]:
        """What comes before the arguments of a program that may change `write` and see `read`.

        `as_us` is for programs that are not the job's, and only read what it wrote.
        """
        if self.contained:
            return self._container(cwd, write, read, network)
        has = abilities(self.settings)
        user = None if as_us else self.user
        bounded = self._bounded(user)
        scratch = self.folder / "scratch"
        if self.chosen.level == "process":
            self._make_scratch(scratch)
            return bounded + (sandbox.as_user(user) if user is not None else list(has.no_new_rights))
        ours = user is None and self.user is not None
        if ours:
            scratch /= "ours"  # root without its rights cannot pass the job's own /tmp
        self._make_scratch(scratch, own=not ours)
        shared = [path for path in self.settings.shared_folders if path.exists()]
        view = sandbox.View(
            cwd=cwd,
            home=scratch / "home",
            tmp=scratch / "tmp",
            write=sandbox.outermost(write),
            read=sandbox.outermost([path for path in (*has.python, *shared, *read) if path.exists()]),
            devices=gpu_devices.devices(self.chosen.gpus),
            network=self.chosen.network if network is None else network,
            shm=self._bounds().memory or sandbox.SHM * 8,
            user=user,
            processes=self.settings.max_processes if has.prlimit else 0,
        )
        return bounded + sandbox.argv(has.system, view)

    def _container(
        self, cwd: Path, write: Sequence[Path], read: Sequence[Path], network: bool | None
    ) -> list[str]:
        """A program of this node's that stands for a container of its own."""
        image = containing.kept_image(self.folder)
        assert image is not None  # noqa: S101 - prepared before anything of the job's is run
        connected = self.chosen.network if network is None else network
        bounds, shared = self._bounds(), self.settings.shared_folders
        (self.folder / "scratch" / "home").mkdir(parents=True, exist_ok=True)
        view = container.View(
            name=f"trainforge-{self.short}-{secrets.token_hex(4)}",
            node=self.short,
            cwd=cwd,
            home=self.folder / "scratch" / "home",
            user=os.geteuid() if self.user is None else self.user,
            write=sandbox.outermost(write),
            read=sandbox.outermost([path for path in (*shared, *read) if path.exists()]),
            volumes=self._volumes(),
            network=("" if self.engine.network and not self.chosen.together else "host")
            if connected
            else "none",
            gpus=self.chosen.gpus,
            memory=bounds.memory,
            cpus=bounds.cpus,
            cores=Limits.of(self.settings).cpus,
            pids=bounds.pids,
            shm=bounds.memory or sandbox.SHM * 8,
        )
        return containing.before(self.folder, self.engine, image, view)

    def _volumes(self) -> tuple[Mount, ...]:
        """Those the job names, as the folders that they lead to; the policy was asked with their names.

        Raises:
            NodeFailed: `policy_refused`: one leads elsewhere, or to what no job may have.
        """
        found = [parse_volume(text) for text in self.chosen.volumes]
        for volume in found:
            if why := containing.forbidden(Path(volume.source), self.settings.data_dir):
                raise NodeFailed(f"{self.settings.name}: {volume.source} {why}", code="policy_refused")
        return tuple(found)

    def _bounded(self, user: int | None) -> list[str]:
        limits = ["prlimit", "--core=0"]
        if user is not None:  # of all that the user runs, which is this job alone
            limits.append(f"--nproc={self.settings.max_processes}")
        has = abilities(self.settings)
        made = self.group.make(self._bounds())
        joined = ["/bin/sh", "-c", JOIN, "sh", *map(str, made), "--"]
        return joined + (limits if has.prlimit else [])

    def _bounds(self) -> cgroups.Bounds:
        limits, settings = Limits.of(self.settings), self.settings
        cpus = (os.cpu_count() or 1) * settings.max_cpu_percent / 100 if settings.max_cpu_percent else 0.0
        memory = limits.memory + max(MEMORY_SLACK, limits.memory // 20) if limits.memory else 0
        return cgroups.Bounds(memory, max(cpus, 1.0) if cpus else 0.0, settings.max_processes)

    def environment(self, env: Mapping[str, str]) -> dict[str, str]:
        """The variables as they are within: a home and a temporary folder of the job's own."""
        made = dict(env)
        if self.contained:
            return containing.variables(made, containing.kept_image(self.folder))
        if self.apart:
            made |= {"HOME": sandbox.HOME, "TMPDIR": "/tmp", "USER": "job", "LOGNAME": "job"}  # noqa: S108
            shown = [*self.settings.shared_folders, *map(Path, sandbox.SYSTEM)]
            for name in CACHES:
                if name in made and not any(Path(made[name]).is_relative_to(path) for path in shown):
                    del made[name]
        elif self.chosen.tmp:
            ended = not Path(self.chosen.tmp).is_dir()
            made["TMPDIR"] = str(self.folder / "scratch" / "tmp") if ended else self.chosen.tmp
            if self.user is not None:
                home = str(self.folder / "scratch" / "home")
                made |= {"HOME": home, "USER": "job", "LOGNAME": "job"}
        return made

    def told(self) -> dict[str, Any]:
        """For the result."""
        chosen = self.chosen
        made: dict[str, Any] = {"level": chosen.level, "network": chosen.network}
        made["own_user"] = self.user is not None
        if self.contained and (image := containing.kept_image(self.folder)):
            made["image"] = asdict(image)
        return made

    def words(self) -> str:
        """For the job's timeline and result."""
        parts = [f"isolation: {self.chosen.level}"]
        if self.contained and (image := containing.kept_image(self.folder)):
            parts = [f"isolation: container ({image.engine}), {image.name}, {image.digest or image.id}"]
        if self.user is not None:
            parts.append("a user of its own")
        if not self.chosen.network:
            parts.append("no network")
        return ", ".join(parts)

    def scratch(self) -> list[Path]:
        """What it has to write to besides its own folders."""
        return [self.folder / "scratch", *([Path(self.chosen.tmp)] if self.chosen.tmp else [])]

    def end(self, before: Sequence[str]) -> list[str]:
        """The command that ends what the program behind `before` began; empty where none is needed."""
        return containing.end(list(before)) if self.contained else []

    # --- the end ---------------------------------------------------------------------------------------

    def out_of_memory(self) -> bool:
        if self.contained:
            return bool(containing.told(self.folder).get("oom"))
        return self.group.out_of_memory()

    def remove(self) -> None:
        """Once all programs of the job have ended."""
        if self.contained and (usable := abilities(self.settings).engine):
            usable.remove(f"{LABEL}={self.short}")
        self.group.remove()
        if self.chosen.tmp:
            shutil.rmtree(self.chosen.tmp, ignore_errors=True)
        shutil.rmtree(self.folder / "scratch", ignore_errors=True)


def _short(folder: Path) -> str:
    return hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]


def _free_user(folder: Path) -> int:
    """One that nobody has: no account of the machine, no other node of this executor, no process."""
    taken = set()
    for note in folder.parent.glob(f"*/{NOTE}"):
        with contextlib.suppress(OSError, ValueError, KeyError):
            taken.add(int(json.loads(note.read_text())["user"]))
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                taken.add(entry.stat().st_uid)
    first = int(_short(folder), 16)
    for number in range(len(USERS)):
        user = USERS[(first + number) % len(USERS)]
        if user not in taken and not _known(user):
            return user
    raise NodeFailed("there is no free user for this job", code="policy_refused")


def _known(user: int) -> bool:
    try:
        pwd.getpwuid(user)
    except KeyError:
        return False
    return True
