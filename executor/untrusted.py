"""Opens files that a running job may have made: regular ones only, by no link, never waiting for anybody.

A job may put a link to a key of ours, or a pipe that nobody writes to, where we look for its logs.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path
from typing import BinaryIO

READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def open_plain(path: Path | str, parent: int | None = None) -> BinaryIO:
    """Only the last part of the name is the job's.

    Raises:
        FileNotFoundError: there is nothing, or something that is not a plain file.
        OSError: it cannot be read.
    """
    try:
        descriptor = os.open(path, READ, dir_fd=parent)
    except OSError as error:
        raise FileNotFoundError(f"{path}: {error.strerror}") from error
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        os.close(descriptor)
        raise FileNotFoundError(f"{path}: not a plain file")
    return os.fdopen(descriptor, "rb")


def open_below(root: Path, relative: Path) -> BinaryIO:
    """All of `relative` is the job's: no part of it is followed out of `root`.

    Raises:
        FileNotFoundError: see `open_plain`.
    """
    with contextlib.ExitStack() as stack:
        parent = _folder(root, None, stack)
        for part in relative.parts[:-1]:
            parent = _folder(part, parent, stack)
        return open_plain(relative.name, parent)


def _folder(name: Path | str, parent: int | None, stack: contextlib.ExitStack) -> int:
    try:
        descriptor = os.open(name, FOLDER, dir_fd=parent)
    except OSError as error:
        raise FileNotFoundError(f"{name}: {error.strerror}") from error
    stack.callback(os.close, descriptor)
    return descriptor


def write_new(path: Path, data: str) -> None:
    """Write a file in a folder that a job may write to, through nothing that it has put there."""
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    with os.fdopen(descriptor, "w") as file:
        file.write(data)


def own(paths: list[Path], user: int) -> None:
    """Hand folders over to a job's user: everything in them that has one name, links themselves included."""
    for path in paths:
        os.chown(path, user, user, follow_symlinks=False)
        for _, folders, files, descriptor in os.fwalk(path):
            for name in (*folders, *files):
                with contextlib.suppress(FileNotFoundError):
                    status = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
                    if status.st_uid != user and (stat.S_ISDIR(status.st_mode) or status.st_nlink == 1):
                        os.chown(name, user, user, dir_fd=descriptor, follow_symlinks=False)
