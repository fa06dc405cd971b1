"""Gates: what a manifest asks of a result's metrics, by themselves or against the base's result. Pure.

The base of a job is the newest completed job of the same manifest (and cell) on the branch that its own is
compared with. Gates are looked at when a job has completed; whether they hold does not change its state.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from trainforge.config.manifest_models import Gate

_SHORT = 80


class BaseResult(BaseModel):
    """The result that a job is compared with. `branch` is its ref without `refs/heads/`."""

    job: str
    branch: str
    commit: str
    metrics: dict[str, Any] = {}


class Verdict(BaseModel):
    """What became of one gate, in words that name metric, limit and value."""

    metric: str
    passed: bool
    words: str


def judge(gates: Sequence[Gate], metrics: Mapping[str, Any], base: BaseResult | None) -> list[Verdict]:
    """One verdict for each gate, in the manifest's order."""
    return [_judge(gate, metrics, base) for gate in gates]


def missed(verdicts: Sequence[Verdict]) -> list[Verdict]:
    return [verdict for verdict in verdicts if not verdict.passed]


def _judge(gate: Gate, metrics: Mapping[str, Any], base: BaseResult | None) -> Verdict:
    name = gate.metric if len(gate.metric) <= _SHORT else f"{gate.metric[: _SHORT - 1]}…"
    value = number(metrics.get(gate.metric))
    if value is None:
        there = "is not a number" if gate.metric in metrics else "was not reported"
        return Verdict(metric=gate.metric, passed=False, words=f"{name} {there}")
    wrong: list[str] = []
    right: list[str] = []
    for limit, words, least in ((gate.min, "at least", True), (gate.max, "at most", False)):
        if limit is None:
            continue
        bound, about = _bound(gate, limit, base, least=least)
        holds = bound is None or (value >= bound if least else value <= bound)
        said = about if bound is None else f"{words} {bound:.6g}{about}"
        (right if holds else wrong).append(said)
    told = " and ".join(wrong or right)
    return Verdict(
        metric=gate.metric,
        passed=not wrong,
        words=f"{name} is {value:.6g}, wanted {told}" if wrong else f"{name} is {value:.6g}: {told}",
    )


def _bound(
    gate: Gate, limit: float | str, base: BaseResult | None, *, least: bool
) -> tuple[float | None, str]:
    """The number that counts, and where it comes from; None where there is nothing to compare with."""
    if not isinstance(limit, str):
        return limit, ""
    if base is None:
        return None, "there is no result of the base yet"
    known = number(base.metrics.get(gate.metric))
    if known is None:
        return None, f"the base, job {base.job[:8]}, has no such number"
    allowed = f", {gate.tolerance:g} off" if gate.tolerance else ""
    bound = known - gate.tolerance if least else known + gate.tolerance
    return bound, f" (the base: job {base.job[:8]} on {base.branch[:_SHORT]}{allowed})"


def change(value: Any, before: Any) -> str:
    """From the base's value to this one, such as `+0.012` or `-3`; empty where either is no number."""
    now, old = number(value), number(before)
    return "" if now is None or old is None else f"{now - old:+.4g}"


def number(value: Any) -> float | None:
    """A finite number that is not a truth value."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        made = float(value)
    except OverflowError:
        return None
    return made if math.isfinite(made) else None
