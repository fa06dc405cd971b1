"""`trainforge hooks`: a script in a bare repository that tells the sender of pushes."""

from __future__ import annotations

from pathlib import Path

import click

from trainforge.commands.common import json_option, next_step, print_json


@click.group()
def hooks() -> None:
    """Let a bare git repository announce its pushes."""


@hooks.command()
@click.argument("path", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--sender", "sender_url", help="The sender's URL; by default the one this machine uses.")
@click.option(
    "--secret-file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    required=True,
    help="File with the sender's webhook_secret, readable by the repository's owner alone.",
)
@click.option("--repository", default="", help="The URL by which the sender watches it, if not its path.")
@json_option
def install(path: Path, sender_url: str | None, secret_file: Path, repository: str, as_json: bool) -> None:
    """Put a post-receive script into the bare repository at PATH.

    A push then prints what it started. An unreachable sender never blocks or fails a push.
    """
    from trainforge.config.errors import SettingsError
    from trainforge.config.settings import load_client
    from trainforge.hooks.scripts import install_post_receive

    url = sender_url or load_client().sender_url
    if not url:
        raise SettingsError("no sender is known on this machine", hint="name it with --sender URL")
    script = install_post_receive(path, url, secret_file.resolve(), repository=repository)
    if as_json:
        print_json({"script": str(script), "sender": url})
        return
    click.echo(f"{path} announces its pushes to {url}")
    next_step(f"trainforge sender watch {path}")
