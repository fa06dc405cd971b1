"""`trainforge init`: a project from a template, ready to push."""

from __future__ import annotations

import json
import re
import shlex
import sys
from importlib import resources
from pathlib import Path

import click

from trainforge.commands.common import json_option, next_step, print_json, say

TEMPLATES = ("minimal", "digits")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


@click.command()
@click.argument("path", type=click.Path(path_type=Path, file_okay=False), default=".")
@click.option("--template", type=click.Choice(TEMPLATES), default="minimal", show_default=True)
@click.option("--name", help="The project's name; by default the folder's.")
@json_option
def init(path: Path, template: str, name: str | None, as_json: bool) -> None:
    """Make a project from a template: trainforge.yaml, train.py and what else it needs.

    Files that are there are kept, and a project that is there gets what it lacks. Where there is no git
    repository one is made, with a first commit; where a sender is known its git server becomes the remote
    `trainforge`.
    """
    from trainforge.project import MANIFEST, load

    there = (path / MANIFEST).exists()
    name = load(path).manifest.project.name if there else name or project_name(path.resolve().name)
    written = [] if there else write_template(path, template, name)
    made = make_repository(path, written)
    around = None if made else repository_around(path)
    remote, added = add_remote(path, name)
    if as_json:
        print_json(
            {
                "project": name,
                "folder": str(path),
                "files": written,
                "repository_made": made,
                "remote": remote,
                "remote_changed": added,
            }
        )
        return
    click.echo(f"project {name} in {path}: " + (", ".join(written) or f"{MANIFEST} is there already"))
    if around:
        say(f"  it is a folder of the git repository {around}: pushing pushes all of that")
    if made and there:
        say("  added: a git repository")
    if remote:
        say(f"  {'added: the ' if added else ''}remote trainforge: {remote}")
    elif there:
        say("  no sender is known on this machine, so there is no remote to add")
    _suggest(path, made=made and not there, remote=remote)


def _suggest(path: Path, *, made: bool, remote: str) -> None:
    if path != Path():
        next_step(f"cd {shlex.quote(str(path))}")
    if not made:
        next_step("git add . && git commit --message 'Train with TrainForge'")
    if remote:
        next_step(f"git push trainforge {'main' if made else 'HEAD'}", "trainforge submit .")
    else:
        next_step("python train.py", "trainforge sender start")


def project_name(folder: str) -> str:
    """A folder's name in the form that a project's name must have."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", folder).strip("-._")[:63]
    return name or "project"


def template_files(template: str, name: str) -> dict[str, str]:
    """The template's files by the name they get in a project."""
    if not NAME.fullmatch(name):
        from trainforge.config.errors import TrainForgeError

        raise TrainForgeError(
            f"{name!r} cannot name a project", hint="use up to 63 letters, digits, '.', '_' and '-'"
        )
    folder = resources.files("trainforge") / "templates" / template
    files = {}
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if entry.is_file():
            target = ".gitignore" if entry.name == "gitignore" else entry.name
            files[target] = entry.read_text(encoding="utf-8").replace("__NAME__", name)
    return files


def write_template(path: Path, template: str, name: str) -> list[str]:
    """Write what is not there yet; the names of the files written."""
    files = template_files(template, name)
    path.mkdir(parents=True, exist_ok=True)
    if around := repository_around(path):
        inside = json.dumps(path.resolve().relative_to(around).as_posix())
        manifest = files["trainforge.yaml"]
        files["trainforge.yaml"] = manifest.replace("  script:", f"  working_dir: {inside}\n  script:", 1)
    written = []
    for target, text in files.items():
        if not (path / target).exists():
            (path / target).write_text(text, encoding="utf-8")
            written.append(target)
    return written


def repository_around(path: Path) -> Path | None:
    """The git repository in which the folder lies, if it is not one itself."""
    from trainforge import usergit

    top = usergit.toplevel(path)
    return top.resolve() if top is not None and top.resolve() != path.resolve() else None


def make_repository(path: Path, files: list[str]) -> bool:
    """`git init` and a first commit of these files, if any, unless the folder lies in a repository."""
    from trainforge import usergit

    if usergit.toplevel(path) is not None:
        return False
    usergit.user_git(["init", "--quiet", "--initial-branch=main"], path)
    if not files:
        return True
    usergit.user_git(["add", "--", *files], path)
    message = ["--message", "Start from a TrainForge template"]
    usergit.user_git(["commit", "--quiet", "--no-gpg-sign", *message], path, env=usergit.identity(path))
    return True


def add_remote(path: Path, name: str) -> tuple[str, bool]:
    """Point the remote `trainforge` at the known sender's git server; its address, or nothing, and whether
    it or the way to its password is new.

    The token is not stored here: git asks `trainforge git-credential` for it.
    """
    from trainforge import project, usergit
    from trainforge.config.settings import load_client

    sender = load_client().sender_url
    if not sender:
        return "", False
    url = usergit.remote_url(path, project.REMOTE)
    new = not url
    if new:
        url = project.builtin_url(sender, name)
        usergit.user_git(["remote", "add", project.REMOTE, url], path)
    helper = f"!{shlex.quote(sys.executable)} -m trainforge git-credential"
    key = f"credential.{sender}.helper"
    if usergit.settings(path, key) != ["", helper]:
        new = True
        usergit.user_git(["config", "--replace-all", key, ""], path)  # other helpers need not hear of it
        usergit.user_git(["config", "--add", key, helper], path)
    return url, new
