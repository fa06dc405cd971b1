"""What holds for every command: help, exit codes, errors as messages, a fast start."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import click
import pytest

from support.commands import Cli
from trainforge import cli as command_line
from trainforge.client import refusal
from trainforge.commands.common import metrics_text, table, waiting_words
from trainforge.config import errors

HEAVY = {"pydantic", "rich", "yaml", "httpx2", "git", "sqlalchemy", "starlette", "torch", "psutil"}


def test_help_lists_every_command_with_its_own_short_help(cli: Cli) -> None:
    listed = cli("--help").stdout
    for section in command_line.SECTIONS.values():
        for name, (_, text) in section.items():
            assert f"  {name} " in listed
            assert text in listed
            context = click.Context(command_line.cli)
            command = command_line.cli.get_command(context, name)
            assert command is not None
            assert command.name == name
            assert command.get_short_help_str(200).split(".")[0].split(";")[0][:10]


@pytest.mark.parametrize("name", sorted(command_line.COMMANDS))
def test_every_command_explains_itself(cli: Cli, name: str) -> None:
    done = cli(name, "--help")
    assert done.returncode == 0
    assert f"trainforge {name}" in done.stdout


def test_help_imports_nothing_that_it_does_not_need() -> None:
    script = (
        "import sys; from trainforge.cli import run; assert run(['--help']) == 0; "
        "print(*{name.split('.')[0] for name in sys.modules}, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert set(done.stderr.split()) & HEAVY == set()


def test_an_unknown_command_names_the_nearest(cli: Cli) -> None:
    done = cli("sumbit")
    assert done.returncode == 2
    assert "did you mean 'submit'" in done.stderr


def test_the_version_is_the_packages(cli: Cli) -> None:
    assert cli("--version").stdout.startswith("trainforge 0.")


@pytest.mark.parametrize("command", ["status", "logs", "pull", "stop", "retry", "events"])
def test_without_a_sender_a_command_says_how_to_get_one(cli: Cli, command: str) -> None:
    done = cli(command)
    assert done.returncode == 2
    assert "trainforge sender start" in done.stderr
    assert done.stdout == ""


def test_with_json_a_refusal_is_json_too(cli: Cli) -> None:
    done = cli("status", "--json")
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"]["code"] == "no_sender"
    misused = cli("status", "--jsn", "--json")
    assert misused.returncode == 2
    assert json.loads(misused.stdout)["error"]["code"] == "usage"


def test_a_sender_that_does_not_answer_has_an_exit_code_of_its_own(cli: Cli) -> None:
    done = cli("status", TRAINFORGE_SENDER_URL="http://127.0.0.1:9", TRAINFORGE_TOKEN="tfp_x")
    assert done.returncode == 7
    assert "127.0.0.1:9" in done.stderr


def test_a_sender_that_is_down_is_said_alike_by_every_command(cli: Cli, folder: Path) -> None:
    cli("init")
    down = {"TRAINFORGE_SENDER_URL": "http://127.0.0.1:9", "TRAINFORGE_TOKEN": "tfp_x"}
    for command in ("submit", "plan", "status", "logs"):
        done = cli(command, **down)
        assert done.returncode == 7, command
        assert "is it running?" in done.stderr, command
    assert (folder / "trainforge.yaml").exists()


def test_a_reason_is_said_once_for_all_its_executors(
    capsys: pytest.CaptureFixture[str],
) -> None:
    waiting = {"a": "needs 1 GPU, has none", "b": "offline", "c": "needs 1 GPU, has none"}
    assert waiting_words(waiting) == ["a, c: needs 1 GPU, has none", "b: offline"]
    assert waiting_words({"*": "no executor has joined yet"}) == ["no executor has joined yet"]
    table(("JOB", "WHY"), [("k3f9", "wrong:\n  here\n  there\n"), ("b2", "")])
    assert capsys.readouterr().out == "JOB   WHY\nk3f9  wrong: (and 2 more lines)\nb2\n"


def test_what_only_counts_is_no_metric() -> None:
    assert metrics_text({"loss": 0.5, "step": 3, "total_steps": 3, "progress": 1.0}) == "loss=0.5"


def test_a_reader_that_leaves_early_is_no_error(environment: dict[str, str]) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "trainforge", "schema"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    with process.stderr:
        assert process.stderr.read() == b""
    process.wait(30)


@pytest.mark.parametrize(
    ("status", "kind", "exit_code"),
    [
        (401, errors.NotTrusted, 4),
        (404, errors.NotFound, 5),
        (409, errors.Conflict, 6),
        (400, errors.TrainForgeError, 1),
    ],
)
def test_a_problem_document_becomes_the_error_it_was(
    status: int, kind: type[errors.TrainForgeError], exit_code: int
) -> None:
    body = {"detail": "no", "hint": "try this", "code": "that", "place": "trainforge.yaml:3:1"}
    error = refusal(status, json.dumps(body).encode())
    assert type(error) is kind
    assert (error.message, error.hint, error.code, error.exit_code) == ("no", "try this", "that", exit_code)
    assert str(error.place) == "trainforge.yaml:3:1"


def test_the_problems_of_a_manifest_arrive_one_by_one() -> None:
    body = {"detail": "two", "problems": [{"detail": "a", "place": "m:1:1"}, {"detail": "b", "hint": "c"}]}
    error = refusal(422, json.dumps(body).encode())
    assert isinstance(error, errors.ManifestError)
    assert [problem.message for problem in error.problems] == ["a", "b"]


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"a": 1}'])
def test_what_is_no_sender_is_said_to_be_none(body: bytes) -> None:
    assert refusal(502, body).exit_code == 7
    assert "502" in refusal(502, body).message


def test_git_credential_answers_for_the_sender_alone(cli: Cli, environment: dict[str, str]) -> None:
    store = Path(environment["XDG_CONFIG_HOME"]) / "trainforge"
    store.mkdir(parents=True)
    (store / "client.json").write_text(json.dumps({"sender_url": "http://127.0.0.1:8420", "token": "tfp_s"}))
    known = cli("git-credential", "get", stdin="protocol=http\nhost=127.0.0.1:8420\n\n")
    assert known.stdout.splitlines() == ["username=trainforge", "password=tfp_s"]
    for other in (
        "protocol=http\nhost=127.0.0.1:8421\n",
        "protocol=https\nhost=127.0.0.1:8420\n",
        "host=x\n",
    ):
        assert cli("git-credential", "get", stdin=other).stdout == ""
    assert cli("git-credential", "store", stdin="protocol=http\nhost=127.0.0.1:8420\n").stdout == ""


def test_a_job_that_nobody_is_asked_about_cannot_be_answered(cli: Cli, tmp_path: Path) -> None:
    for command in ("accept", "reject"):
        done = cli("executor", command, "k3f", "--data-dir", str(tmp_path))
        assert done.returncode == 5
        assert "no job k3f waits for an answer here" in done.stderr
