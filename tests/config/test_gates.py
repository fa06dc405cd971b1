"""Gates: limits by themselves and against the base's result."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainforge.config.gates import BaseResult, Verdict, change, judge, missed
from trainforge.config.manifest import parse_manifest
from trainforge.config.result import gate_lines, metric_table

BASE = BaseResult(
    job="abcdefgh" + "z" * 18, branch="main", commit="c" * 40, metrics={"loss": 0.5, "acc": 0.9}
)


def verdict(gate: str, metrics: dict[str, Any], base: BaseResult | None = None) -> Verdict:
    text = f"project: {{name: p}}\ntraining: {{script: train.py}}\ngates: [{gate}]\n"
    (found,) = judge(parse_manifest(text).gates, metrics, base)
    return found


@pytest.mark.parametrize(
    ("gate", "metrics", "passed", "words"),
    [
        ("{metric: acc, min: 0.95}", {"acc": 0.95}, True, "acc is 0.95: at least 0.95"),
        ("{metric: acc, min: 0.95}", {"acc": 0.9499}, False, "acc is 0.9499, wanted at least 0.95"),
        ("{metric: acc, min: 0, max: 1}", {"acc": 2}, False, "acc is 2, wanted at most 1"),
        ("{metric: acc, min: 0.9}", {}, False, "acc was not reported"),
        ("{metric: acc, min: 0.9}", {"acc": math.nan}, False, "acc is not a number"),
        ("{metric: acc, min: 0}", {"acc": True}, False, "acc is not a number"),
        ("{metric: acc, min: 0}", {"acc": 10**400}, False, "acc is not a number"),
    ],
)
def test_a_gate_by_itself(gate: str, metrics: dict[str, Any], passed: bool, words: str) -> None:
    found = verdict(gate, metrics)
    assert (found.passed, found.words) == (passed, words)


def test_a_gate_against_the_base_says_what_it_was_compared_with() -> None:
    worse = verdict("{metric: loss, max: base}", {"loss": 0.51}, BASE)
    assert not worse.passed
    assert worse.words == "loss is 0.51, wanted at most 0.5 (the base: job abcdefgh on main)"
    near = verdict("{metric: loss, max: base, tolerance: 0.02}", {"loss": 0.51}, BASE)
    assert near.passed
    assert "at most 0.52 (the base: job abcdefgh on main, 0.02 off)" in near.words
    assert verdict("{metric: acc, min: base, tolerance: 0.1}", {"acc": 0.81}, BASE).passed


def test_without_a_base_there_is_nothing_to_miss() -> None:
    assert verdict("{metric: loss, max: base}", {"loss": 9}).words == (
        "loss is 9: there is no result of the base yet"
    )
    assert verdict("{metric: f1, max: base}", {"f1": 9}, BASE).passed
    assert not verdict("{metric: loss, max: base}", {}).passed, "what is asked for has to be reported"


@given(st.floats() | st.booleans() | st.none() | st.integers(), st.floats() | st.integers() | st.text())
def test_no_value_breaks_a_verdict(value: Any, before: Any) -> None:
    base = BASE.model_copy(update={"metrics": {"loss": before}})
    found = verdict("{metric: loss, max: base, min: -1}", {"loss": value}, base)
    assert found.words.startswith("loss ")
    assert change(value, before) == "" or change(value, before)[0] in "+-"
    assert missed([found]) == ([] if found.passed else [found])


def test_results_show_the_base_beside_the_values_and_the_gates() -> None:
    rows = metric_table({"loss": 0.25, "note": "a|b", "new": 1}, BASE)
    assert rows[0] == "| metric | final value | main | change |"
    assert rows[2:] == ["| loss | 0.25 | 0.5 | -0.25 |", "| note | a\\|b |  |  |", "| new | 1 |  |  |"]
    assert metric_table({"loss": 1.0}, None)[2] == "| loss | 1 |"
    told = gate_lines([Verdict(metric="x", passed=False, words="x <b> is low")])
    assert told[2] == "- **missed**: x \\<b\\> is low"
