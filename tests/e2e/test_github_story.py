"""From an empty repository to a pull request with a green gate; `docs/github.md` tells it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.fleet import Fleet
from support.github import GitHub, Repository, serving_github
from support.waiting import wait_for

TRAIN = """\
import json, sys

error = float(sys.argv[1])
print("PROGRESS: " + json.dumps({"val_accuracy": 1 - error, "val_loss": error}), flush=True)
"""
MANIFEST = """\
project: {name: digits}
training:
  script: train.py
  launcher: python
  args: "{{ params.error }}"
  params: {error: %s}
gates:
  - {metric: val_accuracy, min: 0.9}
  - {metric: val_loss, max: base}
"""


class Story:
    """Ada's machine and what she sees at GitHub."""

    def __init__(self, fleet: Fleet, github: GitHub) -> None:
        self.fleet, self.github = fleet, github
        self.found: Repository = github.add_repository("ada/digits", private=True, grace="write")
        self.token = github.token(
            "ada", self.found, contents="write", repository_hooks="write", statuses="write",
            pull_requests="write",
        )  # fmt: skip
        self.work = fleet.root / "digits"
        url = self.found.clone_url.replace("http://", f"http://ada:{self.token}@")
        fleet.git("clone", "-q", url, str(self.work), cwd=fleet.root)
        fleet.git("checkout", "-q", "-B", "main", cwd=self.work)

    def push(self, error: float, branch: str) -> str:
        files = {"train.py": TRAIN, "trainforge.yaml": MANIFEST % error}
        commit = self.fleet.commit(self.work, files)
        self.fleet.git("push", "-q", "origin", f"HEAD:refs/heads/{branch}", cwd=self.work)
        return commit

    def fork(self, owner: str) -> Repository:
        """Somebody's copy, one commit further."""
        made = self.github.add_repository(f"{owner}/digits", fork_of=self.found)
        self.fleet.git("checkout", "-q", "--detach", "origin/main", cwd=self.work)
        self.fleet.commit(self.work, {"trainforge.yaml": MANIFEST % 0.01})
        self.fleet.git("push", "-q", "-f", str(made.git), "HEAD:refs/heads/main", cwd=self.work)
        return made

    def statuses(self, commit: str) -> list[dict[str, Any]]:
        """Oldest first."""
        return [one for one in reversed(self.found.statuses) if one["sha"] == commit]

    def concluded(self, commit: str) -> dict[str, Any]:
        def probe() -> dict[str, Any] | None:
            told = self.statuses(commit)
            return told[-1] if told and told[-1]["state"] != "pending" else None

        return wait_for("a status that says how it ended", probe, 60, self.fleet.logs)

    def comment(self, *words: str) -> str:
        """The one comment, once it says all of this."""

        def probe() -> str | None:
            said = [
                str(one["body"]) for one in self.found.comments.values() if "kept up to date" in one["body"]
            ]
            assert len(said) < 2, said
            return said[0] if said and all(word in said[0] for word in words) else None

        return wait_for(
            f"comment with {words}", probe, 60, lambda: f"{self.found.comments}\n{self.fleet.logs()}"
        )


@pytest.fixture
def story(fleet: Fleet, tmp_path: Path) -> Iterator[Story]:
    with serving_github(tmp_path / "github") as github:
        made = Story(fleet, github)
        yield made
        fleet.close()


def test_from_an_empty_repository_to_a_green_gate(story: Story) -> None:
    fleet, github, found = story.fleet, story.github, story.found
    fleet.start_sender(poll_interval=600)
    fleet.add_executor("alpha", git_token=story.token, git_username="ada")
    fleet.variables["TRAINFORGE_GITHUB_TOKEN"] = story.token
    said = fleet.cli("github", "connect", "ada/digits", "--api-url", github.api)
    assert "ping" in said.stdout, said.stdout

    first = story.push(0.08, "main")
    ended = story.concluded(first)
    assert (ended["state"], ended["context"]) == ("success", "trainforge")
    assert story.statuses(first)[0]["state"] == "pending"
    assert ended["target_url"].startswith(f"{github.site}/ada/digits/tree/trainforge-results/jobs/")
    assert "[skip ci]" in found.run("log", "-1", "--format=%s", "trainforge-results")

    second = story.push(0.04, "better")
    number = github.open_pull(found, "better", "ada")
    story.comment("plan for", "training&#46;params&#46;error", "0&#46;08", "0&#46;04", "by past jobs")
    ended = story.concluded(second)
    assert (ended["state"], "2 gates passed" in ended["description"]) == ("success", True), ended
    told = story.comment("✅", "val&#95;loss", second[:10])
    assert "| -0.04 |" in told, told

    third = story.push(0.2, "better")
    ended = story.concluded(third)
    assert ended["state"] == "failure"
    assert "gate missed: val_accuracy is 0.8, wanted at least 0.9" in ended["description"]
    story.comment("❌", third[:10], "wanted at most 0&#46;08")
    github.comment(found, number, "grace", "/trainforge retry")
    wait_for("a reaction", lambda: found.reactions, 30, fleet.logs)
    jobs = wait_for("four jobs", lambda: fleet.jobs() if len(fleet.jobs()) == 4 else None, 30)
    again = next(job for job in jobs if job["rerun_of"])
    assert fleet.wait_ended(again["id"])["state"] == "completed", "a missed gate is not a failed job"
    assert {job["commit"] for job in fleet.jobs()} == {first, second, third}, "results started nothing"
    assert "missed gate" in fleet.cli("status", again["id"]).stdout

    strange = story.fork("mallory")
    other = github.open_pull(found, "main", "mallory", head_repository=strange)
    commit = found.commit_of(f"refs/pull/{other}/head")
    github.comment(found, other, "mallory", f"/trainforge run {commit}")
    wait_for("a refusal", lambda: found.reactions[-1]["content"] == "-1", 30, fleet.logs)
    github.comment(found, other, "grace", f"/trainforge run {commit}")
    assert story.concluded(commit)["state"] == "success", "approved, and trained by an executor"
