"""`trainforge sender`: run it, invite executors, name repositories to watch, look at its state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from trainforge.commands.common import (
    age,
    json_option,
    next_step,
    print_json,
    say,
    state_text,
    table,
)


@click.group()
def sender() -> None:
    """Run the sender, which turns pushes into jobs."""


@sender.command()
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    help="Settings file; default sender.yaml in the configuration folder.",
)
@click.option("--data-dir", type=click.Path(path_type=Path), help="Where its database and repositories lie.")
@click.option("--host", help="Address to listen on; 0.0.0.0 for all.  [default: 127.0.0.1]")
@click.option("--port", type=click.IntRange(0, 65535), help="Port; 0 takes a free one.  [default: 8420]")
@click.option("--public-url", help="Where others reach it, if not at host and port.")
@click.option("--login-link", is_flag=True, help="Print a link for the first admin, passwords or not.")
def start(config: Path | None, login_link: bool, **options: Any) -> None:
    """Run the sender in the foreground until Ctrl-C; safe to kill and start again at any time.

    Every setting can be given in the file or as TRAINFORGE_SENDER_... too. At its first start it makes a
    token for this machine's commands and prints a link to log in to its pages.
    """
    from trainforge.config.settings import SenderSettings
    from trainforge.sender.app import run_sender

    settings = SenderSettings.load(settings_file(config, "sender.yaml"), **given(options))
    run_sender(settings, login_link=login_link)


def settings_file(named: Path | None, usual: str) -> Path | None:
    """The settings file: the one named, else the usual one if it exists."""
    if named is not None:
        return named
    from trainforge.config.settings_load import config_home

    path = config_home() / usual
    return path if path.is_file() else None


def given(options: dict[str, Any]) -> dict[str, Any]:
    """Only what was said on the command line, so that file and environment count for the rest."""
    return {name: value for name, value in options.items() if value is not None}


@sender.command()
@click.option("--approval", is_flag=True, help="It gets no work before `trainforge executor approve`.")
@click.option("--ephemeral", is_flag=True, help="For a visitor, forgotten when it has gone.")
@click.option("--jobs", type=click.IntRange(1), help="How many jobs it may have at all.")
@json_option
def token(approval: bool, ephemeral: bool, jobs: int | None, as_json: bool) -> None:
    """Print the command that joins one executor; its token works once, within 15 minutes."""
    from trainforge.client import Client

    with Client.configured() as client:
        invitation = client.join_token(approval=approval, ephemeral=ephemeral, max_jobs=jobs)
        if as_json:
            print_json(invitation)
            return
        click.echo(
            invitation.get("command") or f"trainforge executor join {client.url} {invitation['token']}"
        )
    say("  run it on the machine that is to train; it works once, within 15 minutes")
    next_step("trainforge executor approve NAME" if approval else "trainforge executor start")


@sender.command("rotate-key")
@click.option(
    "--withdraw", is_flag=True, help="The old key counts no more: every executor has to join again."
)
@json_option
def rotate_key(withdraw: bool, as_json: bool) -> None:
    """Give the sender a new signing key, which the old one introduces to the executors.

    Both are good for a while (key_overlap, a week); an executor that is not heard of in that time has to
    join again. Where the old key may have been stolen, use --withdraw.
    """
    from trainforge.client import Client

    with Client.configured() as client:
        answer = client.rotate_key(withdraw=withdraw)
    if as_json:
        print_json(answer)
        return
    click.echo(f"the sender's key is {answer['fingerprint']} now")
    if withdraw:
        say("  no executor trusts it yet: let each join again")
        next_step("trainforge sender token")


@sender.command()
@click.argument("url")
@click.option("--name", default="", help="What to call it; by default the last part of the URL.")
@click.option("--take-over", is_flag=True, help="Even where another sender does: it only reads from then on.")
@json_option
def watch(url: str, name: str, take_over: bool, as_json: bool) -> None:
    """Watch a git repository for pushes: any URL that git understands, or a local path."""
    from trainforge.client import Client

    if Path(url).exists():
        url = str(Path(url).resolve())
    with Client.configured() as client:
        answer = client.watch(url, name, take_over=take_over)
    if as_json:
        print_json(answer)
        return
    click.echo(f"watching {answer.get('url', url)} as {answer.get('name', name)}")
    next_step("trainforge events", "trainforge sender status")


@sender.command()
@json_option
def status(as_json: bool) -> None:
    """Show the sender, its executors and the repositories it watches."""
    from trainforge.client import Client

    with Client.configured() as client:
        health, repositories = client.health(), client.repositories()
        executors = [one for one in client.executors() if one.status != "revoked"]
        url = client.url
    if as_json:
        data = {
            "url": url,
            "health": health,
            "executors": [executor.model_dump(mode="json") for executor in executors],
            "repositories": [repository.model_dump(mode="json") for repository in repositories],
        }
        print_json(data)
        return
    click.echo(f"sender at {url}: {health.get('status', 'ok')}, version {health.get('version', '?')}\n")
    rows = [
        (
            executor.name,
            state_text(executor.status),
            age(executor.last_seen),
            str(executor.capabilities.cpu_count),
            str(len(executor.capabilities.gpus)),
            ", ".join(job[:8] for job in executor.jobs),
        )
        for executor in executors
    ]
    table(("EXECUTOR", "STATUS", "SEEN", "CPUS", "GPUS", "JOBS"), rows)
    if repositories:
        click.echo()
        table(
            ("REPOSITORY", "KIND", "CHECKED", "URL"),
            [
                (r.name, r.kind, age(r.checked), r.url + (f"  {r.error}" if r.error else ""))
                for r in repositories
            ],
        )
    if not executors:
        next_step("trainforge sender token")
