"""Asking the owner: nothing happens before the yes, and a no or silence ends the job with its reason."""

from __future__ import annotations

import os
import pty
import sys
from pathlib import Path

import pytest

from support.executors import Project, ended, joined, running
from support.sender_double import SenderDouble
from support.waiting import wait_for
from trainforge.config.errors import NotFound
from trainforge.executor import acceptance
from trainforge.executor.status import local_status

FILES = {
    "trainforge.yaml": "project: {name: test}\ntraining: {script: train.py, launcher: python}\n",
    "train.py": "print('hi')\n",
}


def test_a_job_waits_until_it_is_accepted(double: SenderDouble, tmp_path: Path) -> None:
    project = Project(tmp_path, FILES)
    chosen, executor = joined(double, tmp_path / "laptop", accept="ask")
    with running(chosen):
        (node,) = double.run(project.job(), [executor], project.order())
        wait_for("the question", lambda: any(one["asked"] for one in local_status(chosen)["nodes"]))
        wait_for("its phase", lambda: node.data("phase"))
        assert "owner to accept" in node.last("phase")["detail"]
        assert not (chosen.data_dir / "mirrors").exists()
        with pytest.raises(NotFound):
            acceptance.answer(chosen.data_dir, "zzz", yes=True)
        assert acceptance.answer(chosen.data_dir, node.key.job[:6], yes=True) == node.key.job
        assert ended(node)["code"] == ""
    assert "hi" in node.text(0)


@pytest.mark.parametrize(
    ("timeout", "words"), [(100.0, "rejected it"), (0.3, "did not accept it within 0.3 s")]
)
def test_a_no_and_silence_refuse_it(double: SenderDouble, tmp_path: Path, timeout: float, words: str) -> None:
    project = Project(tmp_path, FILES)
    chosen, executor = joined(double, tmp_path / "laptop", accept="ask", accept_timeout=timeout)
    with running(chosen):
        (node,) = double.run(project.job(), [executor], project.order())
        if timeout > 1:
            wait_for("the question", lambda: any(one["asked"] for one in local_status(chosen)["nodes"]))
            acceptance.answer(chosen.data_dir, node.key.job, yes=False)
        last = ended(node)
    assert last["code"] == "policy_refused"
    assert last["reason"].endswith(words)
    assert "laptop" in last["reason"]
    assert node.phases()[:1] == ["checkout"]
    assert not node.data("started")


def test_the_terminal_is_asked(
    double: SenderDouble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    project = Project(tmp_path, FILES)
    chosen, executor = joined(double, tmp_path / "laptop", accept="ask")
    owner, terminal = pty.openpty()
    with os.fdopen(terminal) as stdin, running(chosen):
        monkeypatch.setattr(sys, "stdin", stdin)
        monkeypatch.setattr(acceptance, "_has_terminal", sys.stdin.isatty)  # it is not this process's own
        os.write(owner, b"perhaps\ny\n")
        (node,) = double.run(project.job(), [executor], project.order())
        assert ended(node)["code"] == ""
    os.close(owner)
    said = capsys.readouterr().err
    assert f"Job {node.key.job[:8]} of test wants to train here" in said
    assert str(project.bare) in said
    assert "yes or no?" in said


def test_the_question_cannot_steer_the_terminal() -> None:
    facts = dict.fromkeys(
        ["job", "project", "repository", "ref", "commit", "nodes", "processes"], "a\x1b[2Jb\n"
    )
    assert "\x1b" not in acceptance.question(facts, 5)
