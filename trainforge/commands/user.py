"""`trainforge user`: the accounts of the sender's people."""

from __future__ import annotations

import sys
from typing import Any

import click

from trainforge.commands.common import age, json_option, next_step, print_json, say, table

ROLES = click.Choice(["viewer", "operator", "admin"])  # views.ROLES, without its imports at start-up
role_option = click.option(
    "--role", type=ROLES, required=True, help="viewer: sees; operator: runs jobs too; admin: everything."
)


@click.group()
def user() -> None:
    """Say who may use the sender: viewers see, operators run jobs, admins do everything."""


@user.command()
@click.argument("name")
@role_option
@click.option("--password", "ask", is_flag=True, help="Ask for a password here instead of printing a link.")
@json_option
def add(name: str, role: str, ask: bool, as_json: bool) -> None:
    """Make an account; prints a link, for one use within a day, with which NAME sets a password.

    With --password it is asked for, or read from standard input; never pass it as an argument.
    """
    from trainforge.client import Client

    password = ask_password("Password", again=True) if ask else None
    with Client.configured() as client:
        answer = client.add_user(name, role, password)
    if as_json:
        print_json(answer)
        return
    click.echo(f"{answer['name']} is {answer['role']} here now")
    if "url" in answer:
        _show_link(answer)


@user.command("list")
@json_option
def list_users(as_json: bool) -> None:
    """List the accounts."""
    from trainforge.client import Client

    with Client.configured() as client:
        views = client.users()
    if as_json:
        print_json({"users": [view.model_dump(mode="json") for view in views]})
        return
    rows = [(v.name, v.role, "password" if v.password else "link or token", age(v.seen)) for v in views]
    table(("NAME", "ROLE", "LOGS IN BY", "LAST LOGIN"), rows)


@user.command()
@click.argument("name")
@click.argument("new_role", metavar="ROLE", type=ROLES)
@json_option
def role(name: str, new_role: str, as_json: bool) -> None:
    """Make NAME a viewer, an operator or an admin; it counts from this moment on."""
    _told(name, "PATCH", "", as_json, f"is {new_role} now", role=new_role)


@user.command()
@click.argument("name")
@json_option
def remove(name: str, as_json: bool) -> None:
    """Remove an account; its sessions and tokens end at once."""
    _told(name, "DELETE", "", as_json, "is removed")


@user.command()
@click.argument("name", required=False)
@json_option
def password(name: str | None, as_json: bool) -> None:
    """Set a password: NAME's, or without a name that of this machine's account.

    It is asked for, or read from standard input. NAME is logged out everywhere.
    """
    from trainforge.client import Client

    with Client.configured() as client:
        me = client.me()
        own = name is None or name.lower() == me["name"]
        current = ask_password("Current password, if there is one", default="") if own else ""
        word = ask_password("New password", again=True)
        if own:
            answer = client.set_own_password(word, current)
        else:
            answer = client.change_user(str(name), "PUT", "password", password=word)
    if as_json:
        print_json(answer)
        return
    click.echo(f"{answer['name']} has a new password")


@user.command()
@click.argument("name")
@json_option
def link(name: str, as_json: bool) -> None:
    """Print a link that logs NAME in once, within a day, and lets them set a password."""
    from trainforge.client import Client

    with Client.configured() as client:
        answer = client.change_user(name, "POST", "link")
    if as_json:
        print_json(answer)
        return
    _show_link(answer)


@user.command()
@click.argument("name")
@json_option
def logout(name: str, as_json: bool) -> None:
    """Log NAME out of every browser."""
    _told(name, "POST", "logout", as_json, "is logged out everywhere")


def _told(name: str, method: str, part: str, as_json: bool, done: str, **body: str) -> None:
    from trainforge.client import Client

    with Client.configured() as client:
        answer: dict[str, Any] = client.change_user(name, method, part, **body)
    if as_json:
        print_json(answer)
        return
    click.echo(f"{answer['name']} {done}")
    next_step("trainforge user list")


def _show_link(answer: dict[str, Any]) -> None:
    click.echo(answer["url"])
    say("  it logs one browser in, once, within a day; send it where nobody else reads")


def ask_password(words: str, *, again: bool = False, default: str | None = None) -> str:
    """From the terminal without showing it, else one line of standard input."""
    if sys.stdin.isatty():
        text: str = click.prompt(
            words,
            hide_input=True,
            confirmation_prompt=again,
            default=default,
            show_default=False,
            err=True,
        )
        return text
    return sys.stdin.readline().rstrip("\r\n")
