"""Finding processes, some of which end while one looks."""

from __future__ import annotations

import os

import psutil


def commands(naming: str = "") -> dict[psutil.Process, str]:
    """Processes other than this one whose command line or folder has the text, with both."""
    found = {}
    for process in psutil.process_iter():
        try:
            about = " ".join([*process.cmdline(), process.cwd()])
        except psutil.Error:  # ended, or a zombie
            continue
        if naming in about and process.pid != os.getpid():
            found[process] = about
    return found


def kill_all(naming: str) -> None:
    """SIGKILL to each process whose command line or folder has the text."""
    for process in commands(naming):
        try:
            process.kill()
        except psutil.Error:
            continue
