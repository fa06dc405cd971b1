"""`trainforge login`: which sender this machine's commands speak to."""

from __future__ import annotations

import sys

import click

from trainforge.commands.common import json_option, next_step, print_json


@click.command()
@click.argument("url")
@json_option
def login(url: str, as_json: bool) -> None:
    """Use the sender at URL from this machine.

    Its token is asked for, or read from standard input; never pass it as an argument, where others see it.
    """
    from pydantic import SecretStr

    from trainforge.client import Client
    from trainforge.config.settings import ClientSettings, save_client

    if sys.stdin.isatty():
        token = click.prompt("Token (the sender printed it, tfp_...)", hide_input=True, err=True)
    else:
        token = sys.stdin.readline()
    settings = ClientSettings.load(sender_url=url, token=SecretStr(token.strip()))
    with Client(settings.sender_url, settings.token.get_secret_value()) as client:
        client.jobs(limit=1)  # refuses a wrong token here rather than later
    path = save_client(settings)
    if as_json:
        print_json({"sender": settings.sender_url, "stored": str(path)})
        return
    click.echo(f"commands on this machine now speak to {settings.sender_url}")
    next_step("trainforge status", "trainforge init")
