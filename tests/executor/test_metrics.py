"""Numbers out of any text."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainforge.config.messages import Metric
from trainforge.executor.metrics import MAX_NAMES, Patterns, from_json, from_line


def found(line: str, patterns: Patterns | None = None) -> Metric:
    metric = from_line(line, 0, patterns)
    assert metric is not None
    return metric


def test_the_founding_form() -> None:
    metric = found('PROGRESS: {"epoch": 2, "loss": 0.8, "accuracy": 0.4}\r')
    assert (metric.epoch, metric.values) == (2.0, {"loss": 0.8, "accuracy": 0.4})


def test_the_trainer_of_hugging_face() -> None:
    metric = found("{'loss': 0.5, 'grad_norm': '1.25', 'epoch': 0.5, 'note': 'x'}")
    assert (metric.epoch, metric.values) == (0.5, {"loss": 0.5, "grad_norm": 1.25})


@pytest.mark.parametrize(
    ("line", "values"),
    [
        (
            "{'loss': 0.4721, 'grad_norm': 2.5, 'learning_rate': 4.5e-05, 'epoch': 0.5}",
            {"loss": 0.4721, "grad_norm": 2.5, "learning_rate": 4.5e-05},
        ),
        ("{'eval_loss': 0.3, 'eval_runtime': 1.5, 'epoch': 0.5}", {"eval_loss": 0.3, "eval_runtime": 1.5}),
        ("{'loss': nan, 'grad_norm': inf, 'epoch': 0.5}", {"loss": None, "grad_norm": None}),
        (
            "{'loss': '0.4721', 'learning_rate': '4.5e-05', 'epoch': '0.5'}",
            {"loss": 0.4721, "learning_rate": 4.5e-05},
        ),
    ],
)
def test_what_the_trainer_logs(line: str, values: dict[str, float | None]) -> None:
    metric = found(line)
    assert (metric.epoch, metric.values) == (0.5, values)


def test_patterns_of_the_manifest() -> None:
    patterns = Patterns.of({"loss": r"loss=([0-9.]+)", "step": r"step (\d+)"})
    metric = found("step 7: loss=0.25", patterns)
    assert (metric.step, metric.values) == (7, {"loss": 0.25})
    assert from_line("loss=" + "0" * 5000, 0, patterns) is None


def test_nested_names_and_odd_numbers() -> None:
    metric = from_json(
        '{"val": {"loss": NaN, "x": Infinity}, "big": 1e400, "n": 123456789012345678901234567890}', 1
    )
    assert metric is not None
    assert metric.values["val/loss"] is None
    assert metric.values["big"] is None
    assert metric.values["n"] == pytest.approx(1.23e29, rel=0.01)


@pytest.mark.parametrize(
    "line",
    ["", "PROGRESS:", "PROGRESS: [1]", "PROGRESS: {", "{'a'}", "{'a': open('x')}", "PROGRESS: " + "[" * 9000],
)
def test_what_reports_nothing(line: str) -> None:
    assert from_line(line, 0) is None


def test_a_million_names_are_cut() -> None:
    metric = from_json(json.dumps({str(number): number for number in range(5000)}), 0)
    assert metric is not None
    assert len(metric.values) <= MAX_NAMES


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(st.dictionaries(st.text() | st.sampled_from(["step", "epoch", "loss"]), json_values))
def test_any_json_becomes_clean_values(data: dict[str, object]) -> None:
    metric = from_line("PROGRESS: " + json.dumps(data), 0)
    if metric is not None:
        json.dumps(metric.model_dump(), allow_nan=False)
        again = Metric.model_validate_json(metric.model_dump_json())
        assert again == metric
        assert all(not isinstance(value, float) or math.isfinite(value) for value in metric.values.values())


@given(st.text() | st.text().map("PROGRESS: {}".format) | st.text().map("{{'{}}}".format))
def test_any_text_is_survived(text: str) -> None:
    from_line(text, 0, Patterns.of({"a": "(a+)"}))
