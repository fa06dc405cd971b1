"""The demo's manners: whatever ends it, nothing is left."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.processes import commands
from support.waiting import wait_for
from trainforge.demo import isolated_environment
from trainforge.demo_view import tree_lines


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_demo_stops_everything_and_removes_its_folder(
    environment: dict[str, str], tmp_path: Path, number: signal.Signals
) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    output = tmp_path / "output"
    with output.open("wb") as file:
        demo = subprocess.Popen(
            [sys.executable, "-m", "trainforge", "demo"],
            env=environment | {"TMPDIR": str(temporary)},
            stdout=file,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    wait_for("a sender", lambda: list(temporary.glob("*/sender/sender.json")), 90, output.read_text)
    demo.send_signal(number)
    assert demo.wait(60) == 130, output.read_text()
    assert list(temporary.iterdir()) == []
    assert commands(naming=str(temporary)) == {}
    assert "Traceback" not in output.read_text()


def test_the_demo_sees_nothing_of_the_users_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAINFORGE_TOKEN", "mine")
    monkeypatch.setenv("GIT_DIR", "/somewhere")
    environment = isolated_environment(tmp_path)
    assert "mine" not in environment.values()
    assert "GIT_DIR" not in environment
    homes = [environment[name] for name in ("HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "TMPDIR")]
    assert all(home.startswith(str(tmp_path)) for home in homes)


def test_a_tree_shows_each_folder_once() -> None:
    paths = ["a/b/1", "a/b/2", "a/c", "d"]
    assert tree_lines(paths) == ["a/", "  b/", "    1", "    2", "  c", "d"]


@given(st.sets(st.lists(st.sampled_from("abc"), min_size=1, max_size=4).map("/".join), max_size=12))
def test_a_tree_has_a_line_for_every_path(paths: set[str]) -> None:
    files = {path for path in paths if not any(other.startswith(f"{path}/") for other in paths)}
    lines = tree_lines(sorted(files))
    assert sum(not line.endswith("/") for line in lines) == len(files)
