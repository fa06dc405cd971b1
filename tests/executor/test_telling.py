"""What the terminal and the status say of a job, and of a sender that goes away."""

from __future__ import annotations

import logging
import socketserver
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from support.executors import Project, forgotten, joined, running
from support.sender_double import SenderDouble
from support.waiting import wait_for
from trainforge.executor.status import local_status

FILES = {
    "trainforge.yaml": "project: {name: test}\ntraining: {script: train.py, launcher: python}\n",
    "train.py": "print('hi')\n",
}


def test_a_job_is_told_in_a_few_lines(
    double: SenderDouble, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    project = Project(tmp_path, FILES)
    chosen, executor = joined(double, tmp_path / "laptop")
    with caplog.at_level(logging.INFO, "trainforge.executor"), running(chosen):
        (node,) = double.run(project.job(), [executor], project.order())
        forgotten(chosen, node)
    name = f"job {node.key.job[:8]}"
    said = [line for line in caplog.messages if line.startswith(name)]
    assert said[0] == f"{name}: takes test at {project.commit[:7]}"
    phases = [
        "checkout",
        "environment",
        "data",
        "ready",
        "training",
        "ended well",
        "collecting",
        "publishing",
    ]
    assert said[1:-1] == [f"{name}: {phase}" for phase in phases]
    assert "result on the branch trainforge-results" in said[-1]


class Refusing(socketserver.ThreadingTCPServer):
    """A port behind which nobody answers; `calls` counts who tried."""

    daemon_threads = True
    calls = 0


class Refusal(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        Refusing.calls += 1


def test_a_sender_that_is_away_is_told_once_and_when_it_is_back(
    double: SenderDouble, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    chosen, _ = joined(double, tmp_path / "laptop", heartbeat_every=0.05, poll_interval=0.05)
    with (
        caplog.at_level(logging.INFO, "trainforge.executor"),
        Refusing(("127.0.0.1", 0), Refusal) as nobody,
    ):
        threading.Thread(target=nobody.serve_forever, args=(0.05,), daemon=True).start()
        away = f"http://127.0.0.1:{nobody.server_address[1]}"
        with running(chosen.model_copy(update={"sender_url": away})) as agent:
            wait_for("many tries", lambda: Refusing.calls > 10)
            assert "cannot be reached" in local_status(chosen)["contact"]["problem"]
            agent.link.client.base_url = double.url
            wait_for("contact", lambda: not local_status(chosen)["contact"].get("problem", "?"))
        nobody.shutdown()
    lines = [line for line in caplog.messages if "connected to" in line or "cannot be reached" in line]
    assert len(lines) == 2, lines
    assert "cannot be reached" in lines[0]
    assert not any(record.exc_info for record in caplog.records)


@pytest.mark.parametrize("debug", [False, True])
def test_details_are_logged_where_they_are_asked_for(debug: bool) -> None:
    script = (
        f"import logging; from trainforge.executor.telling import tell_the_terminal as t; t(debug={debug}); "
        "logging.getLogger('trainforge').debug('a detail'); logging.getLogger('httpx2').info('a request')"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ("DEBUG trainforge  a detail" in done.stderr) is debug
    assert ("a request" in done.stderr) is debug
