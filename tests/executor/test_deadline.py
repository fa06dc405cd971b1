"""A training that is to end at a known time: when it is warned, and that a warning alone ends nothing."""

from __future__ import annotations

import os
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from support.executors import Project, ended, joined, running, story
from support.sender_double import SenderDouble
from support.waiting import wait_for
from trainforge.config.session import session_end
from trainforge.executor.deadline import Deadline, deadline
from trainforge.executor.launch import RANK_PROGRAM, Launch
from trainforge.executor.supervise import Supervised


def made(run: float | None = None, session_ends: float = 0, warning: float | None = None) -> Deadline:
    return deadline(1000, run=run, session_ends=session_ends, grace=30, warning=warning)


def test_the_earlier_end_counts_and_the_warning_comes_before_it() -> None:
    assert made() == Deadline()
    assert made(run=600) == Deadline(1600, "timeout_run", 1540)
    assert made(run=36_000) == Deadline(37_000, "timeout_run", 36_880)
    assert made(run=600, session_ends=1330) == Deadline(1300, "session_end", 1270)
    assert made(run=600, session_ends=9999, warning=100) == Deadline(1600, "timeout_run", 1500)
    assert made(session_ends=1010, warning=60) == Deadline(1000, "session_end", 1000)


def test_a_session_ends_after_a_while_or_at_a_time() -> None:
    assert session_end("", 5) == 0
    assert session_end("9h", 1000) == 1000 + 9 * 3600
    assert session_end("2026-11-21T18:00+00:00", 0) == datetime(2026, 11, 21, 18, tzinfo=UTC).timestamp()
    with pytest.raises(ValueError, match="such as 9h"):
        session_end("soon", 0)


@pytest.mark.parametrize("knows", [True, False])
def test_a_warning_reaches_who_listens_and_harms_nobody_else(tmp_path: Path, knows: bool) -> None:
    heard = "signal.signal(signal.SIGUSR1, lambda *_: print('saved'))" if knows else ""
    script = (
        f"import os, pathlib, signal, time\n{heard}\nprint('up')\n"
        "while not os.path.exists(os.environ['TRAINFORGE_WARNING_FILE']): time.sleep(0.05)\n"
        "time.sleep(0.3)\nprint('over')\n"
    )
    (tmp_path / "train.py").write_text(script)
    run = tmp_path / "run"
    run.mkdir()
    env = dict(os.environ) | {"TRAINFORGE_WARNING_FILE": str(run / "warned")}
    argv = [sys.executable, "-I", "-S", RANK_PROGRAM, str(run), "0"]
    supervised = Supervised(run)
    planned = Launch(argv, [sys.executable, "-u", "train.py"], tmp_path, 1, 1, env)
    now = time.time()
    end = Deadline(now + 60, "session_end", now + 2)
    supervised.prepare(planned, timeout_s=None, grace_s=1, end=end)
    supervised.start()
    done = wait_for("exit", supervised.exit, 30)
    assert (done.exit_code, done.stopped) == (0, "")
    assert (run / "logs" / "0.stdout").read_text() == "up\n" + "saved\n" * knows + "over\n"


def test_the_end_of_a_session_is_a_loss_that_the_training_was_warned_of(
    double: SenderDouble, tmp_path: Path
) -> None:
    manifest = (
        "project: {name: test}\ntraining: {script: train.py, launcher: python}\n"
        "timeout: {run: 1h, grace: 1s, warning: 2s}\ncheckpoint: {every: 90s}\n"
    )
    script = (
        "import os, time\nfrom trainforge.training import should_checkpoint, should_stop_soon\n"
        "print(os.environ['TRAINFORGE_CHECKPOINT_EVERY'], should_checkpoint())\n"
        "while not should_stop_soon(): time.sleep(0.05)\n"
        "print('warned', should_checkpoint(), should_checkpoint(), flush=True)\ntime.sleep(60)\n"
    )
    project = Project(tmp_path, {"trainforge.yaml": manifest, "train.py": script})
    ends = datetime.fromtimestamp(time.time() + 8, UTC).isoformat()
    chosen, executor = joined(double, tmp_path / "machine", session_ends=ends)
    with running(chosen):
        (state,) = double.run(project.job(), [executor], project.order())
        ended(state, 60)
    assert state.last("ended")["code"] == "lost", story(state)
    assert "session" in state.last("ended")["reason"]
    assert "90 False" in state.text(0)
    assert "warned True False" in state.text(0)
    assert any("by the end of the machine's session" in note["text"] for note in state.data("note"))
