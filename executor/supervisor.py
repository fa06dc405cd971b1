"""The small program that owns one node's training: starts it, waits for it, writes down how it ended.

Run by path in a session of its own (`python -I -S supervisor.py RUN_DIR`), with the standard library alone,
so that it outlives the executor that started it and costs next to nothing. Secrets come on standard input
and stay in memory. `RUN_DIR` holds:

    spec.json        what to run (written by the executor)
    supervisor.lock  held for life: whoever can lock it knows that no supervisor lives
    supervisor.json  written before training starts; a second supervisor that finds it does nothing
    stop.json        written by the executor: {"grace_s": seconds}
    container.json   which process a container is, whose processes are nobody's children here
    exit.json        written once, last, atomically

Training's processes may start sessions of their own (torchrun's workers do). The supervisor is their
subreaper, so every descendant stays below it and is found when it has to go.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

PR_SET_CHILD_SUBREAPER = 36
SIGNALS = {signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
POLL_S = 0.5
MEASURE_S = 1.0
LIMIT_GRACE_S = 5.0
LIMITED = ("memory_limit", "disk_limit", "log_limit")
REMOVE_S = 30.0
SIGNALLED = 128


class Supervision:
    """One run from start to exit record."""

    def __init__(self, run: Path, private: dict[str, Any]) -> None:
        self.run = run
        self.private: dict[str, str] = private.get("env", {})
        self.spec: dict[str, Any] = json.loads((run / "spec.json").read_text())
        self.masking = _masking(run, private["mask"], self.spec) if private.get("mask") else None
        self.statuses: dict[int, int | None] = {}
        self.failed_first: int | None = None
        self.reason = ""
        self.kill_at: float | None = None
        self.killed = False
        self.started = time.time()
        self.memory_limit = int(self.spec.get("memory_limit") or 0)
        self.sandboxed = bool(self.spec.get("sandboxed"))
        self.remove: list[str] = self.spec.get("remove") or []
        self.log_limit, self.disk_limit = (int(self.spec.get(f"{x}_limit") or 0) for x in ("log", "disk"))
        self.seen = _load(Path(__file__).with_name("seen.py"))
        self.disk = self.seen.DiskUse(self.spec.get("folders") or [], self.disk_limit)
        self.peak_memory = self.log_bytes = 0
        self.cpu_s = 0.0  # of a container, whose processes nobody here waits for
        self.measured = time.monotonic()
        limit = self.spec.get("timeout_s")
        self.deadline = time.monotonic() + limit if limit else None
        end = self.spec.get("end") or {}
        self.warn_at, self.ends_at = (self._moment(end.get(name)) for name in ("warn_at", "at"))
        self.ending = str(end.get("why", ""))

    def _moment(self, at: float | None) -> float | None:
        """By this machine's steady clock, which nobody sets."""
        return time.monotonic() + at - self.started if at else None

    def start(self) -> None:
        if cpus := self.spec.get("cpus"):
            with contextlib.suppress(OSError):  # the machine has others now: better than not at all
                os.sched_setaffinity(0, cpus)
        streams = self.masking.folder if self.masking else self.run / "logs"
        with (streams / "node.stdout").open("ab") as out, (streams / "node.stderr").open("ab") as err:
            for command in self.spec["commands"]:
                try:
                    process = subprocess.Popen(
                        [*(self.spec.get("before") or []), *command["argv"]],
                        cwd=self.spec["cwd"],
                        env={**command["env"], **self.private},
                        stdin=subprocess.DEVNULL,
                        stdout=out,
                        stderr=err,
                        start_new_session=True,
                        preexec_fn=_unblock,  # noqa: PLW1509 - this program has one thread
                    )
                except OSError as error:
                    err.write(f"{command['argv'][0]}: {error.strerror}\n".encode())
                    self.failed_first = 127
                    self.begin_stop("peer")
                    return
                process.returncode = 0  # reaped by `reap`, never by the Popen object
                self.statuses[process.pid] = None

    def watch(self) -> None:
        while self.reap():
            if all(status is not None for status in self.statuses.values()) and self.kill_at is None:
                self.kill_at = time.monotonic()  # what the training left behind goes with it
            now = time.monotonic()
            if self.kill_at is not None and now >= self.kill_at:
                self.kill_all()
                continue
            self.check_stop(now)
            self.warn(now)
            self.measure(now)
            wait = POLL_S if self.kill_at is None else max(0.01, min(POLL_S, self.kill_at - now))
            received = signal.sigtimedwait(SIGNALS, wait)
            if received is not None and received.si_signo in (signal.SIGTERM, signal.SIGINT):
                self.begin_stop("stop")

    def check_stop(self, now: float) -> None:
        if (self.run / "stop.json").exists():
            self.begin_stop("stop")
        elif self.deadline is not None and now >= self.deadline:
            self.begin_stop("timeout_run")
        elif self.ends_at is not None and now >= self.ends_at:
            self.begin_stop(self.ending)
        elif self.failed_first is not None:
            self.begin_stop("peer")

    def warn(self, now: float) -> None:
        """Say once that the end is near: by a file, and SIGUSR1 to the processes (see `rank.py`)."""
        if self.warn_at is None or now < self.warn_at or self.reason:
            return
        self.warn_at = None
        (self.run / "warned").touch()
        own = {inner_number(pid): pid for pid in descendants(os.getpid())}
        noted = self.seen.noted(self.run / "ranks")
        for each in self.statuses if self.remove else [own[pid] for pid in noted if pid in own]:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(each, signal.SIGUSR1)

    def begin_stop(self, reason: str) -> None:
        if self.reason:
            return
        self.reason = reason
        grace = self.grace()
        self.kill_at = time.monotonic() + (min(grace, LIMIT_GRACE_S) if reason in LIMITED else grace)
        for pid in self.statuses:
            inside = self.inside(pid)
            with contextlib.suppress(ProcessLookupError, PermissionError):
                if not inside:
                    os.killpg(pid, signal.SIGTERM)
            for each in inside:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(each, signal.SIGTERM)

    def inside(self, leader: int) -> list[int]:
        """Of its group what runs in a sandbox: bubblewrap itself would end at once, and all with it."""
        if not self.sandboxed:
            return []
        return [pid for pid in descendants(leader) if group_of(pid) == leader and inner_number(pid) > 1]

    def measure(self, now: float) -> None:
        """Memory of all processes from time to time, and the end where it is more than they may have.

        What they share counts for each of them; only once that is too much is it worth the longer look.
        """
        if now - self.measured < MEASURE_S:
            return
        self.measured = now
        self.measure_files()
        pids = family(os.getpid(), self.run)
        if self.remove:
            self.cpu_s = max(self.cpu_s, self.seen.spent(pids))
        used = sum(resident(pid) for pid in pids)
        if 0 < self.memory_limit < used:
            used = sum(proportional(pid) for pid in pids)
            if used > self.memory_limit:
                self.begin_stop("memory_limit")
        self.peak_memory = max(self.peak_memory, used)

    def measure_files(self) -> None:
        """What is on disk, a part of it each time, and what was printed."""
        self.disk.look()
        self.log_bytes = self.seen.printed(self.run)
        if self.disk.over:
            self.begin_stop("disk_limit")
        elif 0 < self.log_limit < self.log_bytes:
            self.begin_stop("log_limit")

    def grace(self) -> float:
        try:
            return float(json.loads((self.run / "stop.json").read_text())["grace_s"])
        except (OSError, ValueError, KeyError):
            return float(self.spec.get("grace_s", 30.0))

    def kill_all(self) -> None:
        """One round of SIGKILL to every descendant; the caller repeats it until none is left."""
        if self.remove and any(status is None for status in self.statuses.values()):
            self.killed = True
            remove(self.remove)
            self.remove = []
        for pid in descendants(os.getpid()):
            self.killed = self.killed or self.statuses.get(pid, 0) is None
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        signal.sigtimedwait({signal.SIGCHLD}, 0.02)

    def reap(self) -> bool:
        """Collect what has ended; False when no child is left."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            if pid in self.statuses:
                code = os.waitstatus_to_exitcode(status)
                if self.sandboxed and code > SIGNALLED and code - SIGNALLED <= signal.SIGRTMAX:
                    code = SIGNALLED - code  # as bubblewrap tells of a signal
                self.statuses[pid] = code
                if code != 0 and self.failed_first is None and not self.reason:
                    self.failed_first = code

    def finish(self) -> None:
        codes = [code for code in self.statuses.values() if code]
        code = self.failed_first if self.failed_first is not None else (codes[0] if codes else 0)
        usage, now = resource.getrusage(resource.RUSAGE_CHILDREN), time.time()
        self.disk.finish()
        told = self.seen.told_cpu(self.run, now - self.started) if self.spec.get("remove") else 0.0
        record = {
            "exit_code": code,
            "stopped": "" if self.reason == "peer" else self.reason,
            "killed": self.killed,
            "started": self.started,
            "ended": now,
            "peak_memory_bytes": max(self.peak_memory, usage.ru_maxrss * 1024),
            "memory_limit": self.memory_limit,
            "cpu_s": max(usage.ru_utime + usage.ru_stime, self.cpu_s, told),
            "peak_disk_bytes": self.disk.peak,
            "disk_limit": self.disk_limit,
            "log_bytes": self.seen.printed(self.run),
            "log_limit": self.log_limit,
        }
        write_atomically(self.run / "exit.json", record)


def descendants(root: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):  # noqa: PTH208
        if entry.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                stat = Path("/proc", entry, "stat").read_text()
                parent = int(stat.rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry))
    found: list[int] = []
    todo = [root]
    while todo:
        below = children.get(todo.pop(), [])
        found += below
        todo += below
    return found


def family(root: int, run: Path) -> list[int]:
    """The descendants, and those of a container of this run, whom its engine has started."""
    found = descendants(root)
    with contextlib.suppress(OSError, ValueError, KeyError, IndexError):
        note = json.loads((run / "container.json").read_text())
        pid = int(note["pid"])
        if pid not in found and start_time(pid) == note["start_time"]:
            found += [pid, *descendants(pid)]
    return found


def remove(command: list[str]) -> None:
    """End what is not a descendant of ours."""
    if command:
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            subprocess.run(command, cwd="/", timeout=REMOVE_S, check=False, preexec_fn=_unblock)


def inner_number(pid: int) -> int:
    """The number that a process has for itself: within a sandbox another one; 0 if it is gone."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("NSpid:"):
                return int(line.split()[-1])
    return 0


def group_of(pid: int) -> int:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return 0


def resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
    except (OSError, ValueError, IndexError):
        return 0


def proportional(pid: int) -> int:
    """Of what it shares with others its part; its resident memory where the system does not tell."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return resident(pid)


def write_atomically(path: Path, data: dict[str, Any]) -> None:
    aside = path.with_suffix(".aside")
    aside.unlink(missing_ok=True)  # and not through what a job may have put there
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    with open(os.open(aside, flags, 0o644), "w") as file:  # noqa: PTH123
        json.dump(data, file)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


def start_time(pid: int) -> int:
    """In clock ticks since boot; with the pid it names a process for good."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


def _told() -> dict[str, Any]:
    """What the executor says on standard input, which is closed then: secrets, and what to mask."""
    with open(0, "rb", closefd=False) as file:
        data: dict[str, Any] = json.loads(file.read() or b"{}")
    null = os.open("/dev/null", os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    return data


def _masking(run: Path, secrets: list[str], spec: dict[str, Any]) -> Any:
    """The two modules that a job without secrets does not need, loaded from where they lie."""
    here = Path(__file__).parent
    redact = _load(here.parent / "config" / "redact.py")
    return _load(here / "masking.py").Masking(run, redact.Redactor(secrets), spec.get("user"))


def _load(path: Path) -> Any:
    import importlib.util  # noqa: PLC0415

    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None  # noqa: S101 - a file of ours
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _unblock() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


def _lock(path: Path) -> int | None:
    """The lock's descriptor, or None when another supervisor lives (an executor only tests it briefly)."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    for _ in range(40):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.05)
        else:
            return descriptor
    return None


def main(run: Path) -> int:
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    private = _told()
    os.chdir("/")
    if _lock(run / "supervisor.lock") is None:
        return 3
    if (run / "exit.json").exists() or (run / "supervisor.json").exists():
        return 4
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    write_atomically(run / "supervisor.json", {"pid": os.getpid(), "start_time": start_time(os.getpid())})
    supervision = Supervision(run, private)
    supervision.start()
    if supervision.masking:
        supervision.masking.start()
    supervision.watch()
    if supervision.masking:
        supervision.masking.finish()
    supervision.finish()
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
