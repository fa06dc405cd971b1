"""Runs a program of a node's preparation: output to its setup log, stoppable, bounded in time."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainforge.config.disk import FULL_WORDS
from trainforge.config.errors import NodeFailed
from trainforge.config.redact import Redactor
from trainforge.executor.seen import DiskUse

TAIL = 4000
BLOCK = 64 * 1024
PATIENCE_S = 5.0


class Interrupted(Exception):  # noqa: N818 - control flow: somebody asked the node to stop
    """The node is to stop; whoever asked knows why."""


@dataclass
class Setup:
    """What every phase of preparing shares: where to log, until when, and whether to stop."""

    log: Path
    deadline: float  # monotonic
    stopping: Callable[[], bool]
    owner: int = -1  # the job's own user: whose programs may open their output again, as /dev/stderr
    lease: Callable[[Path], None] = lambda entry: None  # keeps an entry of a cache, see `budget`
    disk: DiskUse | None = None  # what the job's files take, if they are limited

    def check(self) -> None:
        if self.stopping():
            raise Interrupted
        if time.monotonic() > self.deadline:
            raise NodeFailed("preparing took longer than timeout.setup allows", code="timeout_setup")
        if self.disk is not None:
            self.disk.look()
            if self.disk.over:
                most = self.disk.limit / 1e9
                words = f"preparing wrote more than the {most:g} GB that this machine gives a job"
                raise NodeFailed(words, code="disk_limit")

    def say(self, text: str) -> None:
        with self.log.open("a") as file:
            file.write(text.rstrip("\n") + "\n")

    def run(
        self,
        argv: Sequence[str],
        *,
        cwd: Path,
        env: Mapping[str, str],
        code: str,
        redactor: Redactor | None = None,
        before: Sequence[str] = (),
    ) -> None:
        """`redactor` masks the output on its way to the log; `before` keeps the program in its walls.

        Raises NodeFailed with `code` and the end of the output when the program fails.
        """
        self.check()
        start = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as output:
            os.fchown(output.fileno(), self.owner, -1)
            process = subprocess.Popen(
                [*before, *argv],
                cwd=cwd,
                env=dict(env),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if redactor else output,
                stderr=subprocess.STDOUT if redactor else output,
                start_new_session=True,
            )
        masking = threading.Thread(target=_mask, args=(process, self.log, redactor), daemon=True)
        masking.start()
        try:
            self._wait(process)
        finally:
            _end(process)
            masking.join(PATIENCE_S)
        if process.returncode != 0:
            with self.log.open("rb") as file:
                file.seek(start)
                tail = file.read()[-TAIL:].decode("utf-8", "replace").strip()
            shown = " ".join(argv)[:300]
            code = "disk_full" if FULL_WORDS.search(tail) else code
            raise NodeFailed(f"`{shown}` exited with {process.returncode}\n{tail}", code=code)

    def _wait(self, process: subprocess.Popen[bytes]) -> None:
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.1)
                return
            self.check()


def _mask(process: subprocess.Popen[bytes], log: Path, redactor: Redactor | None) -> None:
    """Move a program's output, if it comes by a pipe, to the log."""
    if process.stdout is None or redactor is None:
        return
    stream = redactor.stream()
    with contextlib.suppress(OSError), process.stdout as pipe, log.open("ab", buffering=0) as file:
        while data := os.read(pipe.fileno(), BLOCK):
            file.write(stream.feed(data))
        file.write(stream.finish())


def _end(process: subprocess.Popen[bytes]) -> None:
    """Nothing of the program's group outlives it."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(PATIENCE_S)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
