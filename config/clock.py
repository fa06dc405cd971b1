"""A clock that tells the time of day and is never set back or forward while the process runs."""

from __future__ import annotations

import time

# Counts on while the machine sleeps, where the system has such a clock.
_STEADY = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def steady() -> float:
    """Seconds since some moment in the past; no one can set it."""
    return time.clock_gettime(_STEADY)


class SteadyClock:
    """Unix seconds as the system's clock had them at the start, counted on by a steady clock."""

    def __init__(self) -> None:
        self._offset = time.time() - steady()

    def __call__(self) -> float:
        return steady() + self._offset

    @property
    def drift(self) -> float:
        """How far the system's clock was set since."""
        return time.time() - self()
