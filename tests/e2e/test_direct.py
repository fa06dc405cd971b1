"""Training with no sender anywhere: two executors that announce themselves on a branch, and one process."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from support.fleet import Fleet
from support.repositories import Server, serving_git
from support.scripts import UNTIL_TOLD, manifest
from support.waiting import wait_for
from trainforge.config.trust import SigningKey
from trainforge.hooks.git import init_bare
from trainforge.hooks.git_http import Access, repository_path

PASSWORD = "s3cret-pass"
READER = "r3ader-pass"  # of the one-shot sender, which reads and need not write
NAME = "team/digits"
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


class World:
    def __init__(self, fleet: Fleet, server: Server) -> None:
        self.fleet, self.server = fleet, server
        self.bare = init_bare(repository_path(server.root, NAME))
        self.project = fleet.root / "digits"
        self.project.mkdir()
        fleet.git("init", "-q", "-b", "main", cwd=self.project)
        fleet.git("remote", "add", "origin", server.at(NAME), cwd=self.project)
        self.key = fleet.root / "signing.key"
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
            | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def action(self, commit: str, **environment: str) -> tuple[int, str]:
        """What the action runs in `mode: direct`, as a runner starts it."""
        run = {
            "GITHUB_ACTIONS": "true", "GITHUB_SHA": commit, "GITHUB_REF": "refs/heads/main",
            "GITHUB_SERVER_URL": f"{self.server.url}/git", "GITHUB_REPOSITORY": NAME,
            "TRAINFORGE_CI_MODE": "direct", "TRAINFORGE_CI_ALLOW_PRIVATE": "true",
            "TRAINFORGE_CI_SET": "training.params.lr=0.5 training.params.name=x",
        }  # fmt: skip
        process = self.begin("ci", **run, **environment)
        said, _ = process.communicate(timeout=120)
        return process.returncode, said

    def direct(self, *arguments: str, **environment: str) -> tuple[int, str]:
        process = self.begin(*DIRECT, *arguments, **environment)
        said, _ = process.communicate(timeout=120)
        return process.returncode, said

    @staticmethod
    def obeyed(said: str) -> list[str]:
        """The commands that a runner would obey: not those between `stop-commands` and its word."""
        word, commands = "", []
        for line in said.splitlines():
            if word:
                word = "" if line == f"::{word}::" else word
            elif line.startswith("::stop-commands::"):
                word = line.removeprefix("::stop-commands::")
            elif line.startswith("::"):
                commands.append(line.split(":")[2].split(" ")[0])
        return commands

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
    commit = world.push(GANG, manifest("digits", nodes=2, more="secrets: [TOKEN]\n"))
    code, said = world.direct("--plan")
    assert (code, "alpha" in said, "beta" in said) == (0, True, True), said
    code, said = world.action(commit, TRAINFORGE_SECRET_TOKEN="between us")
    assert code == 0, f"{said}\n{world.fleet.logs()}"
    assert "[1] node 1 of 2, told 10 letters" in said
    assert "between us" not in said
    assert set(world.obeyed(said)) == {"add-mask", "group", "endgroup"}
    (result,) = world.results()
    assert (result["outcome"], result["commit"]) == ("completed", commit)
    assert result["params"] == {"lr": 0.5, "name": "x"}
    assert {node["name"] for node in result["nodes"]} == {"alpha", "beta"}  # type: ignore[attr-defined]
    listed = world.fleet.git("ls-tree", "-r", "--name-only", "trainforge-results", cwd=world.bare)
    assert "artifacts/model.txt" in listed
    # It has its result: the next run finds that, and trains nothing.
    code, said = world.action(commit)
    assert (code, "completed" in said, "node 0 of 2" in said) == (0, True, False), said
    assert len(world.results()) == 1


def test_executors_serve_the_key_that_they_trust_and_one_run_at_a_time(world: World) -> None:
    other = SigningKey.generate()
    other.save(world.fleet.root / "other.key")
    told = (world.fleet.root / "other.key").read_text()
    go_on = world.fleet.signals / "go-on"
    world.push(UNTIL_TOLD.format(go_on=str(go_on)), manifest("digits"))
    code, said = world.direct("--plan", TRAINFORGE_SIGNING_KEY=told)
    assert (code, said.count("it trusts another key") >= 2) == (5, True), said
    first = world.begin(*DIRECT)
    assert first.stdout is not None
    seen = []
    for line in first.stdout:
        seen.append(line)
        if "training has begun" in line:
            break
    second = world.begin(*DIRECT, TRAINFORGE_SENDER_DATABASE_URL="sqlite:////not/this/one.db")
    assert second.stdout is not None
    waits = []
    for line in second.stdout:
        waits.append(line)
        if "waiting until another run is over" in line:
            break
    assert "another run has this executor" in "".join(waits)
    first.send_signal(signal.SIGINT)
    rest, _ = first.communicate(timeout=150)
    assert first.returncode == 130, "".join(seen) + rest
    said, _ = second.communicate(timeout=150)
    assert (second.returncode, "cancelled" in said) == (1, True), said
    (stopped,) = [result for result in world.results() if result["outcome"] != "completed"]
    assert (stopped["outcome"], stopped["reason"]) == ("cancelled", "the workflow run was cancelled")
