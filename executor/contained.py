"""The first process in a job's container: learns on standard input what to run, runs it, ends with it.

Run by path with the image's own Python (3.8 or newer), so it uses the standard library alone. It is told one
line of JSON:  {"argv": [...], "env": {...}, "starts": [{...}], "note": path}  and starts `argv` once for each
of `starts`, with these variables too. SIGTERM is passed on; SIGUSR1, the warning of a known end, goes to the
processes that have noted themselves (`rank.py`). The first that fails ends the others.

As process 1 it inherits what is orphaned, and when it ends, all of the container does.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import time

SIGNALS = {signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1}
GRACE_S = 30.0
EVENTS = ("/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control")


def main() -> int:
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    told = json.loads(sys.stdin.buffer.readline())
    null = os.open("/dev/null", os.O_RDONLY)
    os.dup2(null, 0)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    statuses: dict[int, int | None] = {}
    for place in told.get("starts") or [{}]:
        env = {**os.environ, **told["env"], **place}
        try:
            process = subprocess.Popen(
                told["argv"],
                env=env,
                start_new_session=True,
                preexec_fn=_unblock,  # noqa: PLW1509 - this program has one thread
            )
        except OSError as error:
            sys.stderr.write("%s: %s\n" % (told["argv"][0], error.strerror))  # noqa: UP031 - Python 3.8
            return 127
        process.returncode = 0  # reaped by `_watch`, never by the Popen object
        statuses[process.pid] = None
    code = _watch(statuses, os.path.dirname(told["env"].get("TRAINFORGE_WARNING_FILE", "")))  # noqa: PTH120
    if told.get("note"):
        _leave(told["note"])
    return code


def _watch(statuses: dict[int, int | None], run: str) -> int:
    """Until all of them have ended, or the first that failed has had company for long enough."""
    failed, until = 0, None
    while any(status is None for status in statuses.values()):
        received = signal.sigtimedwait(SIGNALS, 1.0 if until else 60.0)
        number = received.si_signo if received else 0
        if number in (signal.SIGTERM, signal.SIGINT):
            _tell(statuses)
        elif number == signal.SIGUSR1:
            _warn(run)
        code = _reap(statuses)
        if code and not failed:
            failed, until = code, time.monotonic() + GRACE_S
            _tell(statuses)
        if until and time.monotonic() > until:
            break
    return 128 - failed if failed < 0 else failed


def _reap(statuses: dict[int, int | None]) -> int:
    """Collect what has ended; the first failure among ours."""
    failed = 0
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return failed
        if pid == 0:
            return failed
        if pid in statuses:
            code = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
            statuses[pid] = code
            failed = failed or code


def _tell(statuses: dict[int, int | None]) -> None:
    for pid, status in statuses.items():
        if status is None:
            with contextlib.suppress(OSError):
                os.killpg(pid, signal.SIGTERM)


def _warn(run: str) -> None:
    try:
        names = [name for name in os.listdir(run + "/ranks") if name[:1].isdigit()]  # noqa: PTH208
    except OSError:
        return
    for name in names:
        try:
            with open(run + "/ranks/" + name) as file:  # noqa: PTH123
                pid = int(json.load(file)["pid"])
            if pid > 1:
                os.kill(pid, signal.SIGUSR1)
        except (OSError, ValueError, KeyError, TypeError):
            pass


def _leave(path: str) -> None:
    """What only the inside knows: the processor time of all of it, whether the kernel killed for memory."""
    spent = [resource.getrusage(who) for who in (resource.RUSAGE_CHILDREN, resource.RUSAGE_SELF)]
    note = {"cpu_s": sum(each.ru_utime + each.ru_stime for each in spent), "oom": _out_of_memory()}
    try:
        with open(path, "w") as file:  # noqa: PTH123
            json.dump(note, file)
    except OSError:
        pass


def _out_of_memory() -> bool:
    for name in EVENTS:
        try:
            with open(name) as file:  # noqa: PTH123
                rows = dict(line.split() for line in file if len(line.split()) == 2)
            return int(rows.get("oom_kill", 0)) > 0
        except (OSError, ValueError):
            continue
    return False


def _unblock() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


if __name__ == "__main__":
    sys.exit(main())
