"""`trainforge secret` against a real sender: values go in by standard input or a prompt; none comes out."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.waiting import wait_for
from support.web import Web, web
from trainforge.config.settings import ClientSettings, save_client

VALUE = "canary-one\ncanary-two"


@pytest.fixture
def site(tmp_path: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    monkeypatch.setenv("XDG_CONFIG_HOME", environment["XDG_CONFIG_HOME"])
    with web(tmp_path) as site:
        save_client(ClientSettings.model_validate({"sender_url": site.url, "token": site.token}))
        yield site


def run(environment: dict[str, str], *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "trainforge", "secret", *arguments]
    return subprocess.run(
        command, env=environment, input=stdin, capture_output=True, text=True, timeout=60, check=False
    )


def test_set_list_and_remove(site: Web, environment: dict[str, str]) -> None:
    done = run(environment, "set", "HF_TOKEN", stdin=f"{VALUE}\n")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "HF_TOKEN is set for the default branch of demo\n"
    done = run(environment, "set", "KEY", "--branch", "release/*", "--json", stdin='{"user": "canary"}')
    assert "JSON" in json.loads(done.stdout)["remarks"][0]
    listed = run(environment, "list")
    assert [line.split()[:3] for line in listed.stdout.splitlines()[1:]] == [
        ["HF_TOKEN", "demo", "default"], ["KEY", "demo", "release/*"],
    ]  # fmt: skip
    assert "canary" not in done.stdout + listed.stdout + run(environment, "list", "--json").stdout
    assert "2 secret(s)" in run(environment, "rotate-key").stdout
    assert run(environment, "remove", "KEY", "--repository", "demo").returncode == 0
    assert run(environment, "remove", "KEY").returncode == 5
    assert run(environment, "set", "PATH", stdin="canary").returncode != 0
    short = run(environment, "set", "SHORT", stdin="abc")
    assert "shorter than 6" in short.stderr


def test_a_value_is_asked_for_without_showing_it(site: Web, environment: dict[str, str]) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "trainforge", "secret", "set", "HF_TOKEN"]
    process = subprocess.Popen(
        command, env=environment, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    )
    os.close(theirs)
    shown = b""
    for question in (b"Value of HF_TOKEN: ", b"Once more: "):
        while question not in shown:
            shown += os.read(ours, 1000)
        os.write(ours, b"canary-three\n")
    wait_for("end of the command", lambda: process.poll() is not None, 60)
    shown += os.read(ours, 1000)
    os.close(ours)
    assert process.returncode == 0, shown
    assert b"canary" not in shown
    assert [secret["name"] for secret in site.get("/api/secrets")["secrets"]] == ["HF_TOKEN"]
