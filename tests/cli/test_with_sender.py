"""The commands that speak to a sender, against a real one; no executor is there, so jobs wait."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.commands import Cli, Git
from support.databases import prepared
from support.waiting import wait_for

Ask = Callable[..., Any]


@pytest.fixture
def sender(environment: dict[str, str], tmp_path: Path) -> Iterator[str]:
    """The URL of a sender whose token the command line has found by itself."""
    data, log = prepared(tmp_path / "sender"), tmp_path / "sender.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "trainforge", "sender", "start", "--port", "0", "--data-dir", str(data)],
            env=environment,
            stdout=output,
            stderr=output,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    try:
        about = data / "sender.json"
        wait_for("sender", lambda: about.exists() or process.poll() is not None, 60, log.read_text)
        assert process.poll() is None, log.read_text()
        yield json.loads(about.read_text())["url"]
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture
def ask(cli: Cli) -> Ask:
    """A command's JSON answer; fails unless it succeeds."""

    def run(*arguments: str, **options: Any) -> Any:
        done = cli(*arguments, "--json", **options)
        assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
        return json.loads(done.stdout)

    return run


@pytest.fixture
def project(sender: str, cli: Cli, folder: Path) -> Path:
    path = folder / "mine"
    assert sender
    done = cli("init", str(path))
    assert done.returncode == 0, done.stderr
    return path


def test_a_dirty_project_is_submitted_and_left_as_it_was(ask: Ask, git: Git, project: Path) -> None:
    (project / "train.py").write_text("print('changed')\n")
    (project / "new.txt").write_text("new")
    before = git("status", "--porcelain", cwd=project), git("for-each-ref", cwd=project)
    job = ask("submit", str(project))
    assert (git("status", "--porcelain", cwd=project), git("for-each-ref", cwd=project)) == before
    assert job["project"] == "mine"
    assert git("rev-parse", f"{job['commit']}^", cwd=project) == git("rev-parse", "HEAD", cwd=project)
    assert [listed["id"] for listed in ask("status")["jobs"]] == [job["id"]]
    assert [one["decision"] for one in ask("events")["events"] if one["decision"] == "job"] in ([], ["job"])


def test_the_founding_order_makes_two_jobs_of_one_commit(ask: Ask, project: Path) -> None:
    first = ask("submit", ".", cwd=project)
    again = ask("submit", ".", cwd=project)
    second = ask("submit", ".", "--workers", "2", cwd=project)
    assert again["id"] == first["id"], "the same commit, asked for alike, is the same job"
    assert (first["nodes"], second["nodes"]) == (1, 2)
    assert first["commit"] == second["commit"]
    assert first["id"] != second["id"]
    assert len(ask("status")["jobs"]) == 2


def test_a_push_is_a_job_that_can_be_shown_stopped_and_retried(
    ask: Ask, cli: Cli, git: Git, project: Path
) -> None:
    git("push", "-q", "trainforge", "main", cwd=project)
    job = wait_for("a job", lambda: ask("status")["jobs"])[0]["id"]
    shown = cli("status", job[:6])
    assert job in shown.stdout
    assert "trainforge logs -f" in shown.stderr
    assert cli("logs").returncode == 0
    assert cli("pull").returncode == 6, "it has not ended"
    assert cli("status", "zzzzzz").returncode == 5
    assert ask("stop", "--reason", "enough")["id"] == job

    def ended() -> bool:
        return bool(ask("status", job)["state"] == "cancelled")

    wait_for("the end", ended)
    assert cli("status", "--watch", job).returncode == 1
    assert cli("stop").returncode == 5, "nothing is under way any more"
    again = ask("retry")
    assert (again["rerun_of"], again["id"] != job) == (job, True)


def test_the_result_of_a_cancelled_job_is_pulled(ask: Ask, cli: Cli, project: Path) -> None:
    job = ask("submit", ".", cwd=project)["id"]
    ask("stop", job)
    wait_for("the result", lambda: ask("status", job)["result_commit"])
    pulled = ask("pull", cwd=project)
    assert "result.json" in pulled["files"]
    record = json.loads((project / "results" / job / "result.json").read_text())
    assert record["job"] == job
    assert cli("pull", job[:8], cwd=project).returncode == 6, "it is there already"
    assert cli("pull", job[:8], "--to", "again", cwd=project).returncode == 0
    assert (project / "again" / "README.md").is_file()
    assert "artifacts" not in cli("pull", job[:8], "--to", "third", cwd=project).stderr, "it has none"


def test_a_plan_says_why_a_job_would_wait(cli: Cli, project: Path) -> None:
    done = cli("plan", str(project), "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["waiting"]
    assert "WHY NOT" in cli("plan", str(project), "--workers", "2").stdout
    assert "secret" not in done.stderr


def test_a_plan_names_secrets_that_are_not_set(cli: Cli, project: Path) -> None:
    with (project / "trainforge.yaml").open("a") as file:
        file.write("secrets: [HF_TOKEN, OTHER]\n")
    done = cli("secret", "set", "OTHER", "--repository", "builtin:mine", stdin="a-value-of-it")
    assert done.returncode == 0, done.stderr
    said = cli("plan", str(project)).stderr
    assert "warning: the secret HF_TOKEN is not set for builtin:mine" in said
    assert "OTHER" not in said


def test_pushing_a_bad_manifest_names_its_problems(
    ask: Ask, cli: Cli, environment: dict[str, str], git: Git, project: Path
) -> None:
    manifest = project / "trainforge.yaml"
    manifest.write_text(manifest.read_text().replace("script:", "scirpt:") + "seeed: 1\n")
    git("commit", "-qam", "spoil it", cwd=project)
    done = subprocess.run(
        ["git", "push", "trainforge", "main"],
        cwd=project,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "trainforge.yaml cannot be used" in done.stderr
    assert "training.scirpt: unknown key; did you mean script?" in done.stderr
    assert "seeed: unknown key" in done.stderr
    assert "queued" not in done.stderr
    job = ask("status")["jobs"][0]["id"]
    shown = wait_for("its end", lambda: ask("status", job)["ended"] and cli("status", job))
    assert "mend the lines named" in shown.stdout
    assert "trainforge validate" in shown.stderr


def test_following_a_job_that_waits_says_why_and_what_became_of_it(
    ask: Ask, cli: Cli, environment: dict[str, str], project: Path, tmp_path: Path
) -> None:
    job = ask("submit", ".", cwd=project)["id"]
    said = tmp_path / "said"
    with said.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "trainforge", "logs", "-f", job],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=output,
        )
    wait_for("the reason", lambda: "no executor has joined yet" in said.read_text(), 60, said.read_text)
    assert "nothing was printed yet" in cli("logs", job).stderr
    ask("stop", job, "--reason", "enough")
    assert process.wait(60) == 1
    assert f"job {job[:8]} cancelled without printing anything: enough" in said.read_text()
    after = cli("logs", job)
    assert "cancelled without printing anything" in after.stderr
    assert after.returncode == 0


def test_keys_set_for_one_job_reach_the_sender(ask: Ask, project: Path) -> None:
    settings = ["--set", "training.params.epochs=3", "--set", "resources.nodes=2"]
    job = ask("submit", ".", *settings, cwd=project)
    assert ask("submit", ".", cwd=project)["id"] != job["id"]
    assert ask("submit", ".", *settings, cwd=project)["id"] == job["id"]


def test_machines_are_invited_and_listed(ask: Ask, cli: Cli, sender: str, tmp_path: Path) -> None:
    token = ask("sender", "token")["token"]
    own = ("--name", "alpha", "--data-dir", str(tmp_path / "alpha"))
    added = ask("executor", "add", "beta", "--host", "10.0.0.7")
    assert "--name beta" in added["join_command"]
    assert [one["name"] for one in ask("executor", "list")["pending"]] == ["beta"]
    assert "pending" in cli("executor", "list").stdout
    assert ask("executor", "join", sender, token, *own)["name"] == "alpha"
    assert cli("executor", "join", sender, token, "--data-dir", str(tmp_path / "b")).returncode == 4
    about = ask("executor", "status", *own)
    assert (about["name"], about["sender_url"]) == ("alpha", sender)
    assert [one["name"] for one in ask("sender", "status")["executors"]] == ["alpha"]
    assert "alpha" in cli("sender", "status").stdout
    assert cli("executor", "status", "--data-dir", str(tmp_path / "c")).returncode == 2
    shown = cli("executor", "start", "--status", *own)
    assert shown.returncode == 0
    assert f"sender   {sender}, but no executor runs here" in shown.stdout
    assert ask("executor", "leave", *own)["name"] == "alpha"
    assert "alpha" not in cli("executor", "list").stdout
    assert cli("executor", "leave", *own).returncode == 2
    again = ask("sender", "token")["token"]
    assert ask("executor", "join", sender, again, *own)["executor"] == about["executor"]


def test_another_repository_is_watched_and_submitted_from(
    ask: Ask, cli: Cli, git: Git, project: Path, tmp_path: Path
) -> None:
    bare = tmp_path / "elsewhere.git"
    git("init", "-q", "--bare", str(bare))
    git("remote", "add", "origin", str(bare), cwd=project)
    refused = cli("submit", "--remote", "origin", cwd=project)
    assert refused.returncode == 1
    assert "does not watch" in refused.stderr
    assert ask("sender", "watch", str(bare))["name"] == "elsewhere"
    job = ask("submit", "--remote", "origin", cwd=project)
    assert job["repository"] == "elsewhere"
    assert cli("submit", "--remote", "nowhere", cwd=project).returncode == 1


def test_a_hook_is_installed_into_a_bare_repository(
    ask: Ask, cli: Cli, git: Git, sender: str, tmp_path: Path
) -> None:
    bare, secret = tmp_path / "there.git", tmp_path / "secret"
    git("init", "-q", "--bare", str(bare))
    secret.write_text("s" * 40)
    done = ask("hooks", "install", str(bare), "--secret-file", str(secret))
    assert done["sender"] == sender
    assert os.access(done["script"], os.X_OK)
    wrong = cli("hooks", "install", str(tmp_path), "--secret-file", str(secret))
    assert wrong.returncode == 5


def test_login_checks_the_token_before_it_is_kept(
    cli: Cli, environment: dict[str, str], sender: str, tmp_path: Path
) -> None:
    stored = Path(environment["XDG_CONFIG_HOME"]) / "trainforge" / "client.json"
    token = json.loads(stored.read_text())["token"]
    home = {"XDG_CONFIG_HOME": str(tmp_path / "other")}
    assert cli("login", sender, stdin="tfp_wrong\n", **home).returncode == 4
    assert not (tmp_path / "other").exists()
    assert cli("login", sender, stdin=f"{token}\n", **home).returncode == 0
    kept = tmp_path / "other" / "trainforge" / "client.json"
    assert kept.stat().st_mode & 0o777 == 0o600
    assert cli("status", **home).returncode == 0


def test_people_get_accounts_and_scripts_get_tokens(ask: Ask, cli: Cli, sender: str) -> None:
    words = "four quite unrelated words"
    invited = ask("user", "add", "vera", "--role", "viewer")
    assert invited["url"].startswith(f"{sender}/login?link=")
    assert (
        ask("user", "add", "otto", "--role", "operator", "--password", stdin=f"{words}\n")["password"] is True
    )
    assert cli("user", "add", "Otto", "--role", "viewer").returncode == 6
    assert ask("user", "link", "otto")["url"] != ask("user", "link", "otto")["url"]
    assert {one["name"]: one["role"] for one in ask("user", "list")["users"]} == {
        "admin": "admin", "otto": "operator", "vera": "viewer",
    }  # fmt: skip
    token = ask("token", "create", "ci", "--user", "otto", "--days", "30")["token"]
    scripts = {"TRAINFORGE_TOKEN": token, "TRAINFORGE_SENDER_URL": sender}
    assert cli("status", **scripts).returncode == 0
    refused = cli("user", "list", **scripts)
    assert (refused.returncode, "takes the role admin" in refused.stderr) == (4, True)
    changed = cli("user", "password", stdin=f"{words}\nanother set of words\n", **scripts)
    assert changed.returncode == 0, changed.stderr
    assert token not in changed.stdout + changed.stderr
    ask("user", "role", "otto", "viewer")
    assert cli("sender", "token", **scripts).returncode == 4
    (mine,) = ask("token", "list", **scripts)["tokens"]
    assert (mine["name"], mine["role"], mine["user"]) == ("ci", "operator", "otto")
    ask("user", "logout", "otto")
    ask("user", "password", "otto", stdin=f"{words}\n")
    ask("token", "revoke", str(mine["id"]))
    assert cli("status", **scripts).returncode == 4
    ask("user", "remove", "vera")
    assert cli("user", "remove", "admin").returncode == 6
    shown = cli("user", "list")
    assert "otto   viewer  password" in shown.stdout
