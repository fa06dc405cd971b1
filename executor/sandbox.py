"""The arguments that start a program within bubblewrap: pure. What the machine has was looked up before.

A job gets a root of its own that holds the system, read-only, and what is named: everything else of the
machine, the executor's folder and other jobs' among it, is not there. It sees no process but its own, and
all of its processes end with the first one. Names stay as they are outside, so that a path means the same
on both sides; HOME and /tmp alone are others.

Started by root, bubblewrap itself keeps no right but to become the job's user, which it does at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

HOME = "/home/job"
SHM = 2**30  # bytes, where nothing else is said
SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc", "/opt", "/sys")
BESIDES = ("/run/systemd/resolve", "/run/nvidia-persistenced")  # names, and the GPUs' helper
HIDDEN = (
    "/etc/shadow", "/etc/shadow-", "/etc/gshadow", "/etc/gshadow-", "/etc/sudoers", "/etc/sudoers.d",
    "/etc/ssh", "/etc/ssl/private", "/etc/krb5.keytab", "/etc/machine-id", "/etc/trainforge",
)  # fmt: skip
ENTER = 'cd "$1" && shift && exec "$@"'
TO_USER = ("CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP")


@dataclass(frozen=True)
class System:
    """What of the machine every job sees: `links` as (name, target), `folders`, and in them `hidden`."""

    folders: tuple[str, ...] = ()
    links: tuple[tuple[str, str], ...] = ()
    hidden_folders: tuple[str, ...] = ()
    hidden_files: tuple[str, ...] = ()
    program: str = "bwrap"
    user_namespace: bool = False  # who is not root needs one


@dataclass(frozen=True)
class View:
    """What one program sees besides."""

    cwd: Path
    home: Path  # outside; HOME within
    tmp: Path
    write: tuple[Path, ...] = ()
    read: tuple[Path, ...] = ()
    devices: tuple[str, ...] = ()
    network: bool = True
    shm: int = SHM
    user: int | None = None
    processes: int = 0  # at most, where a user namespace counts them; 0: not bounded here


def find_system(program: str, *, root: bool) -> System:
    """Look at this machine."""
    present = [Path(name) for name in (*SYSTEM, *BESIDES) if Path(name).exists()]
    hidden = [Path(name) for name in HIDDEN if Path(name).exists()]
    return System(
        folders=tuple(str(path) for path in present if not path.is_symlink()),
        links=tuple((str(path), str(path.readlink())) for path in present if path.is_symlink()),
        hidden_folders=tuple(str(path) for path in hidden if path.is_dir()),
        hidden_files=tuple(str(path) for path in hidden if not path.is_dir()),
        program=program,
        user_namespace=not root,
    )


def argv(system: System, view: View) -> list[str]:
    """What comes before the program's own arguments."""
    made = [system.program, "--die-with-parent", "--unshare-pid", "--unshare-ipc", "--unshare-uts"]
    made += ["--unshare-cgroup-try"] + ([] if view.network else ["--unshare-net"])
    made += ["--unshare-user"] if system.user_namespace else []
    made += ["--cap-drop", "ALL"]
    if view.user is not None:
        made += [part for cap in TO_USER for part in ("--cap-add", cap)]
    shown = [(path, "--ro-bind") for path in view.read] + [(path, "--bind") for path in view.write]
    made += ["--perms", "0755", "--dir", str(Path(HOME).parent)]
    made += ["--bind", str(view.home), HOME, "--bind", str(view.tmp), "/tmp"]  # noqa: S108 - the job's own
    made += _folders(path for path, _ in shown)
    for name in system.folders:
        made += ["--ro-bind", name, name]
    for name, target in system.links:
        made += ["--symlink", target, name]
    for name in system.hidden_folders:
        made += ["--tmpfs", name]
    for name in system.hidden_files:
        made += ["--ro-bind", "/dev/null", name]
    made += ["--proc", "/proc", "--dev", "/dev"]
    made += ["--perms", "1777", "--size", str(view.shm), "--tmpfs", "/dev/shm"]  # noqa: S108
    for device in view.devices:
        made += ["--dev-bind-try", device, device]
    for path, how in sorted(shown, key=lambda each: len(each[0].parts)):
        made += [how, str(path), str(path)]
    made += ["--remount-ro", "/", "--chdir", "/" if view.user is not None else str(view.cwd)]
    if view.user is not None:  # whose folder bubblewrap itself may not enter
        made += [*as_user(view.user), "/bin/sh", "-c", ENTER, "sh", str(view.cwd)]
    elif system.user_namespace and view.processes:
        made += ["prlimit", f"--nproc={view.processes}"]
    return made


def as_user(user: int) -> list[str]:
    """Become somebody else, for good."""
    who = ["--reuid", str(user), "--regid", str(user), "--clear-groups"]
    return ["setpriv", *who, "--inh-caps=-all", "--bounding-set=-all", "--no-new-privs"]


def _folders(paths: Iterable[Path]) -> list[str]:
    """The folders on the way: bubblewrap would make them for their owner alone."""
    above = {parent for path in paths for parent in path.parents if parent not in (Path("/"), Path("/tmp"))}  # noqa: S108
    return [
        part
        for parent in sorted(above, key=lambda each: len(each.parts))
        for part in ("--perms", "0755", "--dir", str(parent))
    ]


def outermost(paths: Sequence[Path]) -> tuple[Path, ...]:
    """Without those that lie within others."""
    return tuple(
        path
        for path in dict.fromkeys(paths)
        if not any(other != path and path.is_relative_to(other) for other in paths)
    )
