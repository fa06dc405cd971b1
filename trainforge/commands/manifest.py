"""Looking at a manifest before it runs: `validate`, `schema`, `plan`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trainforge.commands.common import (
    executors_option,
    json_option,
    next_step,
    number_text,
    picked,
    print_json,
    say,
    set_option,
    state_text,
    table,
)

if TYPE_CHECKING:
    from trainforge.client import Client
    from trainforge.config.manifest import Manifest
    from trainforge.project import Project

path_argument = click.argument("path", type=click.Path(path_type=Path), default=".")


@click.command()
@path_argument
@json_option
def validate(path: Path, as_json: bool) -> None:
    """Check trainforge.yaml and name every problem with its line and column.

    PATH is the manifest or its folder. Keys that are accepted but have no effect yet are listed.
    """
    from trainforge import project
    from trainforge.config.errors import ManifestError

    found = project.load(path)
    if problem := project.missing_script(found):
        raise ManifestError([problem])
    inactive = found.manifest.inactive()
    if as_json:
        print_json({"valid": True, "path": str(found.file), "not_yet_in_effect": inactive})
        return
    click.echo(f"{click.style('valid', fg='green')}: {found.file}: {summary(found.manifest)}")
    for key in inactive:
        click.echo(f"  {key}: accepted, not yet in effect")
    next_step("trainforge plan", "trainforge submit")


def summary(manifest: Manifest) -> str:
    """What would be trained, in a line."""
    from trainforge.config.matrix import expand

    training, nodes = manifest.training, manifest.resources.nodes
    what = training.script or training.module or training.command
    count = str(nodes.min) if nodes.min == nodes.max else f"{nodes.min} to {nodes.max}"
    cells = len(expand(manifest.strategy))
    times = f", {cells} times with other parameters" if cells > 1 else ""
    return f"{manifest.project.name} trains {what} on {count} node{'' if count == '1' else 's'}{times}"


@click.command()
def schema() -> None:
    """Print the JSON Schema of trainforge.yaml, for editors and other tools."""
    from trainforge.config.manifest import json_schema

    print_json(json_schema())


@click.command()
@path_argument
@click.option("--workers", type=click.IntRange(1), help="As if the manifest asked for this many nodes.")
@set_option
@executors_option
@json_option
def plan(  # noqa: PLR0917 - click passes by name
    path: Path,
    workers: int | None,
    settings: tuple[str, ...],
    executors: tuple[str, ...],
    excluded: tuple[str, ...],
    as_json: bool,
) -> int:
    """Show where a job would run now, with which parameters; or why it would wait, and what would help.

    Where no sender is known, the plan is made for this machine alone. The exit code is 0
    if a job would start now.
    """
    from trainforge import project
    from trainforge.client import Client, NoSender

    overrides = project.overrides(workers, settings)
    found = project.load(path, overrides)
    if problem := project.missing_script(found):
        say(f"warning: {problem}")
    try:
        client = Client.configured()
    except NoSender:
        answer = plan_here(found.manifest)
        say("no sender is known here: this plan is for this machine alone")
    else:
        with client:
            answer = client.plan(found.text, overrides, picked(executors, excluded))
            for name, place in _unset_secrets(client, found):
                why = f"the secret {name} is not set for {place}, without it the job fails"
                say(f"warning: {why}; `trainforge secret set {name} --repository {place}`")
    if as_json:
        print_json(answer)
        return 0 if answer.get("plan") else 1
    click.echo(summary(found.manifest))
    if answer.get("cells"):
        table(("JOB", "PARAMETERS", "PLAN"), [cell_row(cell) for cell in answer["cells"]])
    show_answer(answer)
    lines = [f"{key}: accepted, not yet in effect" for key in answer.get("inactive", [])]
    for line in lines:
        click.echo(f"  {line}")
    if answer.get("plan"):
        next_step("trainforge submit")
    return 0 if answer.get("plan") else 1


def _unset_secrets(client: Client, found: Project) -> list[tuple[str, str]]:
    """What the manifest names and the repository that it goes to has not; empty where nobody can tell."""
    from trainforge import project
    from trainforge.commands.submit import watched_name
    from trainforge.config.errors import TrainForgeError

    if not found.manifest.secrets:
        return []
    try:
        url = project.push_url(found, "", client.url)
        own = project.builtin_name(client.url, url)
        place = f"builtin:{own}" if own else watched_name(client, url)
        there = {secret.name for secret in client.secrets(place)}
    except TrainForgeError:
        return []
    return [(name, place) for name in found.manifest.secrets if name not in there]


def show_answer(answer: dict[str, Any]) -> None:
    """The one job, or a matrix' first: its machines and parameters, or per executor why not."""
    if answer.get("waiting"):
        click.echo(f"{state_text('waiting')}: no executors fit now")
        table(("EXECUTOR", "WHY NOT"), [(str(k), str(v)) for k, v in answer["waiting"].items()])
    lines = plan_lines(answer["plan"]) if answer.get("plan") else []
    if lines and answer.get("cells"):
        lines.insert(0, "job 1:")
    lines += [f"try: {words}" for words in answer.get("suggestions", [])]
    lines += start_lines(answer.get("start") or {})
    for line in lines:
        click.echo(f"  {line}")


def cell_row(cell: dict[str, Any]) -> tuple[str, str, str]:
    """A job of a matrix in a line: where it would run, or what keeps most executors from it."""
    if chosen := cell.get("plan"):
        names = ", ".join(node["name"] for node in chosen["nodes"])
        return str(cell["number"]), cell["name"], f"now on {names}"
    reasons = cell["waiting"]
    if "matrix" in reasons:
        return str(cell["number"]), cell["name"], f"waits: {reasons['matrix']}"
    words = "; ".join(f"{name}: {why}" for name, why in list(reasons.items())[:2])
    more = f"; and {len(reasons) - 2} more executors" if len(reasons) > 2 else ""
    return str(cell["number"]), cell["name"], f"waits: {words}{more}"


def plan_here(manifest: Manifest) -> dict[str, Any]:
    """What a sender would answer whose one executor is this machine."""
    from trainforge.executor.capabilities import capabilities
    from trainforge.sender.fit import Machine
    from trainforge.sender.preview import preview

    machine, now = Machine("this machine", "this machine", capabilities(Path.cwd())), time.time()
    return preview(manifest, [machine], now)


def plan_lines(chosen: dict[str, Any]) -> list[str]:
    """A plan in words: who runs which node, and what was adapted to the number of processes."""
    processes = chosen.get("processes_per_node", 1)
    lines = []
    for node in chosen.get("nodes", []):
        on = ", ".join(node.get("gpus", [])) or "CPU"
        first = node["rank"] * processes
        ranks = f"rank {first}" if processes == 1 else f"ranks {first} to {first + processes - 1}"
        many = "1 process" if processes == 1 else f"{processes} processes"
        lines.append(f"node {node['rank']}: {node['name']}, {many} ({ranks}) on {on}")
    for change in chosen.get("adjusted", []):
        before, after = number_text(change["before"]), number_text(change["after"])
        lines.append(f"{change['key']}: {before} becomes {after} ({change['rule']})")
    return lines + [str(notice) for notice in chosen.get("notices", [])]


def start_lines(start: dict[str, Any]) -> list[str]:
    """When it would start: the moment where it is known and not now, and what that rests on."""
    words, moment = str(start.get("words", "")), start.get("time")
    if moment is None or words.startswith("now"):
        return [f"starts: {words}"] if words else []
    return [f"starts: about {time.strftime('%a %H:%M', time.localtime(moment))}, {words}"]
