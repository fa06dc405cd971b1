"""What counts as a full disk, for both programs, and the mark below which they take nothing new."""

from __future__ import annotations

import errno
import re
import shutil
from pathlib import Path

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
FULL_WORDS = re.compile(r"No space left on device|Disk quota exceeded|\[Errno 28\]|\[Errno 122\]")
MIB = 2**20


def is_full(error: BaseException) -> bool:
    """Whether the system said that there is no room."""
    return isinstance(error, OSError) and error.errno in FULL


def low(folder: Path, mark: int) -> str:
    """Why nothing new is taken, where less than `mark` bytes are free; empty while there is room."""
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return f"the disk of {folder} cannot be read: {error.strerror}"
    if free >= mark:
        return ""
    return f"its disk is low: less than {mark // MIB} MiB are free"
