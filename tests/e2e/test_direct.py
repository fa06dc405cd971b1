"""Training with no sender anywhere: two executors that announce themselves on a branch, and one process."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from support.fleet import Fleet
from support.repositories import Server, serving_git
from support.scripts import FAILING, UNTIL_TOLD, manifest
from support.waiting import wait_for
from trainforge.config.trust import SigningKey
from trainforge.direct import LAST_RESORT_S, LINGER_S
from trainforge.executor.mailbox import SILENT_S
from trainforge.hooks.git import init_bare
from trainforge.hooks.git_http import Access, repository_path

PASSWORD = "s3cret-pass"
READER = "r3ader-pass"  # of the one-shot sender, which reads and need not write
NAME = "team/digits"
ROOT = Path(__file__).parents[2]
ACTION, USED = ".github/actions/train", "trainforge/trainforge@v0.1.0"
EXAMPLE = ROOT / "docs" / "examples" / "workflows" / "direct.yml"
ENV = "        env:\n          TRAINFORGE_SECRET_TOKEN: ${{ secrets.TOKEN }}\n"
DIRECT = ("direct", "--allow-private")
GANG = """\
import json, os
rank = int(os.environ["TRAINFORGE_NODE_RANK"])
told = len(os.environ["TOKEN"])
print(f"node {rank} of {os.environ['TRAINFORGE_NODES']}, told {told} letters", flush=True)
print("::error::no command to the runner", flush=True)
for step in range(1, 4):
    print("PROGRESS: " + json.dumps({"loss": 1.0 / step}), flush=True)
if rank == 0:
    with open(os.path.join(os.environ["TRAINFORGE_OUTPUT_DIR"], "model.txt"), "w") as file:
        file.write("trained")
"""


STUBBORN = """\
import signal, sys
if "--stubborn" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
"""
TOLD = """\
      - if: always()
        env:
          TOLD: ${{{{ toJSON(steps.train.outputs) }}}}
        run: echo "$TOLD" > {told}
"""


@dataclass
class Done:
    code: int
    log: str
    outputs: dict[str, str]
    commit: str

    def printed(self, begin: str, end: str) -> list[str]:
        """The lines between two, without what act writes before each."""
        lines = [line.partition("]")[2].strip(" |") for line in self.log.splitlines()]
        first = next(n for n, line in enumerate(lines) if begin in line)
        last = next(n for n, line in enumerate(lines) if n > first and end in line)
        return lines[first:last]


def _as_here(workflow: str, env: str, told: Path) -> str:
    """The guide's workflow with what is not as at GitHub: the interpreter, and executors on this machine."""
    changes = {
        "- uses: trainforge/": "- id: train\n        uses: trainforge/",
        "        with:\n": f"{env}        with:\n          python: {sys.executable}\n"
        "          allow-private: true\n          set: training.params.lr=0.5 training.params.name=x\n",
    }
    for old, new in changes.items():
        assert workflow.count(old) == 1
        workflow = workflow.replace(old, new)
    return workflow + TOLD.format(told=told)


class World:
    def __init__(self, fleet: Fleet, server: Server) -> None:
        self.fleet, self.server = fleet, server
        self.bare = init_bare(repository_path(server.root, NAME))
        self.project = fleet.root / "digits"
        self.project.mkdir()
        fleet.git("init", "-q", "-b", "main", cwd=self.project)
        fleet.git("remote", "add", "origin", server.at(NAME), cwd=self.project)
        self.key = fleet.root / "signing.key"
        self.action = fleet.root / "action"
        shutil.copytree(ROOT / ACTION, self.action / ACTION)
        self.public = fleet.cli("direct", "--new-key", str(self.key)).stdout.strip()

    def push(self, script: str, text: str) -> str:
        commit = self.fleet.commit(self.project, {"train.py": script, "trainforge.yaml": text})
        self.fleet.git("push", "-q", self.server.at(NAME, PASSWORD), "HEAD:refs/heads/main", cwd=self.project)
        return commit

    def start_executor(self, name: str) -> None:
        settings: dict[str, object] = {
            "data_dir": self.fleet.root / name,
            "name": name,
            "connection": "push",
            "heartbeat_every": 1,
            "isolation": "process",
            "git_username": "me",
            "git_token": PASSWORD,
            "endpoint_repository": self.server.at(NAME),
        }
        self.fleet.cli("executor", "trust", self.public, settings=settings)
        self.fleet.begin(name, "executor", "start", settings=settings)

    def begin(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "trainforge", *arguments],
            cwd=self.project,
            env=self.fleet.environment()
            | {"TRAINFORGE_SIGNING_KEY": self.key.read_text(), "TRAINFORGE_GIT_TOKEN": READER}
            | {"TMPDIR": str(self.fleet.root)}
            | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def act(self, script: str, text: str, env: str = "") -> Done:
        """Push a commit with the guide's workflow in it, and have act run that as a runner does."""
        told = self.fleet.root / "told.json"
        told.unlink(missing_ok=True)
        workflow = self.project / ".github" / "workflows" / EXAMPLE.name
        workflow.parent.mkdir(parents=True, exist_ok=True)
        workflow.write_text(_as_here(EXAMPLE.read_text(), env, told))
        commit = self.push(script, text)
        run = {"GITHUB_SERVER_URL": f"{self.server.url}/git", "GITHUB_REPOSITORY": NAME}
        secrets = {
            "TRAINFORGE_SIGNING_KEY": self.key.read_text(),
            "GITHUB_TOKEN": READER,
            "TOKEN": "between us",
        }
        done = subprocess.run(
            [
                "act", "push", f"--workflows={workflow}", "--pull=false",
                "--platform=ubuntu-latest=-self-hosted",
                f"--local-repository={run['GITHUB_SERVER_URL']}/{USED}={self.action}",
                *(f"--env={name}={value}" for name, value in run.items()),
                *(f"--secret={name}" for name in secrets),
            ],
            cwd=self.project, env=self.fleet.environment() | secrets, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=150, check=False,
        )  # fmt: skip
        outputs = json.loads(told.read_text()) if told.exists() else {}
        return Done(done.returncode, done.stdout + done.stderr, outputs, commit)

    def direct(self, *arguments: str, **environment: str) -> tuple[int, str]:
        process = self.begin(*DIRECT, *arguments, **environment)
        said, _ = process.communicate(timeout=120)
        return process.returncode, said

    def shown(self, path: str, branch: str = "trainforge-results") -> str:
        return self.fleet.git("show", f"{branch}:{path}", cwd=self.bare, check=False)

    def announced(self, name: str) -> bool:
        return "public_url" in self.shown(f"executors/{name}.json", "trainforge-executors")

    def results(self) -> list[dict[str, object]]:
        listed = self.fleet.git(
            "ls-tree", "-r", "--name-only", "trainforge-results", cwd=self.bare, check=False
        )
        paths = [path for path in listed.splitlines() if path.endswith("/result.json")]
        return [json.loads(self.shown(path)) for path in paths]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    root = tmp_path_factory.mktemp("direct")
    fleet = Fleet(root)
    with serving_git(root / "served") as server:
        server.users[READER] = Access("x-access-token")
        made = World(fleet, server)
        try:
            for name in ("alpha", "beta"):
                made.start_executor(name)
            for name in ("alpha", "beta"):
                wait_for(name, lambda name=name: made.announced(name), 30, fleet.logs)
            yield made
        finally:
            fleet.close()


def test_a_commit_trains_on_two_executors_and_its_result_is_published(world: World) -> None:
    text = manifest("digits", nodes=2, more="secrets: [TOKEN]\n")
    world.push(GANG, text)
    code, said = world.direct("--plan")
    assert (code, "alpha" in said, "beta" in said) == (0, True, True), said
    done = world.act(GANG, text, ENV)
    assert done.code == 0, f"{done.log}\n{world.fleet.logs()}"
    told = done.outputs
    assert (told["state"], json.loads(told["metrics"])) == ("completed", {"loss": pytest.approx(1 / 3)})
    (result,) = world.results()
    assert (result["outcome"], result["commit"]) == ("completed", done.commit)
    assert (result["job"], result["params"]) == (told["job-id"], {"lr": 0.5, "name": "x"})
    assert {node["name"] for node in result["nodes"]} == {"alpha", "beta"}  # type: ignore[attr-defined]
    tip = world.fleet.git("rev-parse", told["result-branch"], cwd=world.bare).strip()
    assert told["result-commit"] == tip
    assert world.shown(f"{told['result-path']}/artifacts/model.txt") == "trained"
    groups = done.printed("::group::training, attempt 1", "::endgroup::")
    assert {"node 0 of 2, told 10 letters", "[1] node 1 of 2, told 10 letters"} <= set(groups)
    assert "### TrainForge: digits completed" in done.log
    assert "line [1, 0.5, 0.333333]\n" in done.log
    assert not any("\u2757" in line for line in done.log.splitlines()), (
        "a command of the training's is obeyed"
    )
    # It has its result: the next run finds that, and trains nothing.
    code, said = world.direct("--set", "training.params.lr=0.5", "--set", "training.params.name=x")
    assert (code, "completed" in said, "node 0 of 2" in said) == (0, True, False), said
    assert "nothing was trained now: the commit has that result; --rerun trains it anew" in said
    assert len(world.results()) == 1


def test_a_training_that_fails_fails_the_step_and_says_why(world: World) -> None:
    done = world.act(FAILING, manifest("digits"))
    assert (done.code, done.outputs["state"]) == (1, "failed"), done.log
    job = done.outputs["job-id"]
    why = "the training exited with 1: ZeroDivisionError: division by zero"
    assert f"::error title=TrainForge::job {job[:8]} failed: script_failed. {why}\n" in done.log
    assert "divide(1, 0)" in done.printed("::group::training, attempt 1", "::endgroup::")
    assert "### TrainForge: digits failed: script&#95;failed" in done.log
    (result,) = [result for result in world.results() if result["job"] == job]
    assert (result["outcome"], result["commit"]) == ("failed", done.commit)


def test_executors_serve_the_key_that_they_trust_and_one_run_at_a_time(world: World) -> None:
    other = SigningKey.generate()
    other.save(world.fleet.root / "other.key")
    told = (world.fleet.root / "other.key").read_text()
    world.push(STUBBORN + UNTIL_TOLD.format(go_on=str(world.fleet.signals / "go-on")), manifest("digits"))
    public_only = world.begin("direct", "--plan")
    code, said = world.direct("--plan", TRAINFORGE_SIGNING_KEY=told)
    assert (code, said.count("it trusts another key") >= 2) == (5, True), said
    said, _ = public_only.communicate(timeout=120)
    assert public_only.returncode == 5
    assert "executors/alpha.json: 127.0.0.1 is on a private network" in said
    first = world.begin(*DIRECT, "--executor", "alpha", "--set", "training.args=--stubborn")
    seen = _until(first, "training has begun")
    second = world.begin(
        *DIRECT, "--executor", "beta", TRAINFORGE_SENDER_DATABASE_URL="sqlite:////not/this/one.db"
    )
    assert "another run has this executor" in _until(second, "waiting until another run is over")
    folders = list(world.fleet.root.glob("trainforge-direct-*/sender"))
    assert len(folders) == 2
    assert not any((folder / "sender.key").exists() for folder in folders), "a run's key is on a disk"
    # What does not end is not waited for when told twice, and said; the next run has the executors at once.
    first.send_signal(signal.SIGTERM)
    _until(first, "stopping, for at most 30 s")
    first.send_signal(signal.SIGINT)
    rest, _ = first.communicate(timeout=60)
    assert (first.returncode, "not at its end: alpha (training)" in rest) == (130, True), seen + rest
    left = time.monotonic()
    seen = _until(second, "training has begun")
    assert time.monotonic() - left < SILENT_S, "the first run had not left"
    second.send_signal(signal.SIGINT)
    rest, _ = second.communicate(timeout=LINGER_S + LAST_RESORT_S + 60)
    assert (second.returncode, "cancelled: stopped" in rest) == (130, True), seen + rest
    (stopped,) = [result for result in world.results() if result["outcome"] == "cancelled"]
    assert stopped["reason"] == "interrupted by who ran it"
    assert not list(world.fleet.root.glob("trainforge-direct-*"))


def _until(process: subprocess.Popen[str], words: str) -> str:
    """What it prints up to a line with these words."""
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if words in line:
            return said
    raise AssertionError(f"it never says {words!r}:\n{said}")
