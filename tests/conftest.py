"""What every test shares."""

from __future__ import annotations

import functools
import os
from collections import defaultdict
from pathlib import Path

import httpcore2
import pytest
from hypothesis import HealthCheck, settings

from support.databases import stop_postgres
from support.engines import stop_engines

# Looking for engines takes an executor a second; who tests containers names one.
os.environ.setdefault("TRAINFORGE_EXECUTOR_CONTAINER_ENGINE", "none")

# Each client of a test, most last for one request, would read all authorities of this machine: 20 ms of work.
httpcore2.default_ssl_context = functools.cache(httpcore2.default_ssl_context)

SLOW = ("e2e", "executor")

# Property tests are judged by what they find, not by how busy the machine is.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")


def pytest_configure() -> None:
    """Without root a sandbox finds the way to what lies below /tmp, empty, as its own."""
    if os.geteuid():
        own = Path.home() / ".cache" / "trainforge-tests"
        own.mkdir(parents=True, exist_ok=True)
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(own))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Modules that train come first, dealt to half of the parallel workers like cards.

    Each worker begins with a part of the list and takes over from others in the end: then what is left
    should be quick. More trainings at a time than cores hinder each other. A module stays together, for
    what its tests share.
    """
    modules: dict[Path, list[pytest.Item]] = defaultdict(list)
    for item in items:
        modules[item.path].append(item)
    slow = [module for path, module in modules.items() if _is_slow(path)]
    quick = [item for item in items if not _is_slow(item.path)]
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    trainers = max(1, workers // 2)
    share, dealt = len(items) // workers + 1, list[pytest.Item]()
    for worker in range(workers):
        mine = slow[worker::trainers] if worker < trainers else []
        hand = [item for module in mine for item in module]
        light = max(0, share - len(hand)) if worker < workers - 1 else len(quick)
        dealt += hand + quick[:light]
        quick = quick[light:]
    items[:] = dealt


def _is_slow(path: Path) -> bool:
    return path.parent.name in SLOW or "browser" in path.name


def pytest_sessionfinish() -> None:
    """In each parallel worker too, whose exit runs no `atexit`."""
    stop_postgres()
    stop_engines()
