"""What the executor's tests share."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import engines
from support.executors import Start, process
from support.processes import kill_all
from support.sender_double import SenderDouble
from trainforge.config.settings import ExecutorSettings


@pytest.fixture
def double() -> Iterator[SenderDouble]:
    sender = SenderDouble()
    yield sender
    sender.close()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts executors as programs; whatever they leave running is killed after the test."""
    started: list[subprocess.Popen[bytes]] = []

    def begin(chosen: ExecutorSettings, **env: str) -> subprocess.Popen[bytes]:
        started.append(process(chosen, tmp_path / "executor.log", env))
        return started[-1]

    yield begin
    for program in started:
        program.kill()
        program.wait()
    kill_all(str(tmp_path))


@pytest.fixture(params=engines.KINDS)
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[engines.TestEngine]:
    if os.geteuid():
        pytest.skip("only root can start an engine of its own")
    made = engines.engine(request.param)
    for name, value in made.env.items():
        monkeypatch.setenv(name, value)
    yield made
    assert made.run("ps", "-aq") == "", "a container was left behind"
