"""Looking at a manifest before it runs: `validate`, `schema`, `plan`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trainforge.commands.common import json_option, next_step, print_json, state_text, table

if TYPE_CHECKING:
    from trainforge.config.manifest import Manifest

path_argument = click.argument("path", type=click.Path(path_type=Path), default=".")


@click.command()
@path_argument
@json_option
def validate(path: Path, as_json: bool) -> None:
    """Check trainforge.yaml and name every problem with its line and column.

    PATH is the manifest or its folder. Keys that are accepted but have no effect yet are listed.
    """
    from trainforge import project

    found = project.load(path)
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
    training, nodes = manifest.training, manifest.resources.nodes
    what = training.script or training.module or training.command
    count = str(nodes.min) if nodes.min == nodes.max else f"{nodes.min} to {nodes.max}"
    return f"{manifest.project.name} trains {what} on {count} node{'' if count == '1' else 's'}"


@click.command()
def schema() -> None:
    """Print the JSON Schema of trainforge.yaml, for editors and other tools."""
    from trainforge.config.manifest import json_schema

    print_json(json_schema())


@click.command()
@path_argument
@click.option("--workers", type=click.IntRange(1), help="As if the manifest asked for this many nodes.")
@json_option
def plan(path: Path, workers: int | None, as_json: bool) -> None:
    """Show where a job would run now, with which parameters; or why it would wait."""
    from trainforge import project
    from trainforge.client import Client

    overrides = project.workers(workers)
    found = project.load(path, overrides)
    with Client.configured() as client:
        answer = client.plan(found.text, overrides)
    if as_json:
        print_json(answer)
        return
    click.echo(summary(found.manifest))
    if answer.get("waiting"):
        click.echo(f"{state_text('waiting')}: no executors fit now")
        table(("EXECUTOR", "WHY NOT"), [(str(k), str(v)) for k, v in answer["waiting"].items()])
        return
    _show_plan(answer.get("plan") or answer)
    next_step("trainforge submit")


def _show_plan(chosen: dict[str, Any]) -> None:
    nodes = [node for node in chosen.get("nodes", []) if isinstance(node, dict)]
    rows = [
        (
            str(node.get("rank", number)),
            str(node.get("name") or node.get("executor_name") or node.get("executor", "")),
            str(node.get("processes", chosen.get("processes_per_node", ""))),
            ", ".join(node.get("gpus", [])) or "CPU",
        )
        for number, node in enumerate(nodes)
    ]
    if rows:
        table(("NODE", "EXECUTOR", "PROCESSES", "GPUS"), rows)
    for name, value in (chosen.get("params") or {}).items():
        click.echo(f"  {name}: {value}")
    for note in chosen.get("notes") or chosen.get("adjustments") or []:
        click.echo(f"  {note}")
