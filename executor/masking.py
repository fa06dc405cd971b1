"""Masks what a training prints on its way to the log files, for jobs that have secrets.

Loaded by path into the supervisor (`supervisor.py`), so it uses the standard library and `config/redact.py`
alone. The training writes into named pipes below `run/streams`; one thread moves what comes to the file of
the same name below `run/logs`. So no secret that is printed ever lies on the disk, and an executor that is
started again finds logs that it can read on without knowing any secret. A process makes its pipes itself
(`rank.py`), names its rank in the pipe `register`, and waits for the other end.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import threading
from pathlib import Path
from typing import Any

BLOCK = 64 * 1024


class Masking:
    """The pipes of one training: `start` once its processes are started, `finish` once they are gone."""

    def __init__(self, run: Path, redactor: Any, user: int | None = None) -> None:
        """`user` is the job's own, if it has one."""
        self.run = run
        self.folder = run / "streams"
        self.folder.mkdir(exist_ok=True)
        self._redactor = redactor
        self._ranks: set[str] = set()
        self._selector = selectors.DefaultSelector()
        self._ended, self._end = os.pipe2(os.O_CLOEXEC)
        os.mkfifo(self.folder / "register", 0o600)
        self._register = _open_pipe(self.folder / "register")
        for descriptor in (self._ended, self._register):
            self._selector.register(descriptor, selectors.EVENT_READ)
        for stream in ("stdout", "stderr"):
            os.mkfifo(self.folder / f"node.{stream}", 0o600)
            self._follow(f"node.{stream}")
        if user is not None:
            for path in (self.folder, *self.folder.iterdir()):
                os.chown(path, user, user)
        self._thread = threading.Thread(target=self._move_all, name="masking")

    def start(self) -> None:
        self._thread.start()

    def finish(self) -> None:
        """Return once everything that was written is in the logs."""
        os.write(self._end, b".")
        self._thread.join()

    def _follow(self, name: str) -> None:
        pipe = _open_pipe(self.folder / name)
        log = os.open(self.run / "logs" / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self._selector.register(pipe, selectors.EVENT_READ, (log, self._redactor.stream()))

    def _move_all(self) -> None:
        ending = False
        while not ending:
            for key, _ in self._selector.select():
                if key.data is not None:
                    self._move(key.fd, *key.data)
                elif key.fd == self._register:
                    self._welcome()
                else:
                    ending = True
        for key in list(self._selector.get_map().values()):
            if key.data is not None:
                while self._move(key.fd, *key.data):
                    pass
                _write(key.data[0], key.data[1].finish())

    def _welcome(self) -> None:
        """Open the pipes of ranks that are new; a line is written at once and so never read in halves."""
        for rank in os.read(self._register, BLOCK).decode("ascii", "replace").split():
            if rank.isdigit() and rank not in self._ranks:
                self._ranks.add(rank)
                for stream in ("stdout", "stderr"):
                    with contextlib.suppress(OSError):
                        self._follow(f"{rank}.{stream}")

    def _move(self, source: int, log: int, stream: Any) -> bool:
        """Whether there was anything."""
        try:
            data = os.read(source, BLOCK)
        except BlockingIOError:
            return False
        _write(log, stream.feed(data))
        return bool(data)


def _open_pipe(path: Path) -> int:
    """For writing too, so that it neither waits for a writer nor ends when the last one closes."""
    return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)


def _write(log: int, data: bytes) -> None:
    """A full disk loses lines; it does not stop the training, which would wait for its pipe for ever."""
    view = memoryview(data)
    with contextlib.suppress(OSError):
        while view:
            view = view[os.write(log, view) :]
