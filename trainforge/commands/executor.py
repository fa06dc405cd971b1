"""`trainforge executor`: pair this machine with a sender, train on it, look at its state."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trainforge.commands.common import Function, json_option, next_step, print_json
from trainforge.commands.sender import given, settings_file

if TYPE_CHECKING:
    from trainforge.config.settings import ExecutorSettings


def common_options(function: Function) -> Function:
    options: list[Callable[[Function], Function]] = [
        click.option(
            "--config",
            type=click.Path(path_type=Path),
            help="Settings file; default executor.yaml in the configuration folder.",
        ),
        click.option(
            "--data-dir", type=click.Path(path_type=Path), help="Where its key, caches and jobs lie."
        ),
        click.option("--name", help="What to call it.  [default: the machine's name]"),
    ]
    for option in reversed(options):
        function = option(function)
    return function


def _settings(config: Path | None, options: dict[str, Any]) -> ExecutorSettings:
    from trainforge.config.settings import ExecutorSettings

    return ExecutorSettings.load(settings_file(config, "executor.yaml"), **given(options))


@click.group()
def executor() -> None:
    """Run an executor, which trains on this machine."""


@executor.command()
@click.argument("url")
@click.argument("token")
@common_options
@json_option
def join(url: str, token: str, config: Path | None, as_json: bool, **options: Any) -> None:
    """Pair this machine with the sender at URL, once.

    TOKEN is what `trainforge sender token` printed; it works once. The key that identifies this machine is
    made here and never leaves it.
    """
    from trainforge.executor.join import join as pair

    identity = pair(url, token, _settings(config, options))
    if as_json:
        print_json({"executor": identity.executor, "name": identity.name, "sender": identity.sender_url})
        return
    click.echo(f"{identity.name} ({identity.executor}) belongs to {identity.sender_url} now")
    next_step("trainforge executor start")


@executor.command()
@common_options
@click.option(
    "--connection", type=click.Choice(["pull", "push"]), help="Ask for work, or be sent it.  [default: pull]"
)
@click.option("--host", help="Address to listen on where work is sent.  [default: 127.0.0.1]")
@click.option("--port", type=click.IntRange(0, 65535), help="Port; 0 takes a free one.  [default: 0]")
@click.option(
    "--tunnel", type=click.Choice(["none", "ngrok", "command"]), help="How it is reached from outside."
)
@click.option("--tunnel-command", help="Prints a public URL; {port} stands for the port.")
@click.option("--max-jobs", type=click.IntRange(1, 64), help="Jobs side by side.  [default: 1]")
def start(config: Path | None, **options: Any) -> None:
    """Train on this machine until Ctrl-C; a training outlives a restart of its executor.

    Every setting can be given in the file or as TRAINFORGE_EXECUTOR_... too.
    """
    from trainforge.executor.agent import run_executor

    run_executor(_settings(config, options))


@executor.command()
@common_options
@json_option
def status(config: Path | None, as_json: bool, **options: Any) -> None:
    """Show whom this machine belongs to, where it is reached and what it has."""
    from trainforge.executor.capabilities import capabilities
    from trainforge.executor.identity import ExecutorIdentity

    settings = _settings(config, options)
    identity = ExecutorIdentity.load(settings.data_dir)
    machine = capabilities(settings.data_dir, labels=settings.labels, max_jobs=settings.max_jobs)
    endpoint_file = settings.endpoint_file or settings.data_dir / "config.json"
    endpoint = json.loads(endpoint_file.read_text()) if endpoint_file.is_file() else {}
    if as_json:
        about = identity.model_dump(mode="json", include={"executor", "name", "sender", "sender_url"})
        print_json({**about, "capabilities": machine.model_dump(mode="json"), "endpoint": endpoint})
        return
    gpus = ", ".join(gpu.model for gpu in machine.gpus) or "none"
    click.secho(f"{identity.name}  {identity.executor}", bold=True)
    click.echo(f"  sender   {identity.sender_url}")
    click.echo(f"  reached  {endpoint.get('public_url') or 'asks for work itself'}")
    click.echo(f"  machine  {machine.cpu_count} CPUs, {machine.memory_bytes / 1024**3:.0f} GiB, GPUs: {gpus}")
    click.echo(f"  python   {machine.python}, torch {machine.torch or 'not installed'}")
    next_step("trainforge executor start")
