"""`trainforge git-credential`: git asks, the stored token answers, for the sender's address alone.

The token stays in the client's own file: no remote URL and no git configuration ever holds it.
"""

from __future__ import annotations

import sys

import click


@click.command("git-credential", hidden=True)
@click.argument("operation", type=click.Choice(["get", "store", "erase"]))
def git_credential(operation: str) -> None:
    """Answer git's question for a password of the sender (see gitcredentials(7))."""
    question = dict(line.rstrip("\n").split("=", 1) for line in sys.stdin if "=" in line)
    if operation != "get":
        return
    from trainforge.config.settings import load_client
    from trainforge.project import CREDENTIAL_USER, same_server

    settings = load_client()
    asked = f"{question.get('protocol', '')}://{question.get('host', '')}"
    if settings.sender_url and same_server(asked, settings.sender_url):
        click.echo(f"username={CREDENTIAL_USER}")
        click.echo(f"password={settings.token.get_secret_value()}")
