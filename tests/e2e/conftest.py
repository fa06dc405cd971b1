"""Fleets of real processes, one per test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.fleet import Fleet


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    fleet = Fleet(tmp_path)
    try:
        yield fleet
    finally:
        fleet.close()


@pytest.fixture
def running(fleet: Fleet) -> Fleet:
    """A sender and one executor."""
    fleet.start_sender()
    fleet.add_executor("alpha")
    return fleet
