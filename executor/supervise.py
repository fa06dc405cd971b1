"""Starts, finds again and stops the supervisor of a node; it never is the parent that training needs."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from trainforge.config.messages import Usage
from trainforge.executor import supervisor, untrusted
from trainforge.executor.contain import STARTS
from trainforge.executor.deadline import Deadline
from trainforge.executor.launch import Launch
from trainforge.executor.limits import Limits

PROGRAM = str(Path(__file__).with_name("supervisor.py"))
MARK = "TRAINFORGE_SUPERVISION"
ADOPTIONS = 3  # of one training, after errors that nobody expected
STOP_S = 5.0
NOTE_LIMIT = 4096
METRICS, WRITTEN = "metrics.jsonl", ("logs", "ranks", "restarts")
NO_LIMITS, NEVER = Limits(), Deadline()


def _in_memory(data: bytes) -> int:
    """A file that is nowhere on a disk, open at its beginning."""
    descriptor = os.memfd_create("private", os.MFD_CLOEXEC)
    os.write(descriptor, data)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def _note(path: Path) -> dict[str, int]:
    """A rank's, as far as it is one: whatever else a job writes there is passed over."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError, RecursionError):
        with untrusted.open_plain(path) as file:
            data = json.loads(file.read(NOTE_LIMIT))
        return {name: int(data[name]) for name in ("rank", "world_size", "local_rank", "pid", "restart")}
    return {}


@dataclass(frozen=True)
class Around:
    """What comes before the launcher's arguments, and who it is then (see `isolating.py`).

    `remove` is the command that ends it where killing what we started is not enough: a container, in which
    all of a node's processes are together. `folders` are those that its disk limit is about.
    """

    before: tuple[str, ...] = ()
    sandboxed: bool = False
    user: int | None = None
    remove: tuple[str, ...] = ()
    folders: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Exit:
    """How a training ended. `lost`: its supervisor died before it could write that down."""

    exit_code: int | None
    stopped: str = ""  # stop, timeout_run, session_end, memory_limit, disk_limit, log_limit
    killed: bool = False
    started: float = 0.0
    ended: float = 0.0
    peak_memory_bytes: int = 0  # of all processes together
    memory_limit: int = 0
    cpu_s: float = 0.0
    peak_disk_bytes: int = 0
    disk_limit: int = 0
    log_bytes: int = 0
    log_limit: int = 0
    lost: bool = False


OPEN = Around()


class Supervised:
    """The training of one node, known by its run folder alone."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self._child: int | None = None  # the supervisor's process id, while it is a child of this process
        self._processes: dict[int, psutil.Process] = {}

    @property
    def begun(self) -> bool:
        return (self.run / "spec.json").exists()

    def prepare(
        self,
        launch: Launch,
        *,
        timeout_s: float | None,
        grace_s: float,
        limits: Limits = NO_LIMITS,
        end: Deadline = NEVER,
        around: Around = OPEN,
    ) -> None:
        """Write down what to run; from here on `start` may be called any number of times."""
        self.make_folders()
        command = b"".join(os.fsencode(part) + b"\0" for part in launch.command)
        (self.run / "command").write_bytes(command)
        env = {**launch.env, MARK: secrets.token_hex(16)}
        starts = launch.starts
        if around.remove:
            starts = ({STARTS: json.dumps([dict(place) for place in starts])},)
        spec = {
            "commands": [{"argv": launch.argv, "env": {**env, **place}} for place in starts],
            "cwd": str(launch.cwd),
            "timeout_s": timeout_s,
            "end": asdict(end),
            "grace_s": grace_s,
            "before": list(around.before),
            "sandboxed": around.sandboxed,
            "user": around.user,
            "remove": list(around.remove),
            "folders": list(map(str, around.folders)),
            "disk_limit": limits.disk,
            "log_limit": limits.log,
            "memory_limit": limits.memory,
            "cpus": limits.cpus,
            "processes": launch.processes,
            "world_size": launch.world_size,
            "least_world": launch.least_world or launch.world_size,
            "mark": env[MARK],
        }
        supervisor.write_atomically(self.run / "spec.json", spec)
        (self.run / "spec.json").chmod(0o600)

    def make_folders(self) -> list[Path]:
        """What the training writes to in the run folder, all of which is the supervisor's else."""
        folders = [self.run / name for name in WRITTEN]
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
        files = [folders[0] / "node.stdout", folders[0] / "node.stderr", self.run / METRICS]
        for file in files:
            file.touch()
        return [*folders, self.run / METRICS]

    def spec(self) -> dict[str, Any]:
        data: dict[str, Any] = json.loads((self.run / "spec.json").read_text())
        return data

    @property
    def started(self) -> bool:
        """Whether a supervisor lives or has lived."""
        return self.alive() or (self.run / "supervisor.json").exists()

    def start(self, private: Mapping[str, Any] | None = None, held: Sequence[int] = ()) -> None:
        """Start the supervisor, unless one lives or has lived: a training never starts twice.

        `private` is variables (`env`) that no file ever holds, and texts (`mask`) that no log is to show;
        `held` are locks that it holds for as long as it lives.
        """
        if self.started:
            return
        log = os.open(
            self.run / "supervisor.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644
        )
        given = _in_memory(json.dumps(private or {}).encode())
        beyond = max(held, default=0) + 1
        try:
            self._child = os.posix_spawn(
                sys.executable,
                [sys.executable, "-I", "-S", PROGRAM, str(self.run)],
                os.environ,
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, fd, number)
                    for number, fd in ((0, given), (1, log), (2, log), *enumerate(held, beyond))
                ],
                setsid=True,
            )
        finally:
            os.close(log)
            os.close(given)

    def alive(self) -> bool:
        """Whether a supervisor holds its lock, or was started a moment ago by this very object."""
        if self._child is not None:
            try:
                if os.waitpid(self._child, os.WNOHANG)[0] == 0:
                    return True
            except ChildProcessError:
                pass
            self._child = None
        try:
            descriptor = os.open(self.run / "supervisor.lock", os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    def exit(self) -> Exit | None:
        """How it ended; None while it runs. What a dead supervisor left behind is killed first."""
        record = self._read_exit()
        if record is not None:
            self._reap()
            return record
        if self.alive():
            return None
        record = self._read_exit()  # it may have ended between the two looks
        if record is None:
            self.kill_leftovers()
            record = Exit(None, lost=True)
        return record

    def _reap(self) -> None:
        """The exit record is the last thing a supervisor writes: it is gone at once."""
        if self._child is not None:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self._child, 0)
            self._child = None

    def _read_exit(self) -> Exit | None:
        try:
            return Exit(**json.loads((self.run / "exit.json").read_text()))
        except FileNotFoundError:
            return None

    def stop(self, grace_s: float) -> None:
        """Ask for TERM, grace, KILL. Returns at once; `exit` tells when it is over."""
        if not (self.run / "stop.json").exists():
            supervisor.write_atomically(self.run / "stop.json", {"grace_s": grace_s})
        pid = self.pid()
        if pid is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGTERM)

    def adopt_again(self) -> bool:
        """Whether a training was started that may go on after a bug of ours; it may a few times."""
        if not (self.run / "supervisor.json").exists() and not self.alive():
            return False
        with (self.run / "adoptions").open("ab") as adoptions:
            adoptions.write(b".")
            return adoptions.tell() <= ADOPTIONS

    def end(self) -> None:
        """Stop it and wait until it is over: nothing of a node trains on after its end."""
        while self.begun and self.exit() is None:
            self.stop(STOP_S)
            time.sleep(0.1)

    def pid(self) -> int | None:
        """The living supervisor's process id, checked against its start time."""
        try:
            data = json.loads((self.run / "supervisor.json").read_text())
            if supervisor.start_time(data["pid"]) == data["start_time"]:
                return int(data["pid"])
        except (OSError, ValueError, KeyError):
            pass
        return None

    def ranks(self) -> list[dict[str, int]]:
        """What each process said of itself when it started."""
        found = [note for path in (self.run / "ranks").glob("[0-9]*.json") if (note := _note(path))]
        return sorted(found, key=lambda item: item["rank"])

    def usage(self) -> Usage:
        """Processor and memory in use by all of it, since the last call."""
        pid = self.pid()
        if pid is None:
            return Usage()
        percent, memory = 0.0, 0
        for child in supervisor.family(pid, self.run):
            with contextlib.suppress(psutil.Error):
                process = self._processes.setdefault(child, psutil.Process(child))
                percent += process.cpu_percent()
                memory += process.memory_info().rss
        return Usage(cpu_percent=round(percent, 1), memory_bytes=memory)

    def kill_leftovers(self) -> None:
        """Kill whatever still carries this run's mark in its environment, and its container."""
        spec = self.spec()
        supervisor.remove(spec.get("remove") or [])
        needle = f"{MARK}={spec['mark']}".encode()
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    if needle in (entry / "environ").read_bytes().split(b"\0"):
                        os.kill(int(entry.name), signal.SIGKILL)
