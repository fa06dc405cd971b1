"""What every test shares."""

from __future__ import annotations

from support.databases import stop_postgres


def pytest_sessionfinish() -> None:
    """In each parallel worker too, whose exit runs no `atexit`."""
    stop_postgres()
