"""Numbers that a training reports beside its metrics: they say where it is, and not how well it does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

Value = TypeVar("Value")
COUNTERS = frozenset({"progress", "epoch", "epochs", "total_epochs", "step", "total_steps", "max_steps"})


def measured(values: Mapping[str, Value]) -> dict[str, Value]:
    """The metrics among what was reported."""
    return {name: value for name, value in values.items() if name not in COUNTERS}
