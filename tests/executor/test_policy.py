"""A machine's policy against a sender that does not mind it: nothing starts, and the sender is told why."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.executors import Project, ended, joined, running
from support.sender_double import SenderDouble
from support.waiting import wait_for
from trainforge.config.errors import SettingsError
from trainforge.executor.capabilities import own_capabilities

MANIFEST = "project: {name: t}\ntraining: {command: touch ran}\ntimeout: {run: 2h}\n"


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path, {"trainforge.yaml": MANIFEST})


def policy(folder: Path, text: str) -> Path:
    path = folder / "policy.yaml"
    path.write_text(text)
    return path


def test_an_order_of_another_repository_is_refused_before_anything_is_fetched(
    double: SenderDouble, project: Project, tmp_path: Path
) -> None:
    rules = policy(tmp_path, '# mine alone\nrepositories: ["https://github.com/mine/*"]\n')
    chosen, executor = joined(double, tmp_path / "box", policy_file=rules)
    with running(chosen):
        wait_for("announced", lambda: double.heartbeats, 10)
        announced = double.heartbeats[-1].capabilities.policy
        assert announced is not None
        assert announced.repositories == ["https://github.com/mine/*"]
        node = double.run(project.job(), [executor], project.order())[0]
        words = wait_for("refusal", lambda: double.refused.get(node.outbox[0].id), 10)
    assert "the policy does not allow the repository git:" in words
    assert words.endswith("(policy.yaml:2: repositories)")
    assert not list((chosen.data_dir / "nodes").iterdir())
    assert not (chosen.data_dir / "mirrors").exists()


def test_a_manifest_that_asks_for_more_is_refused_before_it_is_checked_out(
    double: SenderDouble, project: Project, tmp_path: Path
) -> None:
    rules = policy(tmp_path, "max_nodes: 4\nmax_time: 1h\n")
    chosen, executor = joined(double, tmp_path / "box", policy_file=rules)
    with running(chosen):
        node = double.run(project.job(), [executor], project.order())[0]
        said = ended(node)
        folder = chosen.data_dir / "nodes" / str(node.key)
        assert not (folder / "work").exists()
    assert said["code"] == "policy_refused"
    assert "timeout.run is 7200 s (policy.yaml:2: max_time)" in said["reason"]


def test_a_policy_that_cannot_be_read_stops_the_start(double: SenderDouble, tmp_path: Path) -> None:
    chosen, _ = joined(double, tmp_path / "box")
    broken = chosen.model_copy(update={"policy_file": policy(tmp_path, "max_gpus: some\n")})
    with pytest.raises(SettingsError, match="max_gpus"):
        own_capabilities(broken)


def test_what_the_policy_allows_trains(double: SenderDouble, project: Project, tmp_path: Path) -> None:
    rules = policy(tmp_path, "branches: [main]\n")
    chosen, executor = joined(double, tmp_path / "box", policy_file=rules)
    with running(chosen):
        node = double.run(project.job(), [executor], project.order())[0]
        assert ended(node)["code"] == ""
