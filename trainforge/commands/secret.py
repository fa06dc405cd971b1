"""`trainforge secret`: values that jobs see as variables; they go to the sender and never come back."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from trainforge.commands.common import age, json_option, next_step, print_json, say, table

if TYPE_CHECKING:
    from trainforge.client import Client


@click.group()
def secret() -> None:
    """Keep values that jobs see as variables and nobody reads again."""


@secret.command("set")
@click.argument("name")
@click.option(
    "--repository",
    default="",
    metavar="NAME",
    help="Whose jobs get it; may be left out where the sender knows one repository alone. One that the "
    "built-in server has yet to get is named builtin:NAME.",
)
@click.option(
    "--branch",
    "branches",
    multiple=True,
    metavar="GLOB",
    help="Jobs of which branches get it; repeatable.  [default: the repository's default branch]",
)
@json_option
def set_secret(name: str, repository: str, branches: tuple[str, ...], as_json: bool) -> None:
    """Set or replace a secret; its value is asked for, or read from standard input.

    A job gets it as a variable when its manifest names it under `secrets`.
    """
    from trainforge.client import Client

    with Client.configured() as client:
        repository = repository or _only_repository(client)
        answer = client.set_secret(name, repository, _value(name), branches)
    if as_json:
        print_json(answer)
        return
    click.echo(f"{name} is set for {_for_whom(answer['repository'], answer['branches'])}")
    for remark in answer.get("remarks", []):
        say(f"note: {remark}")
    say(f"  its value cannot be shown again; a manifest asks for it with `secrets: [{name}]`")


def _value(name: str) -> str:
    """From a prompt that shows nothing; from standard input as it is, but for the last line end."""
    if sys.stdin.isatty():
        value: str = click.prompt(f"Value of {name}", hide_input=True, confirmation_prompt="Once more")
        return value
    return sys.stdin.read().removesuffix("\n").removesuffix("\r")


def _only_repository(client: Client) -> str:
    from trainforge.config.errors import NotFound

    names = [repository.name for repository in client.repositories()]
    if len(names) == 1:
        return names[0]
    known = f"the sender knows {', '.join(sorted(names))}" if names else "the sender knows no repository yet"
    raise NotFound(f"whose secret it is has to be said: {known}", hint="name one with --repository")


def _for_whom(repository: str, branches: list[str]) -> str:
    return f"{', '.join(branches) or 'the default branch'} of {repository}"


@secret.command("list")
@click.option("--repository", default="", metavar="NAME", help="Only this repository's.")
@json_option
def list_secrets(repository: str, as_json: bool) -> None:
    """List names of secrets, whose they are, and who set them when; never a value."""
    from trainforge.client import Client

    with Client.configured() as client:
        secrets = client.secrets(repository)
    if as_json:
        print_json({"secrets": [one.model_dump(mode="json") for one in secrets]})
        return
    rows = [
        (one.name, one.repository, ", ".join(one.branches) or "default", age(one.changed), one.by)
        for one in secrets
    ]
    table(("SECRET", "REPOSITORY", "BRANCHES", "SET", "BY"), rows)
    if not secrets:
        next_step("trainforge secret set NAME")


@secret.command()
@click.argument("name")
@click.option(
    "--repository", default="", metavar="NAME", help="Whose it is; may be left out where there is one alone."
)
@json_option
def remove(name: str, repository: str, as_json: bool) -> None:
    """Remove a secret; jobs that still name it fail before they train."""
    from trainforge.client import Client

    with Client.configured() as client:
        answer = client.remove_secret(name, repository or _only_repository(client))
    if as_json:
        print_json(answer)
        return
    click.echo(f"{name} of {answer['repository']} is removed")


@secret.command("rotate-key")
@json_option
def rotate_key(as_json: bool) -> None:
    """Have the sender encrypt all secrets with a new key and forget the old one."""
    from trainforge.client import Client

    with Client.configured() as client:
        answer = client.rotate_secrets_key()
    if as_json:
        print_json(answer)
        return
    click.echo(f"{answer['secrets']} secret(s) are encrypted with a new key; the old one is gone")
