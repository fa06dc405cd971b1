"""Stands for one container outside of it: as a prefix to a program's arguments, like bubblewrap.

Run by path (`python -I -S contain.py SPEC -- ARGUMENT...`), with the standard library alone; with
`--end SPEC` it removes the container instead. SPEC is a JSON file:
    {"engine": [...], "env": {...}, "run": [...], "name": ..., "note": ..., "pid": ...}

What it is given as its own variables are those of the program within: they go to it on standard input, and
into no argument and no record of the engine. Its standard output and error are the container's. Signals go
to the container, its exit status is the container's, and when whoever started it is gone it ends it.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

PR_SET_PDEATHSIG = 1
SIGNALS = {signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1}
STARTS = "TRAINFORGE_STARTS"
LOOK_S = 0.25
LOOKS = 200
ORPHAN_S = 10.0
CALL_S = 30.0


class Container:
    """From before it is started to after it is gone."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.spec = spec
        self.parent = os.getppid()
        self.looks = 0
        self.ends_at: float | None = None

    def start(self, argv: list[str]) -> None:
        env = dict(os.environ)
        starts = json.loads(env.pop(STARTS, "[{}]"))
        told = {"argv": argv, "env": env, "starts": starts, "note": self.spec.get("note", "")}
        self.client = subprocess.Popen(
            [*self.spec["engine"], *self.spec["run"]],
            cwd="/",
            env=self.spec["env"],
            stdin=subprocess.PIPE,
            start_new_session=True,
            preexec_fn=_unblock,  # noqa: PLW1509 - this program has one thread
        )
        assert self.client.stdin is not None  # noqa: S101 - asked for above
        with contextlib.suppress(OSError):  # its exit status says why
            self.client.stdin.write(json.dumps(told).encode() + b"\n")
            self.client.stdin.close()

    def watch(self) -> int:
        while self.client.poll() is None:
            looking = bool(self.spec.get("pid")) and self.looks < LOOKS
            received = signal.sigtimedwait(SIGNALS, LOOK_S if looking or self.ends_at else 5.0)
            number = received.si_signo if received else 0
            if number == signal.SIGUSR1:
                self.call("kill", "--signal", "USR1", self.spec["name"])
            elif number not in (0, signal.SIGCHLD):
                self.call("kill", "--signal", "TERM", self.spec["name"])
            if os.getppid() != self.parent and self.ends_at is None:
                self.ends_at = time.monotonic() + ORPHAN_S
            if self.ends_at and time.monotonic() > self.ends_at:
                self.remove()
            if looking and number != signal.SIGCHLD:
                self.look()
        return self.client.returncode

    def look(self) -> None:
        """Note which process it is on this machine: who measures it has to know."""
        self.looks += 1
        with contextlib.suppress(OSError, ValueError, IndexError):
            pid = int(self.call("inspect", "--format", "{{.State.Pid}}", self.spec["name"]) or 0)
            if pid > 0:
                self.looks = LOOKS
                begun = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
                Path(self.spec["pid"]).write_text(json.dumps({"pid": pid, "start_time": int(begun)}))

    def remove(self) -> None:
        """Killed first: Podman would wait for a program that hears nothing."""
        self.call("kill", "--signal", "KILL", self.spec["name"])
        self.call("rm", "-f", self.spec["name"])

    def call(self, *arguments: str) -> str:
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            done = subprocess.run(
                [*self.spec["engine"], *arguments],
                cwd="/",
                env=self.spec["env"],
                capture_output=True,
                text=True,
                timeout=CALL_S,
                check=False,
                preexec_fn=_unblock,
                start_new_session=True,
            )
            return done.stdout.strip()
        return ""


def _unblock() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


def main(argv: list[str]) -> int:
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    if argv[1] == "--end":
        ending = Container(json.loads(Path(argv[2]).read_text()))
        ending.remove()
        return 0
    container = Container(json.loads(Path(argv[1]).read_text()))
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != container.parent:
        return 1
    container.start(argv[argv.index("--") + 1 :])
    code = container.watch()
    if code == 125 or code < 0:  # the engine's own failure, or its command's: nothing may be left
        container.remove()
    return 128 - code if code < 0 else code


if __name__ == "__main__":
    sys.exit(main(sys.argv))
