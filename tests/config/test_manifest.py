"""The manifest: what is accepted and what it means, and the words and places of what is refused."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from trainforge.config.errors import ManifestError
from trainforge.config.manifest import (
    GpuRequest,
    Manifest,
    NodeRange,
    apply_overrides,
    json_schema,
    parse_manifest,
)
from trainforge.config.manifest_types import parse_duration, parse_size
from trainforge.config.reasons import REASONS

FOUNDING = """\
project:
  name: llama-finetune

training:
  script: train.py
  requirements: requirements.txt

resources:
  gpu: 1
  memory: 16Gi
"""

SMALLEST = "project: {name: p}\ntraining: {script: train.py}\n"

EVERYTHING = """\
project: {name: digits, description: Reads digits}
training:
  script: train.py
  args: --epochs 3 --name 'two words'
  params: {batch_size: 64, learning_rate: 1e-3, layers: [32, 16], version: 3.10, on: yes}
  launcher: torchrun
  env: {OMP_NUM_THREADS: 2, COUNTRY: no, RATE: 1.50}
  working_dir: models
  requirements: requirements.txt
  extras: [train]
  python: 3.10
  setup: python prepare.py
resources:
  nodes: 1:4
  processes_per_node: 2
  gpu: 24GB..:1..8
  cpu: 2
  memory: 16Gi
  disk: 50GB
  labels: {zone: lab, rack: 7}
distributed:
  scale: {batch_size: keep, learning_rate: sqrt}
  transport: direct
  backend: gloo
  mixed_precision: no
  port: 29500
environment:
  {mode: container, image: "pytorch/pytorch:2.6.0", volumes: ["/data:/data:ro"], isolation: sandbox}
data:
  url: https://example.org/train.csv
  path: train.csv
  sha256: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa
  cache: false
strategy:
  matrix: {learning_rate: [0.1, 0.01]}
  include: [{learning_rate: 1}]
  max_parallel: 1
  fail_fast: false
checkpoint: {dir: ckpt, every: 10m, keep: 3, resume: never}
retry: {max: 3, on: [lost, out_of_memory]}
timeout: {run: 1h30m, setup: 90, queue: 2d, grace: 1.5s}
concurrency: {group: nightly, cancel_in_progress: true}
metrics: {primary: accuracy, mode: max, patterns: {loss: "loss=([0-9.]+)"}}
gates: [{metric: accuracy, min: 0.9, max: 1}, {metric: loss, max: base, tolerance: 0.1}]
artifacts: {paths: [models/*.pt], max_size: 1Gi, store: "s3://bucket/models"}
results: {branch: results}
secrets: [HF_TOKEN]
notify: [{to: team@example.org, on: [failed]}]
priority: -5
seed: 42
on:
  push: {branches: [main, "!wip/**"], paths: [src/**], tags: [v*]}
  schedule: [{cron: "0 3 * * 1"}]
  pull_request: plan
"""


def refused(text: str | bytes) -> list[str]:
    with pytest.raises(ManifestError) as caught:
        parse_manifest(text)
    return [str(problem) for problem in caught.value.problems]


# --- what is accepted ---------------------------------------------------------------------------------


def test_the_founding_form() -> None:
    manifest = parse_manifest(FOUNDING)
    assert manifest.project.name == "llama-finetune"
    assert manifest.training.script == "train.py"
    assert manifest.training.requirements == "requirements.txt"
    assert manifest.resources.gpu == GpuRequest(min=1, max=1)
    assert manifest.resources.memory == 16 * 2**30
    assert manifest.training.launcher == "accelerate"
    assert manifest.inactive() == []


def test_what_is_not_said() -> None:
    manifest = parse_manifest(SMALLEST)
    assert manifest.resources.nodes == NodeRange(1, 1)
    assert manifest.resources.gpu == GpuRequest(0, 0)
    assert manifest.resources.processes_per_node is None
    assert (manifest.retry.max, manifest.retry.on) == (1, ["lost", "connection_lost"])
    assert (manifest.timeout.run, manifest.timeout.setup, manifest.timeout.grace) == (None, 3600, 30)
    assert manifest.artifacts.max_size == 100 * 2**20
    assert manifest.results.branch == "trainforge-results"
    assert (manifest.on.push.branches, manifest.on.push.paths, manifest.on.push.tags) == (["**"], [], [])
    assert manifest.data == []
    assert manifest.inactive() == []


def test_every_key() -> None:
    manifest = parse_manifest(EVERYTHING)
    training, resources = manifest.training, manifest.resources
    assert training.args == ["--epochs", "3", "--name", "two words"]
    assert training.params == {
        "batch_size": 64, "learning_rate": 0.001, "layers": [32, 16], "version": 3.1, "on": "yes",
    }  # fmt: skip
    assert {type(value) for value in training.params.values()} == {int, float, list, str}
    assert training.env == {"OMP_NUM_THREADS": "2", "COUNTRY": "no", "RATE": "1.50"}
    assert (training.python, training.setup) == ("3.10", ["python prepare.py"])
    assert resources.nodes == NodeRange(1, 4)
    assert resources.gpu == GpuRequest(1, 8, 24 * 10**9)
    assert (resources.cpu, resources.disk, resources.labels) == (
        2.0,
        50 * 10**9,
        {"zone": "lab", "rack": "7"},
    )
    timeout = manifest.timeout
    assert (timeout.run, timeout.setup, timeout.queue, timeout.grace) == (5400, 90, 172_800, 1.5)
    assert manifest.on.push.branches == ["main", "!wip/**"]
    assert manifest.distributed.mixed_precision == "no"
    assert manifest.seed == 42


def test_inactive_names_what_is_used_and_has_no_effect_yet() -> None:
    assert parse_manifest(EVERYTHING).inactive() == [
        "artifacts.store",
        "distributed.transport",
    ]  # fmt: skip


def test_a_default_that_is_written_out_is_not_called_inactive() -> None:
    text = SMALLEST + "on: {pull_request: off}\ncheckpoint: {keep: 1}\ndata: {url: 'hf://b/k'}\n"
    assert parse_manifest(text).inactive() == ["data.url"]


def test_an_empty_section_means_its_defaults() -> None:
    text = SMALLEST + "resources:\non:\n  push:\nretry: # none\n"
    assert parse_manifest(text).model_dump() == parse_manifest(SMALLEST).model_dump()


def test_a_command_launches_itself() -> None:
    manifest = parse_manifest("project: {name: p}\ntraining: {command: make train}")
    assert manifest.training.launcher == "none"


def test_bytes_and_line_ends() -> None:
    assert parse_manifest(FOUNDING.replace("\n", "\r\n").encode()) == parse_manifest(FOUNDING)


@pytest.mark.parametrize(
    ("written", "size"),
    [
        ("16Gi", 2**34), ("16GiB", 2**34), ("16G", 16 * 10**9), ("16GB", 16 * 10**9), ("1.5Ki", 1536),
        ("512 MB", 512_000_000), ("10B", 10), ("10", 10), (4096, 4096), ("2Ti", 2**41),
    ],
)  # fmt: skip
def test_sizes(written: Any, size: int) -> None:
    assert parse_size(written) == size


@pytest.mark.parametrize(
    ("written", "duration"),
    [
        ("30m", 1800),
        ("2h", 7200),
        ("1h30m", 5400),
        ("1d2h3m4.5s", 93_784.5),
        ("90s", 90),
        (90, 90),
        (0.5, 0.5),
    ],
)
def test_durations(written: Any, duration: float) -> None:
    assert parse_duration(written) == duration


@pytest.mark.parametrize(
    ("written", "request_"),
    [
        ("0", GpuRequest()),
        ("2", GpuRequest(2, 2)),
        ("1..8", GpuRequest(1, 8)),
        ("24GB", GpuRequest(1, 1, 24 * 10**9)),
        ("24GB..:2", GpuRequest(2, 2, 24 * 10**9)),
        ("16Gi..80Gi:0..1", GpuRequest(0, 1, 16 * 2**30, 80 * 2**30)),
        ("..12GB:1", GpuRequest(1, 1, 0, 12 * 10**9)),
    ],
)
def test_gpu_requests(written: str, request_: GpuRequest) -> None:
    assert parse_manifest(SMALLEST + f"resources: {{gpu: '{written}'}}").resources.gpu == request_


# --- what is refused, in which words, and where -------------------------------------------------------

HEAD = "trainforge.yaml:"


def wrong_manifests() -> list[tuple[str, list[str]]]:
    """The cases of wrong_manifests.txt: a manifest, and all that is said of it."""
    cases = []
    for case in (Path(__file__).parent / "wrong_manifests.txt").read_text().split("%%\n")[1:]:
        lines = case.splitlines()
        said = [line.removeprefix("! ") for line in lines if line.startswith("! ")]
        cases.append(("\n".join(line for line in lines if not line.startswith("! ")), said))
    return cases


@pytest.mark.parametrize(("text", "said"), wrong_manifests())
def test_a_wrong_manifest_is_told_where_and_why(text: str, said: list[str]) -> None:
    assert refused(text) == [f"{HEAD}{line}" for line in said]


def test_every_problem_of_a_file_at_once_and_in_order() -> None:
    text = """\
project: {name: "", nme: x}
training:
  script: a.py
  module: a
  env: {GIT_DIR: x}
  launcher: acelerate
resources: {gpu: many, gpu: 2, nodes: 0}
metrics: {primary: f1}
gates: [{metric: f1}, {metrik: f1, min: 1}]
timeout: {run: never}
resuorces: {}
"""
    assert [problem.removeprefix(HEAD).split(";")[0][:45] for problem in refused(text)] == [
        "1:17: project.name: expected a name of up to ",
        "1:21: project.nme: unknown key",
        "4:11: training.module: script says already wh",
        "5:9: training.env.GIT_DIR: expected a variabl",
        "6:13: training.launcher: expected one of acce",
        "7:18: resources.gpu: expected a count such as",
        "7:24: resources.gpu: repeated",
        "7:39: resources.nodes: expected a count from ",
        "8:1: metrics.mode: missing, and only you know",
        "9:9: gates[0]: one of min or max is missing",
        "9:23: gates[1].metric: missing",
        "9:24: gates[1].metrik: unknown key",
        "10:16: timeout.run: expected a duration such ",
        "11:1: resuorces: unknown key",
    ]


def test_the_error_stands_for_all_its_problems() -> None:
    with pytest.raises(ManifestError) as caught:
        parse_manifest("project: {name: p}\ntraining: {script: t.py}\nseed: x\npriority: y", "models/a.yaml")
    assert str(caught.value).splitlines() == [
        "models/a.yaml:3:7: seed: expected a whole number, got 'x'; try seed: 42",
        "models/a.yaml:4:11: priority: expected a whole number, got 'y'; try priority: 10",
    ]
    assert (caught.value.code, caught.value.exit_code, caught.value.status) == ("manifest_invalid", 3, 422)


@pytest.mark.parametrize(
    "text",
    [
        "\n".join(f"k{i}: 1" for i in range(2400)),
        "x" * 60_000 + ": 1",
        f"seed: {'x' * 60_000}",
        "gates: [" + "{}," * 4000 + "]",
        "retry: {on: [" + "zzz," * 4900 + "]}",
        "strategy: {matrix: {" + ",".join(f"k{i}: [1, 2, 3, 4]" for i in range(800)) + "}}",
        "metrics: {patterns: {a: '" + "(" * 499 + "'}}",
        "metrics: {patterns: {a: '(x{9999999999999})'}}",
    ],
    ids=["keys", "long key", "long value", "gates", "causes", "cells", "parentheses", "repetition"],
)
def test_hostile_manifests_cost_and_say_little(text: str) -> None:
    before = time.process_time()
    problems = refused(SMALLEST + text)
    assert time.process_time() - before < 1.0
    assert 1 <= len(problems) <= 101
    assert max(map(len, problems)) < 500


def test_retry_causes_are_the_reasons_that_may_be_retried() -> None:
    schema = json_schema()["$defs"]["Retry"]["properties"]["on"]["items"]["enum"]
    tried = {code for code, reason in REASONS.items() if reason.kind in {"now", "later"}}
    assert set(schema) == tried | {"disk_full"}  # which other executors try in any case


# --- overrides ----------------------------------------------------------------------------------------


def test_overrides_set_single_keys() -> None:
    manifest = parse_manifest(FOUNDING)
    changed = apply_overrides(
        manifest,
        {
            "resources.nodes": 2,
            "resources.memory": "8Gi",
            "training.params.model.depth": 3,
            "seed": 7,
            "data.url": "file:///d",
        },
    )
    assert changed.resources.nodes == NodeRange(2, 2)
    assert changed.resources.memory == 8 * 2**30
    assert changed.resources.gpu == manifest.resources.gpu
    assert changed.training.params == {"model.depth": 3}
    assert [data.url for data in changed.data] == ["file:///d"]
    assert manifest.resources.nodes == NodeRange(1, 1)
    assert apply_overrides(manifest, {}) is manifest


def test_overrides_keep_what_was_said_apart_from_what_was_not() -> None:
    manifest = parse_manifest(EVERYTHING)
    assert apply_overrides(manifest, {"seed": 1}).inactive() == manifest.inactive()
    command = parse_manifest("project: {name: p}\ntraining: {command: make}")
    assert apply_overrides(command, {"seed": 1}).training == command.training


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"resources.node": 2}, "override: resources.node: unknown key; did you mean nodes?"),
        ({"resources.nodes": "x"}, "override: resources.nodes: expected a count such as 2"),
        ({"seed.x": 1}, "override: seed: expected a whole number, got a mapping; try seed: 42"),
        ({"project.name.x": 1}, "override: project.name.x: name is not a mapping"),
        ({"metrics.primary": "loss"}, "override: metrics.mode: missing"),
        ({"": 1}, "override: : unknown key"),
    ],
)  # fmt: skip
def test_wrong_overrides_are_told(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ManifestError) as caught:
        apply_overrides(parse_manifest(SMALLEST), overrides)
    assert str(caught.value).startswith(message)


# --- round trips and the schema -----------------------------------------------------------------------

SIZES = st.integers(1, 2**50)
NODES = st.tuples(st.integers(1, 1024), st.integers(1, 1024)).map(
    lambda pair: NodeRange(min(pair), max(pair))
)
GPUS = st.builds(
    lambda counts, low, high: GpuRequest(min(counts), max(counts), low, None if high is None else low + high),
    st.tuples(st.integers(0, 64), st.integers(0, 64)),
    st.just(0) | SIZES,
    st.none() | SIZES,
)
TEXT = st.text(
    st.characters(min_codepoint=32, max_codepoint=0x24F, blacklist_categories=("Cc", "Cf")), max_size=20
)
PARAMS = st.dictionaries(
    TEXT,
    st.none() | st.booleans() | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    max_size=4,
)  # fmt: skip
KEYS = st.sampled_from([*Manifest.model_fields, "script", "min", "gpu", "paths"])


@st.composite
def manifests(draw: st.DrawFn) -> dict[str, Any]:
    training: dict[str, Any] = {"params": draw(PARAMS), "args": draw(st.lists(TEXT, max_size=3))}
    training["script"] = draw(st.from_regex(r"[a-z]{1,8}(/[a-z]{1,8}){0,2}\.py", fullmatch=True))
    resources = {"nodes": str(draw(NODES)), "gpu": str(draw(GPUS)), "memory": draw(SIZES)}
    timeout = {"run": draw(st.floats(0.001, 1e6)), "setup": f"{draw(st.integers(1, 9999))}m"}
    return {
        "project": {"name": draw(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", fullmatch=True))},
        "training": training,
        "resources": resources,
        "timeout": timeout,
        "priority": draw(st.integers(-100, 100)),
        "seed": draw(st.none() | st.integers(0, 2**32 - 1)),
        "metrics": {"primary": draw(TEXT), "mode": draw(st.sampled_from(["min", "max"]))},
    }


@given(manifests())
def test_a_manifest_survives_being_written_and_read(raw: dict[str, Any]) -> None:
    manifest = parse_manifest(json.dumps(raw, ensure_ascii=False))
    again = parse_manifest(json.dumps(manifest.model_dump(mode="json"), ensure_ascii=False))
    assert again == manifest
    assert apply_overrides(manifest, {"seed": raw["seed"]}) == manifest


@given(NODES, GPUS)
def test_ranges_survive_being_written_and_read(nodes: NodeRange, gpu: GpuRequest) -> None:
    resources = parse_manifest(SMALLEST + f"resources: {{nodes: '{nodes}', gpu: '{gpu}'}}").resources
    assert (resources.nodes, resources.gpu) == (nodes, gpu)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | TEXT,
        lambda inner: st.lists(inner, max_size=3)
        | st.dictionaries(TEXT | KEYS, inner, max_size=4),
    ),
    st.sampled_from([*Manifest.model_fields, "training.script", "on.push", "data.url", "gates"]),
)  # fmt: skip
def test_any_value_anywhere_is_accepted_or_refused_with_a_place(value: Any, key: str) -> None:
    raw: dict[str, Any] = {"project": {"name": "p"}, "training": {"script": "t.py"}}
    first, _, second = key.partition(".")
    raw[first] = {second: value} if second else value
    try:
        parse_manifest(json.dumps(raw, ensure_ascii=False))
    except ManifestError as error:
        assert error.problems
        assert all(problem.place and problem.place.line for problem in error.problems)


def test_the_schema_accepts_what_is_accepted() -> None:
    validator = Draft202012Validator(json_schema())
    Draft202012Validator.check_schema(json_schema())
    for text in (FOUNDING, SMALLEST, EVERYTHING):
        errors = [error.message for error in validator.iter_errors(_yaml_1_2(text))]
        assert errors == []


@pytest.mark.parametrize(
    "text",
    [
        "nme: 1",
        "resources: {gpu: -1}",
        "timeout: {run: soon}",
        "resources: {memory: 16Q}",
        "on: {pull_request: x}",
    ],
)
def test_the_schema_refuses_what_is_refused(text: str) -> None:
    assert not Draft202012Validator(json_schema()).is_valid(_yaml_1_2(SMALLEST + text))


def _yaml_1_2(text: str) -> Any:
    """As an editor's YAML 1.2 parser gives it to the schema."""
    loader: Any = type("Loader", (yaml.SafeLoader,), {"yaml_implicit_resolvers": {}})
    loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"-?\d+$"), list("-0123456789"))
    loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"-?\d+\.\d+$"), list("-0123456789"))
    loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"(true|false)$"), list("tf"))
    return yaml.load(text, loader)  # noqa: S506 - derived from SafeLoader
