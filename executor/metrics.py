"""Numbers out of what a training prints or writes: pure parsing, any text in, only clean values out."""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from trainforge.config.messages import Metric
from trainforge.executor import lightning

PREFIX = "PROGRESS:"
MAX_NAMES = 200
MAX_LINE = 16 * 1024
MAX_PATTERN_LINE = 2048
LARGEST = 2**63
_ODD_NUMBER = re.compile(r"(?<=: )(nan|-?inf)(?=[,}])")  # as Python prints them, and does not read them

Value = float | int | str | bool | None


@dataclass(frozen=True)
class Patterns:
    """The manifest's `metrics.patterns`: name -> expression whose first group is the number."""

    compiled: Mapping[str, re.Pattern[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, patterns: Mapping[str, str]) -> Patterns:
        return cls({name: re.compile(pattern) for name, pattern in patterns.items()})


def from_line(line: str, rank: int, patterns: Patterns | None = None) -> Metric | None:
    """The numbers that one line of output reports.

    Understood are `PROGRESS: {json}`, the dictionaries that Hugging Face's Trainer prints, the manifest's
    patterns, and what Lightning prints.
    """
    text = line.strip()
    if len(text) > MAX_LINE:
        return None
    if text.startswith(PREFIX):
        return from_json(text[len(PREFIX) :], rank)
    if text.startswith("{'") and text.endswith("}"):
        return _from_trainer(text, rank)
    if patterns and patterns.compiled and len(text) <= MAX_PATTERN_LINE:
        found = _from_patterns(text, rank, patterns.compiled)
        if found is not None:
            return found
    said = lightning.from_line(text)
    return from_mapping(said, rank) if said else None


def from_json(text: str, rank: int) -> Metric | None:
    """One JSON object, as in a metrics file's line."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return from_mapping(data, rank) if isinstance(data, dict) else None


def from_mapping(data: Mapping[Any, Any], rank: int) -> Metric | None:
    values: dict[str, Value] = {}
    _flatten(data, "", values, depth=0)
    step, epoch = values.pop("step", None), values.pop("epoch", None)
    if not values and step is None and epoch is None:
        return None
    return Metric(
        rank=rank,
        values=values,
        step=_step(step),
        epoch=float(epoch) if isinstance(epoch, int | float) and not isinstance(epoch, bool) else None,
    )


def _step(value: Value) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < LARGEST:
        return None
    return int(value) if value == int(value) else None


def _flatten(data: Mapping[Any, Any], prefix: str, values: dict[str, Value], depth: int) -> None:
    for key, value in data.items():
        name = f"{prefix}{key}"[:200]
        if len(values) >= MAX_NAMES:
            return
        if isinstance(value, Mapping):
            if depth < 4:
                _flatten(value, f"{name}/", values, depth + 1)
        elif value is None or isinstance(value, bool | int | float | str):
            values[name] = clean(value)


def clean(value: Value) -> Value:
    """NaN and infinities become null, numbers too large for anybody's integers become floats."""
    if isinstance(value, str):
        return value[:1000].encode("utf-8", "replace").decode()
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int) and -LARGEST <= value < LARGEST:
        return value
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _from_trainer(text: str, rank: int) -> Metric | None:
    """Trainer prints Python dictionaries: `{'loss': 0.5, 'epoch': 1.0}`, newer ones with quoted numbers."""
    try:
        data = ast.literal_eval(_ODD_NUMBER.sub(r"'\1'", text))
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return None
    if not isinstance(data, dict):
        return None
    numbers = {str(key): _number(value) for key, value in data.items()}
    found = {key: value for key, value in numbers.items() if value is not None}
    return from_mapping(found, rank) if found else None


def _from_patterns(text: str, rank: int, patterns: Mapping[str, re.Pattern[str]]) -> Metric | None:
    found: dict[str, Value] = {}
    for name, pattern in patterns.items():
        match = pattern.search(text)
        if match:
            number = _number(match.group(1) if pattern.groups else match.group(0))
            if number is not None:
                found[name] = number
    return from_mapping(found, rank) if found else None


def _number(value: object) -> float | int | None:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return None
    return None
