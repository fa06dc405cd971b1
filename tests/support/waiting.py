"""Waiting on conditions instead of sleeping for a guess."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
PATIENCE_S = 60.0  # at least: nothing is lost by it where things are quick, and a busy machine needs it


def wait_for(
    what: str, probe: Callable[[], T | None], timeout: float = PATIENCE_S, explain: Callable[[], str] = str
) -> T:
    """The first truthy value of `probe`.

    Fails, saying what was waited for, after `timeout` seconds, a minute at least.
    """
    timeout = max(timeout, PATIENCE_S)
    deadline = time.monotonic() + timeout
    while True:
        value = probe()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"no {what} within {timeout:.0f} s\n{explain()}")
        time.sleep(0.05)
