"""The GitHub Action, executed by act as a runner does, against a sender, an executor and GitHub's issuer."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from support.fleet import Fleet
from support.oidc import Issuer, issuer, workflow
from support.scripts import manifest

ROOT = Path(__file__).parents[2]
ACTION = ".github/actions/train"
WORKFLOW = """\
name: train
on: push
permissions: {{id-token: write, contents: read}}
jobs:
  train:
    runs-on: ubuntu-latest
    steps:
      - uses: actions/checkout@11bd71901bbe5b1630ceea73d27597364c9af683
      - id: train
        uses: ./.github/actions/train
        with:
          python: {python}
          sender-url: {sender}
          timeout: 100s
          {more}
      - if: always()
        env:
          TOLD: ${{{{ toJSON(steps.train.outputs) }}}}
        run: echo "$TOLD" > {told}
"""
TRAIN = """\
import json, sys
print("hello from the training", flush=True)
print("::set-output name=job-id::stolen", flush=True)
print("::error::no command to the runner", flush=True)
for step in range(1, 5):
    print("PROGRESS: " + json.dumps({"loss": 1.0 / step, "accuracy|<b>": step / 5}), flush=True)
sys.exit(int(sys.argv[1]) if len(sys.argv) > 1 else 0)
"""


@dataclass
class Done:
    code: int
    log: str
    outputs: dict[str, str]


class World:
    def __init__(self, fleet: Fleet, github: Issuer) -> None:
        self.fleet, self.github = fleet, github
        self.project = fleet.project("digits", {"train.py": TRAIN, "trainforge.yaml": manifest("digits")})
        shutil.copytree(ROOT / ACTION, self.project / ACTION)
        fleet.git("remote", "add", "origin", "https://github.com/octo-org/octo-repo.git", cwd=self.project)

    def act(self, text: str, more: str = "", **claims: str) -> Done:
        """Commit this manifest, push it to the repository that the sender has, and run the workflow."""
        told = self.fleet.root / "told.json"
        made = WORKFLOW.format(python=sys.executable, sender=self.fleet.url, more=more, told=told)
        files = {".github/workflows/train.yml": made, "trainforge.yaml": text}
        commit = self.fleet.commit(self.project, files)
        self.fleet.push(self.project)
        self.github.say(**workflow(sha=commit, **claims))
        given = [f"--env={name}={value}" for name, value in self.github.environment.items()]
        done = subprocess.run(
            [
                "act", "push", "--workflows", ".github/workflows/train.yml", "--pull=false",
                "--platform", "ubuntu-latest=-self-hosted", *given,
            ],
            cwd=self.project, env=self.fleet.environment(), stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=150, check=False,
        )  # fmt: skip
        log = done.stdout + done.stderr
        outputs = json.loads(told.read_text()) if told.exists() else {}
        return Done(done.returncode, log, outputs)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    fleet = Fleet(tmp_path_factory.mktemp("action"))
    access = {"digits": {"repository_id": 74, "refs": ["main"]}}
    with issuer() as github:
        try:
            fleet.start_sender(workflows=json.dumps(access), oidc_issuer=github.issuer)
            fleet.add_executor("alpha", isolation="process")
            yield World(fleet, github)
        finally:
            fleet.close()


def test_the_action_trains_a_commit_and_tells_of_it(world: World) -> None:
    done = world.act(manifest("digits"))
    assert done.code == 0, done.log
    (job,) = world.fleet.jobs()  # the push made it, too, and it is the same one
    told = done.outputs
    assert (told["job-id"], told["state"]) == (job["id"], "completed")
    assert json.loads(told["metrics"]) == {"loss": 0.25, "accuracy|<b>": 0.8}
    assert told["result-branch"] == "trainforge-results"
    assert f"{told['result-path']}/result.json" in world.fleet.result("digits")
    (all_jobs,) = json.loads(told["jobs"])
    assert all_jobs["id"] == job["id"]
    lines = [line.partition("]")[2].strip(" |") for line in done.log.splitlines()]
    begin = next(n for n, line in enumerate(lines) if "::group::training, attempt 1" in line)
    end = next(n for n, line in enumerate(lines) if n > begin and "::endgroup::" in line)
    assert "hello from the training" in lines[begin:end]
    assert "### TrainForge: digits completed" in done.log
    assert "| accuracy&#124;&#60;b&#62; | 0.8 |" in done.log
    assert "line [1, 0.5, 0.333333, 0.25]" in done.log
    assert f"[job]({world.fleet.url}/jobs/{job['id']})" in done.log
    assert "https://github.com/octo-org/octo-repo/tree/trainforge-results/" in done.log
    assert "eyJ" not in done.log, "a token is in the log"


def test_a_missed_gate_fails_the_step(world: World) -> None:
    text = manifest("digits", more="gates: [{metric: loss, max: 0.1}]\n")
    done = world.act(text)
    assert done.code != 0
    assert done.outputs["state"] == "completed"
    (gate,) = json.loads(done.outputs["gates"])
    assert gate["passed"] is False
    assert "completed, but missed 1 gate" in done.log


def test_a_plan_trains_nothing_and_a_stranger_gets_none(world: World) -> None:
    before = len(world.fleet.jobs())
    done = world.act(manifest("digits", nodes=2), "mode: plan")
    assert done.code == 0, done.log
    assert done.outputs["state"] == "waiting"
    assert "alpha" in done.outputs["plan"]
    refused = world.act(manifest("digits", nodes=2), "mode: plan", repository_id="75")
    assert refused.code != 0
    assert "workflows of octo-org/octo-repo (repository_id 75) have no access here" in refused.log
    assert {job["source"] for job in world.fleet.jobs()[before:]} <= {"push"}
