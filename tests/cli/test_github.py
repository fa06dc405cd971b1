"""`trainforge github` as a person types it, between a real sender and the tests' GitHub."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from support.github import GitHub, serving_github
from support.repositories import Project
from support.waiting import wait_for
from support.web import Web, web
from trainforge.config.settings import ClientSettings, save_client

PERMISSIONS = {
    "contents": "write",
    "repository_hooks": "write",
    "statuses": "write",
    "pull_requests": "write",
}


@pytest.fixture
def site(tmp_path: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    monkeypatch.setenv("XDG_CONFIG_HOME", environment["XDG_CONFIG_HOME"])
    with web(tmp_path) as site:
        save_client(ClientSettings.model_validate({"sender_url": site.url, "token": site.token}))
        yield site


@pytest.fixture
def github(tmp_path: Path) -> Iterator[GitHub]:
    with serving_github(tmp_path / "github") as made:
        digits = made.add_repository("ada/digits")
        Project(tmp_path / "digits").commit({"notes.txt": "hello\n"})
        Project(tmp_path / "digits").git("push", "--quiet", str(digits.git), "main")
        made.heads[digits.id] = digits.refs()
        yield made


def run(environment: dict[str, str], *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "trainforge", "github", *arguments]
    done = subprocess.run(
        command, env=environment, input=stdin, capture_output=True, text=True, timeout=120, check=False
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


def test_connect_check_list_and_disconnect(site: Web, github: GitHub, environment: dict[str, str]) -> None:
    assert "trainforge github connect OWNER/REPO" in run(environment, "check").stderr
    api, digits = ("--api-url", github.api), github.repository("ada/digits")
    assert digits is not None
    refused = run(environment, "connect", "ada/digits", *api, stdin="github_pat_wrong\n")
    assert refused.returncode == 4
    assert "github_pat_wrong" not in refused.stdout + refused.stderr
    poor = github.token("ada", digits, contents="read")
    done = run(environment, "connect", "ada/digits", *api, stdin=f"{poor}\n")
    assert done.returncode == 1
    assert re.search(r"missing +webhook: .*forbids", done.stdout), done.stdout
    assert "Webhooks: read and write" in done.stdout
    rich = github.token("ada", digits, **PERMISSIONS)
    done = run(environment | {"TRAINFORGE_GITHUB_TOKEN": rich}, "connect", "ada/digits", *api, "--token")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"ok +ping: GitHub's ping arrived after", done.stdout), done.stdout
    listed = run(environment, "list").stdout.splitlines()[1].split()
    assert listed[:4] == ["ada/digits", "digits", "token", "webhook"]
    report = json.loads(run(environment, "check", "--json").stdout)["reports"][0]
    assert report["ok"] and report["connection"]["full_name"] == "ada/digits"
    assert "found by polling" in run(environment, "disconnect", "ada/digits").stdout
    assert run(environment, "check", "ada/digits").returncode == 5
    everything = "".join(path.read_text("utf-8", "ignore") for path in site.sender.data_dir.glob("*.db*"))
    assert rich not in everything


def test_an_app_is_made_and_installed_on_the_way(
    site: Web, github: GitHub, environment: dict[str, str], tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "trainforge", "github", "connect", "ada/digits", "--app"]
    output = tmp_path / "output"
    with output.open("wb") as file:
        process = subprocess.Popen(
            [*command, "--api-url", github.api], env=environment,
            stdout=file, stderr=file, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    try:
        found = wait_for("address", lambda: re.search(r"(http://\S+state=\S+)", output.read_text()), 30)
        with httpx2.Client(timeout=30, trust_env=False, headers={"Accept": "text/html"}) as browser:
            page = browser.get(found[1]).text
            form = re.search(r'action="([^"]+)"', page)
            manifest = re.search(r'name="manifest" value="([^"]+)"', page)
            assert form and manifest
            plain = manifest[1].replace("&#34;", '"').replace("&quot;", '"')
            agreed = browser.post(form[1], data={"manifest": plain})
            browser.get(agreed.headers["location"])
        wait_for("place to install it", lambda: "installations/new" in output.read_text(), 30)
        (app,) = github.apps.values()
        digits = github.repository("ada/digits")
        assert digits is not None
        github.install(app, "ada", digits)
        process.wait(60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, output.read_text()
    assert "ok       permissions: the App has checks" in output.read_text()
