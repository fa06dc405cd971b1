"""Which ref changes ask for training: the rules, and what must hold for all of them."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainforge.config.manifest_models import Push
from trainforge.hooks.triggers import (
    Decision,
    RefChange,
    decide,
    ignored_ref,
    is_manifest,
    matches,
    pending_changes,
)

OLD, NEW = "1" * 40, "2" * 40
MAIN = RefChange("refs/heads/main", OLD, NEW)
REFS = st.sampled_from([f"refs/heads/b{n}" for n in range(6)] + ["refs/tags/v1"])
HEADS = st.dictionaries(REFS, st.sampled_from(["1" * 40, "2" * 40, "3" * 40]))


@given(HEADS, HEADS)
def test_pending_changes_bring_the_handled_heads_up_to_date(
    handled: dict[str, str], heads: dict[str, str]
) -> None:
    changes = pending_changes(handled, heads)
    after = dict(handled)
    for change in changes:
        assert change.old != change.new
        assert handled.get(change.ref) == change.old
        if change.new is None:
            del after[change.ref]
        else:
            after[change.ref] = change.new
    assert after == heads
    assert pending_changes(after, heads) == []
    assert len({change.ref for change in changes}) == len(changes)


def test_a_changed_manifest_asks_for_a_job() -> None:
    assert decide(MAIN, [("M", "trainforge.yaml"), ("M", "x.py")]) == Decision(("trainforge.yaml",))
    assert decide(MAIN, [("A", "a/trainforge.yaml"), ("M", "b/big.trainforge.yaml")]).manifests == (
        "a/trainforge.yaml", "b/big.trainforge.yaml",
    )  # fmt: skip
    force = RefChange("refs/heads/main", "3" * 40, NEW)
    assert decide(force, [("T", "trainforge.yaml")]).manifests == ("trainforge.yaml",)


@pytest.mark.parametrize(
    ("change", "changed", "message", "reason"),
    [
        (MAIN, [("M", "train.py")], "", "there is no trainforge.yaml at this commit"),
        (MAIN, [], "", "no files changed"),
        (MAIN, [("D", "trainforge.yaml")], "", "trainforge.yaml was deleted"),
        (MAIN, [("M", "trainforge.yaml")], "Tidy [Skip Train]", "the commit message says [Skip Train]"),
        (RefChange("refs/heads/main", OLD, None), [], "", "the branch was deleted"),
        (RefChange("refs/tags/v1", OLD, None), [], "", "the tag was deleted"),
        (RefChange("refs/heads/trainforge-results", OLD, NEW), [("M", "trainforge.yaml")], "",
         "this is the results branch"),
        (RefChange("refs/heads/my-results", OLD, NEW), [("M", "trainforge.yaml")], "",
         "this is the results branch"),
        (RefChange("refs/heads/trainforge-executors", OLD, NEW), [("M", "trainforge.yaml")], "",
         "this is the branch where executors publish their endpoints"),
        (RefChange("refs/trainforge/x", OLD, NEW), [("M", "trainforge.yaml")], "",
         "TrainForge's own refs start no jobs"),
        (RefChange("refs/notes/x", OLD, NEW), [("M", "trainforge.yaml")], "",
         "only branches and tags start jobs"),
        (RefChange("refs/tags/v1", None, NEW), [("A", "trainforge.yaml")], "", "on.push.tags names no tags"),
    ],
)  # fmt: skip
def test_what_is_no_trigger_says_why(
    change: RefChange, changed: list[tuple[str, str]], message: str, reason: str
) -> None:
    results = ("my-results",)
    assert decide(change, changed, message=message, results_branches=results) == Decision(
        reason=reason, skipped=decide(change, changed, message=message, results_branches=results).skipped
    )
    assert decide(change, changed, message=message, results_branches=results).reason == reason


def test_an_untouched_manifest_is_skipped_by_name() -> None:
    decision = decide(MAIN, [("M", "README.md")], manifests=["trainforge.yaml"])
    assert decision.reason == "no manifest changed"
    assert decision.skipped == {"trainforge.yaml": "trainforge.yaml did not change"}


def test_the_rules_of_the_manifest() -> None:
    rules = {
        "trainforge.yaml": Push(branches=["main", "release/*"], paths=["src/**", "!src/docs/**"], tags=["v*"])
    }

    def triggered(ref: str, *paths: str) -> bool:
        changed = [("M", path) for path in paths]
        return bool(
            decide(RefChange(ref, OLD, NEW), changed, manifests=["trainforge.yaml"], rules=rules).manifests
        )

    assert triggered("refs/heads/main", "trainforge.yaml")
    assert triggered("refs/heads/release/1", "src/a/b.py")
    assert not triggered("refs/heads/release/1/2", "trainforge.yaml")
    assert not triggered("refs/heads/topic", "trainforge.yaml")
    assert not triggered("refs/heads/main", "src/docs/a.md", "README.md")
    assert triggered("refs/heads/main", "src/docs/a.md", "src/x")
    assert triggered("refs/tags/v1.2")
    assert not triggered("refs/tags/w1")
    refused = decide(RefChange("refs/heads/topic", OLD, NEW), [("M", "trainforge.yaml")], rules=rules)
    assert refused.reason == "on.push.branches does not name topic"


@given(
    REFS,
    st.lists(st.tuples(st.sampled_from("AMDT"), st.sampled_from(["trainforge.yaml", "m/trainforge.yaml"])),
             unique_by=lambda pair: pair[1]),
    st.sampled_from(["", "[skip train]", "ordinary"]),
    st.sampled_from(["trainforge-results", "b1"]),
)  # fmt: skip
def test_a_decision_is_jobs_or_a_reason(
    ref: str, changed: list[tuple[str, str]], message: str, results: str
) -> None:
    decision = decide(RefChange(ref, OLD, NEW), changed, message=message, results_branches=[results])
    assert bool(decision.manifests) != bool(decision.reason)
    touched = {path for status, path in changed if status != "D"}
    assert set(decision.manifests) <= touched
    assert all(is_manifest(path) for path in decision.manifests)
    if decision.manifests:
        assert "skip" not in message
        assert not ignored_ref(ref, [results])


@pytest.mark.parametrize(
    ("name", "patterns", "wanted"),
    [
        ("main", ["**"], True),
        ("a/b/c", ["**"], True),
        ("a/b", ["*"], False),
        ("src", ["src/**"], False),
        ("src/x", ["**/src/**"], True),
        ("x", ["**/x"], True),
        ("a/c", ["a/**/c"], True),
        ("a/b/b/c", ["a/**/c"], True),
        ("ab", ["a?"], True),
        ("a/b", ["a?b"], False),
        ("a[1]", ["a[1]"], True),
        ("a1", ["a[1]"], False),
        ("x", [], False),
        ("x", ["!y"], True),
        ("y", ["!y"], False),
        ("y", ["!y", "**"], True),
        ("train.py", ["/train.py"], True),
    ],
)
def test_patterns(name: str, patterns: list[str], wanted: bool) -> None:
    assert matches(name, patterns) is wanted


def test_no_pattern_takes_long() -> None:
    started = time.process_time()
    matches("a/" * 500 + "b", ["**/" * 300 + "c", "a*" * 300 + "b"])
    matches("a" * 2000, ["*a" * 100 + "b"])
    assert time.process_time() - started < 2


def test_manifest_names() -> None:
    assert is_manifest("trainforge.yaml")
    assert is_manifest("models/small.trainforge.yaml")
    assert not is_manifest("mytrainforge.yaml")
    assert not is_manifest(".trainforge.yaml")
    assert not is_manifest("trainforge.yaml/x")
