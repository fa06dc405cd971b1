"""`trainforge ci`: what the GitHub Action runs."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from trainforge.ci import Asked
    from trainforge.runner import Runner


@click.command()
@click.option(
    "--mode",
    type=click.Choice(["run", "plan", "direct"]),
    default="run",
    show_default=True,
    envvar="TRAINFORGE_CI_MODE",
    help="Train the commit, say where it would train, or train it without a sender.",
)
@click.option("--sender-url", default="", envvar="TRAINFORGE_CI_SENDER_URL", help="The sender's address.")
@click.option(
    "--manifest",
    default="trainforge.yaml",
    show_default=True,
    envvar="TRAINFORGE_CI_MANIFEST",
    help="The manifest's path in the repository.",
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    envvar="TRAINFORGE_CI_SET",
    help="Set a key of the manifest for this job; repeatable, in the variable one word each.",
)
@click.option(
    "--executor",
    "executors",
    multiple=True,
    metavar="NAME",
    envvar="TRAINFORGE_CI_EXECUTORS",
    help="Only on this executor, or not on it with ! before its name; repeatable.",
)
@click.option(
    "--wait/--no-wait",
    default=True,
    show_default=True,
    envvar="TRAINFORGE_CI_WAIT",
    help="Stay until the job has ended; its outcome is the exit code.",
)
@click.option(
    "--timeout",
    default="6h",
    show_default=True,
    envvar="TRAINFORGE_CI_TIMEOUT",
    help="For how long to stay, such as 90m.",
)
@click.option(
    "--stop/--no-stop",
    default=True,
    show_default=True,
    envvar="TRAINFORGE_CI_STOP",
    help="Stop the job when the workflow run is cancelled, or its time is up.",
)
@click.option(
    "--allow-private/--no-allow-private",
    default=False,
    show_default=True,
    envvar="TRAINFORGE_CI_ALLOW_PRIVATE",
    help="Of mode direct: go to executors in private networks, too.",
)
def ci(  # noqa: PLR0917 - click passes by name
    mode: str,
    sender_url: str,
    manifest: str,
    settings: tuple[str, ...],
    executors: tuple[str, ...],
    wait: bool,
    timeout: str,
    stop: bool,
    allow_private: bool,
) -> int:
    """Train from a workflow of GitHub Actions: what the action `train` runs.

    The workflow run proves itself to the sender by the token that GitHub gives it.
    """
    from trainforge import project
    from trainforge.ci import Asked, annotate
    from trainforge.config.errors import TrainForgeError
    from trainforge.runner import Runner

    runner = Runner()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a cancelled run is told by either
    try:
        asked = Asked(
            manifest=manifest,
            overrides=project.overrides(None, settings),
            executors=list(executors),
            wait=wait,
            timeout=read_seconds(timeout),
            stop=stop,
        )
        return _begin(mode, sender_url, asked, runner, allow_private=allow_private)
    except TrainForgeError as error:
        annotate(runner, error, manifest)  # and nothing besides: a runner reads both streams for commands
        return error.exit_code


def read_seconds(text: str) -> float:
    """Raises SettingsError."""
    from trainforge.config.errors import SettingsError
    from trainforge.config.settings_load import seconds

    try:
        value: Any = seconds(text)
        if float(value) > 0:
            return float(value)
    except (TypeError, ValueError):
        pass
    raise SettingsError(f"timeout: {text!r} is not a time", hint="such as 90m or 6h")


def _begin(mode: str, sender_url: str, asked: Asked, runner: Runner, *, allow_private: bool) -> int:
    from trainforge import ci as action
    from trainforge.config.errors import SettingsError

    if mode == "direct":
        from trainforge.direct import from_workflow

        return from_workflow(runner, asked, allow_private=allow_private)
    if not sender_url:
        raise SettingsError(
            f"mode: {mode} needs sender-url", hint="the sender's public_url, or `mode: direct`"
        )
    client = action.RunClient(sender_url, runner)
    with client:
        return (action.plan if mode == "plan" else action.run)(client, runner, asked)
