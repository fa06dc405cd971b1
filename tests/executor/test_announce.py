"""The endpoint on the branch `trainforge-executors` of a real git server over HTTP."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.executors import joined, running
from support.processes import kill_all
from support.repositories import ENVIRONMENT, Server, serving_git
from support.sender_double import SenderDouble
from support.waiting import wait_for
from trainforge.config.errors import SettingsError
from trainforge.config.settings import ExecutorSettings
from trainforge.executor.program import run_executor
from trainforge.hooks.git import init_bare
from trainforge.hooks.git_http import Access, repository_path

TUNNEL = """\
import pathlib, time
seen = pathlib.Path(__file__).with_name("seen")
count = len(seen.read_text()) + 1 if seen.exists() else 1
seen.write_text("x" * count)
print(f"your url is https://tunnel-{count}.example.org", flush=True)
time.sleep(500)
"""
PASSWORD = "s3cret-pass"


def _git(server: Server, *arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=repository_path(server.root, "team/digits"), env=ENVIRONMENT,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.stdout


def _announced(server: Server, name: str) -> dict[str, Any]:
    text = _git(server, "show", f"trainforge-executors:executors/{name}.json")
    found: dict[str, Any] = json.loads(text) if text else {}
    return found


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving_git(tmp_path / "served") as served:
        init_bare(repository_path(served.root, "team/digits"))
        yield served


def _settings(double: SenderDouble, server: Server, folder: Path) -> ExecutorSettings:
    folder.mkdir()
    (folder / "tunnel.py").write_text(TUNNEL)
    return joined(
        double, folder, connection="push", tunnel="command",
        tunnel_command=f"{sys.executable} {folder}/tunnel.py {{port}}",
        endpoint_repository=server.at("team/digits"), git_username="me", git_token=PASSWORD,
    )[0]  # fmt: skip


def test_each_address_is_committed_and_nothing_secret(
    double: SenderDouble, server: Server, tmp_path: Path
) -> None:
    alpha = _settings(double, server, tmp_path / "alpha")
    beta = _settings(double, server, tmp_path / "beta")
    with running(alpha), running(beta):
        for name in ("alpha", "beta"):
            wait_for(name, lambda name=name: bool(_announced(server, name)), 30)
        first = _announced(server, "alpha")
        assert first["public_url"] == "https://tunnel-1.example.org"
        assert first["name"] == "alpha"
        assert first["capabilities"]["cpu_count"] > 0
        assert first["public_key"].keys() == {"crv", "kty", "x"}
        kill_all(str(tmp_path / "alpha"))
        wait_for("another", lambda: _announced(server, "alpha")["public_url"].endswith("2.example.org"), 30)
        assert _announced(server, "beta")["public_url"] == "https://tunnel-1.example.org"
    history = _git(server, "log", "-p", "trainforge-executors")
    for folder in (alpha.data_dir, beta.data_dir):
        private = json.loads((folder / "key.json").read_text())
        assert not [value for name, value in private.items() if name == "d" and value in history]
    assert PASSWORD not in history
    assert "[skip ci]" in history
    assert "# Executors" in _git(server, "show", "trainforge-executors:README.md")


def test_a_remote_that_refuses_is_tried_again(double: SenderDouble, server: Server, tmp_path: Path) -> None:
    server.users.clear()
    with running(_settings(double, server, tmp_path / "alpha")):
        wait_for("a try", lambda: bool(server.services), 30)
        server.users[PASSWORD] = Access("me", write=True, create=True)
        wait_for("the file", lambda: bool(_announced(server, "alpha")), 30)


def test_who_asks_for_work_has_no_address_to_announce(tmp_path: Path) -> None:
    """Said when it starts: in the environment the setting is there for every command of the executor's."""
    settings = ExecutorSettings(data_dir=tmp_path, endpoint_repository="https://example.org/x")
    with pytest.raises(SettingsError, match="endpoint_repository goes with connection: push"):
        run_executor(settings)
