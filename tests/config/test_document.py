"""The document reader: YAML 1.2 core values, places, and everything that it refuses."""

from __future__ import annotations

import json
import math
import time
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from trainforge.config.document import MAX_BYTES, MAX_DEPTH, MAX_NODES, dotted, plain, read_document, spelling


def read(text: str | bytes) -> Any:
    document = read_document(text, "t.yaml")
    assert document.problems == []
    return plain(document.value)


def problems(text: str | bytes) -> list[str]:
    return [str(problem) for problem in read_document(text, "t.yaml").problems]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("on", "on"),
        ("off", "off"),
        ("yes", "yes"),
        ("no", "no"),
        ("y", "y"),
        ("true", True),
        ("True", True),
        ("FALSE", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("12", 12),
        ("-7", -7),
        ("+7", 7),
        ("012", 12),
        ("0o14", 12),
        ("0xff", 255),
        ("0b11", "0b11"),
        ("1_000", "1_000"),
        ("1e-4", 1e-4),
        ("1E3", 1000.0),
        (".5", 0.5),
        ("5.", 5.0),
        ("1:30", "1:30"),
        ("2026-02-30", "2026-02-30"),
        ("'12'", "12"),
        ('"true"', "true"),
        ("=", "="),
        ("<<", "<<"),
        ("16Gi", "16Gi"),
    ],
)
def test_values_follow_the_core_schema_of_yaml_1_2(text: str, value: Any) -> None:
    found = read(f"key: {text}")["key"]
    assert found == value
    assert type(found) is type(value)


def test_keys_are_text_as_written() -> None:
    assert read("on: 1\n1: 2\ntrue: 3\n3.10: 4\nnull: 5") == {
        "on": 1,
        "1": 2,
        "true": 3,
        "3.10": 4,
        "null": 5,
    }


def test_a_number_remembers_how_it_was_written() -> None:
    value = read_document("a: 3.10\nb: 0o14\nc: 1e-4", "t.yaml").value
    assert [spelling(value[key]) for key in "abc"] == ["3.10", "0o14", "1e-4"]


def test_every_value_and_key_has_its_place() -> None:
    document = read_document("a: 1\nb:\n  - x\n  - {c: é, d: 2}\n", "t.yaml")
    assert str(document.place(("a",))) == "t.yaml:1:4"
    assert str(document.place(("a",), key=True)) == "t.yaml:1:1"
    assert str(document.place(("b", 0))) == "t.yaml:3:5"
    assert str(document.place(("b", 1, "d"))) == "t.yaml:4:15"
    assert str(document.place(("b", 1, "missing"))) == "t.yaml:4:5"
    assert str(document.place(("elsewhere",))) == "t.yaml:1:1"


@pytest.mark.parametrize(
    "text", ["a: 1\r\nb: [2,\r\n 3]\r\n", "\ufeffa: 1\nb: [2, 3]\n", "---\na: 1\nb: [2, 3]\n...\n"]
)
def test_line_ends_marks_and_document_marks_change_nothing(text: str) -> None:
    assert read(text) == {"a": 1, "b": [2, 3]}
    assert read(text.encode()) == {"a": 1, "b": [2, 3]}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "1:1: the file is empty; start with project: {name: my-project}"),
        ("# nothing\n", "1:1: the file is empty; start with project: {name: my-project}"),
        ("null", "1:1: the file is empty; start with project: {name: my-project}"),
        ("- a", "1:1: expected a mapping of keys, got a list; start with project: {name: my-project}"),
        ("a", "1:1: expected a mapping of keys, got a single value; start with project: {name: my-project}"),
        ("a: 1\n---\nb: 2", "2:1: the file holds a second document; keep one, and no --- after it"),
        ("a: 1\nb: &x 2", "2:4: the anchor &x is not allowed; write the value out"),
        ("a: *x", "1:4: the alias *x is not allowed; write the value out"),
        ("a: !!binary aGk=", "1:4: the tag !!binary is not allowed; leave it away"),
        ("a: !x 1", "1:4: the tag !x is not allowed; leave it away"),
        ("a: ! 1", "1:4: the tag ! is not allowed; leave it away"),
        ("!!python/name:abs {a: 1}", "1:1: the tag !!python/name:abs is not allowed; leave it away"),
        ("a: 1\nb:\n  c: 1\n  c: 2", "4:3: b.c: repeated; it stands on line 3 already"),
        ("a: .nan", "1:4: expected a finite number, got .nan; quote it to mean the text"),
        ("a: -.INF", "1:4: expected a finite number, got -.INF; quote it to mean the text"),
        ("a: 1e999", "1:4: the number 1e999 is too large; quote it to mean the text"),
        ("a: " + "9" * 5000, "1:4: the number is longer than 40 characters; quote it to mean the text"),
        ("? [a]\n: 1", "1:3: expected text as a key; quote text that begins with [ or {"),
        ("?\n: 1", "1:2: expected text as a key; quote text that begins with [ or {"),
        ('a: "\\e[31mred"', "1:4: the character U+001B is not allowed"),
        ('a: "\\u202Egnp.exe"', "1:4: the character U+202E is not allowed"),
        ("a: x\x1b[31m", "1:5: the character U+001B is not allowed"),
        ("a: 1\nb: \x00", "2:4: the character U+0000 is not allowed"),
        ("a: \ud800", "1:4: the file is not UTF-8; save it as UTF-8"),
        (b"a: 1\nb: \xff", "2:4: the file is not UTF-8; save it as UTF-8"),
        ("a: 1".encode("utf-16"), "1:1: the file is not UTF-8; save it as UTF-8"),
        ("a: " + "x" * MAX_BYTES, f"1:1: the file has {MAX_BYTES + 3} bytes, the most is {MAX_BYTES}"),
        ("a: " + "[" * 20_000, "1:19: nested deeper than 16 levels"),
        ("a: [" + "1," * (MAX_NODES + 1) + "]", "1:9999: more than 5000 values"),
    ],
)  # fmt: skip
def test_what_is_refused_and_where(text: str | bytes, expected: str) -> None:
    assert problems(text) == [f"t.yaml:{expected}"]


@pytest.mark.parametrize(
    ("text", "place", "hint"),
    [
        ("a: 1\n\tb: 2", "t.yaml:2:1", "indent with spaces"),
        ("a: b: c", "t.yaml:1:5", "quote text that contains ': '"),
        ("a: 'open", "t.yaml:1:9", "close the quote"),
        ("a: [1, 2", "t.yaml:2:1", ""),
        ("a: 1\nb", "t.yaml:3:1", "a key needs `: ` after it"),
        ("%YAML 9.9\n---\na: 1", "t.yaml:1:1", ""),
        ('a: "\\ud800"', "t.yaml:1:7", ""),
    ],
)
def test_broken_syntax_is_placed_and_hinted_at(text: str, place: str, hint: str) -> None:
    (problem,) = read_document(text, "t.yaml").problems
    assert str(problem.place) == place
    assert problem.message.startswith("not valid YAML: ")
    assert hint in problem.hint


def test_a_repeated_key_leaves_the_first_value_and_its_place() -> None:
    document = read_document("a: {b: 1}\na: {b: 2}", "t.yaml")
    assert document.usable
    assert plain(document.value) == {"a": {"b": 1}}
    assert str(document.place(("a", "b"))) == "t.yaml:1:8"


def test_all_problems_are_told_at_once() -> None:
    text = "a: &x 1\nb: .inf\na: 2\nc: !t 1\n"
    assert [problem.split(": ")[0] for problem in problems(text)] == [
        "t.yaml:1:4",
        "t.yaml:2:4",
        "t.yaml:3:1",
        "t.yaml:4:4",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "a: " + "x " * 30_000,
        "{" + "a: {" * 15_000,
        "[" * 60_000,
        "a: [" + "{b: c}, " * 8000 + "]",
        "\n".join(f"key{i}: {{}}" for i in range(6000)),
        "? " * 30_000,
        "- " * 30_000,
        "a: &a [x, x]\n"
        + "\n".join(f"{chr(98 + i)}: &{chr(98 + i)} [*{chr(97 + i)}, *{chr(97 + i)}]" for i in range(24)),
    ],
    ids=["long text", "deep flow", "brackets", "wide", "keys", "question marks", "dashes", "laughs"],
)
def test_hostile_documents_cost_little(text: str) -> None:
    before = time.process_time()
    read_document(text, "t.yaml")
    assert time.process_time() - before < 1.0


def test_depth_up_to_the_limit_is_fine() -> None:
    depth = MAX_DEPTH - 1
    read("a: " + "[" * depth + "]" * depth)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(blacklist_categories=("Cs", "Cc", "Cf", "Cn", "Co", "Zl", "Zp")), max_size=20),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.text("abcXYZ on1_.-", min_size=1), inner, max_size=4),
    max_leaves=20,
)  # fmt: skip


@given(st.dictionaries(st.text("abc", min_size=1), VALUES, max_size=5).filter(bool))
def test_json_is_yaml_and_means_the_same(value: dict[str, Any]) -> None:
    assert read(json.dumps(value, ensure_ascii=False)) == value


@given(st.dictionaries(st.text("abc", min_size=1), VALUES, max_size=5).filter(bool))
def test_what_pyyaml_writes_is_read_or_refused_with_a_place(value: dict[str, Any]) -> None:
    document = read_document(yaml.safe_dump(value, allow_unicode=True), "t.yaml")
    assert all(problem.place is not None for problem in document.problems)


@given(st.binary(max_size=200) | st.text(max_size=200) | st.text("a:{}[]-?&*!|>'\"%#\n \t,\\", max_size=60))
def test_nothing_makes_it_raise_and_every_problem_has_a_place(text: str | bytes) -> None:
    document = read_document(text, "t.yaml")
    for problem in document.problems:
        assert problem.place is not None
        assert problem.place.line and problem.place.column
    assert document.usable or document.problems
    assert isinstance(document.value, dict)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_floats_keep_their_value(number: float) -> None:
    assert math.isclose(read(json.dumps({"a": number}))["a"], number, rel_tol=0)


def test_dotted_names() -> None:
    assert dotted(("training", "args", 2)) == "training.args[2]"
    assert dotted(()) == ""
