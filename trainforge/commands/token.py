"""`trainforge token`: access tokens for scripts and for other machines' commands."""

from __future__ import annotations

import time

import click

from trainforge.commands.common import age, json_option, next_step, print_json, say, table


@click.group()
def token() -> None:
    """Give scripts and other machines access, with a role of their own and for as long as they need it."""


@token.command()
@click.argument("name")
@click.option(
    "--role", type=click.Choice(["viewer", "operator", "admin"]), help="At most your own.  [default: yours]"
)
@click.option(
    "--days", type=click.FloatRange(0, 3650, min_open=True), help="Until it expires.  [default: never]"
)
@click.option("--user", default="", help="The account that it shall belong to, if not yours; for admins.")
@json_option
def create(name: str, role: str | None, days: float | None, user: str, as_json: bool) -> None:
    """Make a token and print it, this once. NAME says what it is for."""
    from trainforge.client import Client

    asked = {"name": name, "role": role, "days": days, "user": user or None}
    with Client.configured() as client:
        answer = client.add_token({key: value for key, value in asked.items() if value is not None})
    if as_json:
        print_json(answer)
        return
    click.echo(answer["token"])
    say("  this is the only time that it is shown")
    next_step("trainforge token list")


@token.command("list")
@json_option
def list_tokens(as_json: bool) -> None:
    """List your tokens; an admin sees everybody's."""
    from trainforge.client import Client

    with Client.configured() as client:
        views = client.tokens()
    if as_json:
        print_json({"tokens": [view.model_dump(mode="json") for view in views]})
        return
    rows = [(str(v.id), v.name, v.role, v.user, age(v.created), _end(v.expires)) for v in views]
    table(("ID", "NAME", "ROLE", "WHOSE", "MADE", "EXPIRES"), rows)


@token.command()
@click.argument("number", metavar="ID", type=int)
@json_option
def revoke(number: int, as_json: bool) -> None:
    """End a token; what uses it is refused from this moment on."""
    from trainforge.client import Client

    with Client.configured() as client:
        answer = client.revoke_token(number)
    if as_json:
        print_json(answer)
        return
    click.echo(f"token {number} is revoked")


def _end(expires: float | None) -> str:
    if expires is None:
        return "never"
    left = expires - time.time()
    return (
        f"in {left / 86400:.0f} d" if left > 86400 else f"in {left / 3600:.0f} h" if left > 0 else "expired"
    )
