"""`trainforge github`: have GitHub tell the sender of pushes, and the sender tell GitHub of jobs."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING

import click

from trainforge.commands.common import age, json_option, next_step, print_json, say, table

if TYPE_CHECKING:
    from trainforge.client import Client
    from trainforge.config.views import GitHubReport

APP_WAIT_S = 900.0
LOOK_EVERY_S = 1.0
TOKEN_VARIABLE = "TRAINFORGE_GITHUB_TOKEN"  # noqa: S105 - a name
API_HELP = "Where the API is, for a GitHub Enterprise Server: https://HOST/api/v3."


@click.group()
def github() -> None:
    """Connect repositories of GitHub, and find out what a connection lacks."""


@github.command()
@click.argument("repository", metavar="OWNER/REPO")
@click.option("--app", "by_app", is_flag=True, help="As a GitHub App, which is made on the way if need be.")
@click.option("--organization", default="", metavar="NAME", help="Whose App it becomes.  [default: yours]")
@click.option("--token", "new_token", is_flag=True, help="Give a new token where there is one already.")
@click.option("--api-url", default="", metavar="URL", help=API_HELP)
@click.option("--name", default="", help="What the repository is called here.  [default: its own name]")
@click.option("--no-webhook", is_flag=True, help="Find pushes by polling alone.")
@json_option
def connect(
    *, repository: str, by_app: bool, organization: str, new_token: bool, api_url: str, name: str,
    no_webhook: bool, as_json: bool,
) -> None:  # fmt: skip
    """Connect a repository: watch it, set up its webhook, and see GitHub's ping arrive.

    By a fine-grained personal access token, asked for or read from standard input or from the variable
    TRAINFORGE_GITHUB_TOKEN, which needs, for this one repository: Contents, Webhooks, Commit statuses and
    Pull requests, each read and write. Or with --app as a GitHub App, whose tokens are made for each need and
    given back. Connecting again sets a new secret for the webhook.
    """
    from trainforge.client import Client

    ask: dict[str, object] = {"repository": repository, "name": name, "hook": not no_webhook}
    ask |= {"api_url": api_url} if api_url else {}
    with Client.configured() as client:
        if by_app:
            report = _by_app(client, ask, organization, api_url)
        else:
            known = any(one.full_name.lower() == repository.lower() for one in client.github_connections())
            if new_token or not known:
                ask["token"] = _token()
            report = client.connect_github(ask)
    _show(report, as_json=as_json)


def _token() -> str:
    from trainforge.config.errors import SettingsError

    if given := os.environ.get(TOKEN_VARIABLE, ""):
        return given
    if sys.stdin.isatty():
        value: str = click.prompt("GitHub token", hide_input=True)
        return value.strip()
    if given := sys.stdin.read().strip():
        return given
    hint = f"give it on standard input or in {TOKEN_VARIABLE}, or connect by a GitHub App: --app"
    raise SettingsError("no GitHub token was given", hint=hint)


def _by_app(client: Client, ask: dict[str, object], organization: str, api_url: str) -> GitHubReport:
    """With the newest App of that GitHub, or one that somebody makes now in a browser."""
    from trainforge.config.errors import NotFound

    wanted = (api_url or "https://api.github.com").rstrip("/")
    apps = {app.id: app for app in client.github_apps() if app.api_url == wanted}
    deadline = time.monotonic() + APP_WAIT_S
    if not apps:
        begun = client.begin_github_app({"organization": organization, "api_url": wanted})
        say(f"Open this in a browser to make the App: {begun['url']}")
        while not (apps := {app.id: app for app in client.github_apps() if app.api_url == wanted}):
            _rest(deadline, "no App was made")
    app = apps[max(apps)]
    told = False
    while True:
        try:
            return client.connect_github(ask | {"app": app.id})
        except NotFound:
            if not told:
                say(f"Install the App {app.slug} at {ask['repository']}: {app.install_url}")
                told = True
            _rest(deadline, f"the App was not installed at {ask['repository']}")


def _rest(deadline: float, what: str) -> None:
    from trainforge.config.errors import TrainForgeError

    if time.monotonic() > deadline:
        hint = "the same command goes on from here"
        raise TrainForgeError(f"{what} within {APP_WAIT_S / 60:.0f} minutes", hint=hint)
    time.sleep(LOOK_EVERY_S)


@github.command()
@click.argument("repository", required=False, metavar="[OWNER/REPO]")
@json_option
def check(repository: str | None, as_json: bool) -> None:
    """Find out what a connection lacks: permissions, webhook, deliveries and their answers, rate limit."""
    from trainforge.client import Client

    with Client.configured() as client:
        names = [repository] if repository else [one.full_name for one in client.github_connections()]
        reports = [client.check_github(name) for name in names]
    if as_json:
        print_json({"reports": [report.model_dump(mode="json") for report in reports]})
    for report in reports if not as_json else ():
        _lines(report)
    if not reports and not as_json:
        say("no repository is connected to GitHub")
        next_step("trainforge github connect OWNER/REPO")
    if not all(report.ok for report in reports):
        sys.exit(1)


@github.command("list")
@json_option
def list_connections(as_json: bool) -> None:
    """List the repositories that are connected."""
    from trainforge.client import Client

    with Client.configured() as client:
        connections = client.github_connections()
    if as_json:
        print_json({"connections": [one.model_dump(mode="json") for one in connections]})
        return
    rows = [
        (
            one.full_name, one.repository, one.app or "token", "webhook" if one.webhook else "polling",
            age(one.delivered), one.problem or "-",
        )
        for one in connections
    ]  # fmt: skip
    table(("AT GITHUB", "HERE", "BY", "PUSHES BY", "LAST DELIVERY", "PROBLEM"), rows)
    if not connections:
        next_step("trainforge github connect OWNER/REPO")


@github.command()
@click.argument("repository", metavar="OWNER/REPO")
@json_option
def disconnect(repository: str, as_json: bool) -> None:
    """Forget a connection and its token, and remove its webhook; the repository stays watched."""
    from trainforge.client import Client

    with Client.configured() as client:
        view = client.disconnect_github(repository)
    if as_json:
        print_json(view.model_dump(mode="json"))
        return
    click.echo(f"{view.full_name} is disconnected, and found by polling from now on")
    if view.problem:
        say(f"note: {view.problem}")


def _show(report: GitHubReport, *, as_json: bool) -> None:
    if as_json:
        print_json(report.model_dump(mode="json"))
    else:
        _lines(report)
        next_step("git push" if report.ok else f"trainforge github check {report.connection.full_name}")
    if not report.ok:
        sys.exit(1)


def _lines(report: GitHubReport) -> None:
    one = report.connection
    click.secho(f"{one.full_name} as {one.repository}", bold=True)
    for finding in report.findings:
        word, colour = ("ok", "green") if finding.ok else ("missing", "red")
        click.echo(f"  {click.style(word.ljust(7), fg=colour)}  {finding.what}: {finding.says}")
        if finding.hint and not finding.ok:
            click.echo(f"           {finding.hint}")
