"""`init`, `validate`, `schema`: a project before anything runs."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import jsonschema
import pytest
import yaml

from support.commands import Cli, Git

FOUNDING = """\
project:
  name: llama-finetune

training:
  script: train.py
  requirements: requirements.txt

resources:
  gpu: 1
  memory: 16Gi
"""


def write_client(environment: dict[str, str], url: str) -> None:
    store = Path(environment["XDG_CONFIG_HOME"]) / "trainforge"
    store.mkdir(parents=True)
    (store / "client.json").write_text(json.dumps({"sender_url": url, "token": "tfp_secret"}))


@pytest.mark.parametrize("template", ["minimal", "digits"])
def test_init_makes_a_valid_project_with_a_first_commit(
    cli: Cli, git: Git, folder: Path, template: str
) -> None:
    done = cli("init", "--template", template, "--name", "mine")
    assert done.returncode == 0, done.stderr
    assert {".gitignore", "requirements.txt", "train.py", "trainforge.yaml"} <= {
        p.name for p in folder.iterdir()
    }
    assert yaml.safe_load((folder / "trainforge.yaml").read_text())["project"]["name"] == "mine"
    assert git("status", "--porcelain") == ""
    assert git("rev-list", "--count", "HEAD").strip() == "1"
    checked = cli("validate", "--json")
    assert checked.returncode == 0, checked.stdout
    assert json.loads(checked.stdout)["not_yet_in_effect"] == []


def test_init_takes_the_name_from_the_folder_and_keeps_what_is_there(cli: Cli, folder: Path) -> None:
    project = folder / "My model (2)"
    project.mkdir()
    (project / "train.py").write_text("print('mine')\n")
    (project / "notes.txt").write_text("not for git")
    done = cli("init", "--json", cwd=project)
    answer = json.loads(done.stdout)
    assert answer["project"] == "My-model-2"
    assert "train.py" not in answer["files"]
    assert (project / "train.py").read_text() == "print('mine')\n"
    again = cli("init", cwd=project)
    assert again.returncode == 0
    assert "is there already" in again.stdout
    assert "no sender is known" in again.stderr


def test_init_adds_to_a_project_what_it_lacks(
    cli: Cli, git: Git, folder: Path, environment: dict[str, str]
) -> None:
    (folder / "trainforge.yaml").write_text(FOUNDING)
    write_client(environment, "http://127.0.0.1:8420")
    done = cli("init")
    assert done.returncode == 0, done.stderr
    assert "added: a git repository" in done.stderr
    assert "added: the remote trainforge" in done.stderr
    assert "git push trainforge HEAD" in done.stderr, "which needs no branch to follow another"
    url = "http://127.0.0.1:8420/git/llama-finetune.git"
    assert git("remote", "get-url", "trainforge").strip() == url
    assert "git-credential" in git("config", "--get-all", "credential.http://127.0.0.1:8420.helper")
    assert sorted(path.name for path in folder.iterdir()) == [".git", "trainforge.yaml"]
    git("remote", "remove", "trainforge")
    assert json.loads(cli("init", "--json").stdout)["remote_changed"] is True
    assert json.loads(cli("init", "--json").stdout)["remote_changed"] is False


def test_the_digits_train_on_one_machine_where_there_is_one(cli: Cli, folder: Path) -> None:
    cli("init", "--template", "digits")
    done = cli("plan", "--json")
    assert done.returncode == 0, done.stdout
    assert json.loads(done.stdout)["plan"]["world_size"] == 1
    nodes = yaml.safe_load((folder / "trainforge.yaml").read_text())["resources"]["nodes"]
    assert nodes == "1:2", "and on two where there are two"


def test_init_commits_only_its_own_files(cli: Cli, git: Git, folder: Path) -> None:
    (folder / "data.bin").write_bytes(b"x" * 1000)
    cli("init")
    assert "data.bin" not in git("ls-tree", "-r", "--name-only", "HEAD")
    assert git("status", "--porcelain").split() == ["??", "data.bin"]


def test_init_in_a_repository_leaves_the_commit_to_the_user(cli: Cli, git: Git, folder: Path) -> None:
    git("init", "-q")
    done = cli("init", "sub")
    assert done.returncode == 0
    assert "git add" in done.stderr
    assert not (folder / "sub" / ".git").exists()
    assert git("status", "--porcelain").split() == ["??", "sub/"]
    assert f"git repository {folder.resolve()}" in done.stderr
    assert (
        yaml.safe_load((folder / "sub" / "trainforge.yaml").read_text())["training"]["working_dir"] == "sub"
    )
    assert cli("validate", "sub").returncode == 0, "a job starts at the repository's root"


def test_init_points_a_remote_at_the_known_sender_without_the_token(
    cli: Cli, git: Git, folder: Path, environment: dict[str, str]
) -> None:
    write_client(environment, "http://127.0.0.1:8420")
    done = cli("init", "--name", "mine")
    assert "git push trainforge main" in done.stderr
    assert git("remote", "get-url", "trainforge").strip() == "http://127.0.0.1:8420/git/mine.git"
    assert "tfp_secret" not in (folder / ".git" / "config").read_text()
    filled = subprocess.run(
        ["git", "credential", "fill"],
        input="url=http://127.0.0.1:8420/git/mine.git\n\n",
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "password=tfp_secret" in filled.stdout


def test_init_refuses_a_name_that_cannot_be_one(cli: Cli, folder: Path) -> None:
    done = cli("init", "--name", "../x")
    assert done.returncode == 1
    assert "cannot name a project" in done.stderr
    assert list(folder.iterdir()) == []


def test_the_founding_manifest_is_valid(cli: Cli, folder: Path) -> None:
    (folder / "trainforge.yaml").write_text(FOUNDING)
    (folder / "train.py").touch()
    done = cli("validate")
    assert done.returncode == 0
    assert "llama-finetune trains train.py on 1 node" in done.stdout


def test_validate_names_every_problem_at_its_place(cli: Cli, folder: Path) -> None:
    (folder / "trainforge.yaml").write_text(
        "project: {nmae: x}\ntraining: {script: train.py}\nresorces: {}\n"
    )
    done = cli("validate")
    assert done.returncode == 3
    assert done.stdout == ""
    assert "trainforge.yaml:1:" in done.stderr
    assert "trainforge.yaml:3:1" in done.stderr
    assert "name" in done.stderr
    assert "resources" in done.stderr
    document = json.loads(cli("validate", "--json").stdout)["error"]
    assert document["code"] == "manifest_invalid"
    assert len(document["problems"]) >= 2
    assert all(problem["place"] for problem in document["problems"])


def test_validate_lists_what_has_no_effect_yet(cli: Cli, folder: Path) -> None:
    (folder / "trainforge.yaml").write_text(FOUNDING + "artifacts: {store: s3://bucket/models}\n")
    (folder / "train.py").touch()
    done = cli("validate", str(folder / "trainforge.yaml"))
    assert done.returncode == 0, done.stderr
    assert "artifacts.store: accepted, not yet in effect" in done.stdout


def test_a_script_that_is_not_there_is_a_problem(cli: Cli, git: Git, folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "trainforge.yaml").write_text(FOUNDING.replace("  gpu: 1\n", ""))
    (folder / "sub" / "train.py").touch()
    git("init", "-q")
    done = cli("validate", "sub")
    assert done.returncode == 3
    assert "trainforge.yaml:5:11: training.script: there is no file train.py" in done.stderr
    assert "there is no file train.py" in cli("plan", "sub").stderr
    (folder / "train.py").touch()
    assert cli("validate", "sub").returncode == 0, "it is looked for where a job looks: in the repository"


def test_validate_without_a_manifest_says_where_it_looked(cli: Cli) -> None:
    done = cli("validate")
    assert done.returncode == 5
    assert "trainforge.yaml" in done.stderr
    assert "trainforge init" in done.stderr


def test_schema_is_a_json_schema_that_takes_the_founding_manifest(cli: Cli) -> None:
    schema = json.loads(cli("schema").stdout)
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    assert validator.is_valid(yaml.safe_load(FOUNDING))
    assert not validator.is_valid({"project": {"nmae": "x"}})


def test_a_plan_without_a_sender_is_for_this_machine(cli: Cli, folder: Path) -> None:
    (folder / "trainforge.yaml").write_text(
        "project: {name: x}\ntraining: {script: t.py, params: {batch_size: 8, note: a}}\n"
    )
    settings = ["--set", "training.params.note=yes", "--set", "resources.processes_per_node=2"]
    done = cli("plan", "--json", *settings)
    assert done.returncode == 0, done.stderr
    assert "for this machine alone" in done.stderr
    made = json.loads(done.stdout)["plan"]
    assert [node["name"] for node in made["nodes"]] == ["this machine"]
    assert made["params"] == {"batch_size": 4, "note": "yes"}, "YAML 1.2: yes is text"
    waiting = cli("plan", "--set", "resources.nodes=2")
    assert "waiting" in waiting.stdout
    assert waiting.returncode == 1
    assert "trainforge submit" not in waiting.stderr


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("novalue", "is not KEY=VALUE"),
        ("=3", "is not KEY=VALUE"),
        ("resources.nodez=2", "nodez"),
        ("resources.nodes=many", "nodes"),
        ("seed=[1", "--set seed"),
        ("seed=1\nother: 2", "--set seed"),
    ],
)
def test_a_key_set_wrongly_is_named(cli: Cli, folder: Path, setting: str, said: str) -> None:
    (folder / "trainforge.yaml").write_text("project: {name: x}\ntraining: {script: t.py}\n")
    for command in ("plan", "submit"):
        done = cli(command, "--set", setting)
        assert done.returncode == 3, done.stderr
        assert said in done.stderr
