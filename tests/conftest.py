"""What every test shares."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import httpcore2
from hypothesis import HealthCheck, settings

from support.databases import stop_postgres
from support.engines import stop_engines

# Looking for engines takes an executor a second; who tests containers names one.
os.environ.setdefault("TRAINFORGE_EXECUTOR_CONTAINER_ENGINE", "none")

# Each client of a test, most last for one request, would read all authorities of this machine: 20 ms of work.
httpcore2.default_ssl_context = functools.cache(httpcore2.default_ssl_context)

# Property tests are judged by what they find, not by how busy the machine is.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")


def pytest_configure() -> None:
    """Without root a sandbox finds the way to what lies below /tmp, empty, as its own."""
    if os.geteuid():
        own = Path.home() / ".cache" / "trainforge-tests"
        own.mkdir(parents=True, exist_ok=True)
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(own))


def pytest_sessionfinish() -> None:
    """In each parallel worker too, whose exit runs no `atexit`."""
    stop_postgres()
    stop_engines()
