"""`trainforge audit`: who did what at the sender, and whether that was tampered with."""

from __future__ import annotations

import time
from typing import Any

import click

from trainforge.commands.common import json_option, next_step, print_json, say, table


@click.group()
def audit() -> None:
    """Show who did what at the sender, and whether anybody has changed that."""


@audit.command("list")
@click.option(
    "--limit", type=click.IntRange(1, 1000), default=50, help="How many of the newest.  [default: 50]"
)
@click.option("--before", type=click.IntRange(1), help="Only what is older than this row.")
@json_option
def list_entries(limit: int, before: int | None, as_json: bool) -> None:
    """List what was done, the newest first: by whom, what, to what."""
    from trainforge.client import Client

    with Client.configured() as client:
        entries = client.audit(limit=limit, before=before or 0)
    if as_json:
        print_json({"entries": [entry.model_dump(mode="json") for entry in entries]})
        return
    rows = [
        (
            str(entry.n),
            time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(entry.time)),
            entry.actor,
            entry.action,
            entry.subject[:30],
            _words(entry.detail),
        )
        for entry in entries
    ]
    table(("ROW", "TIME", "BY", "WHAT", "TO", "MORE"), rows)
    next_step("trainforge audit verify")


@audit.command()
@click.option(
    "--head", default="", help="What an earlier `audit verify` printed: nothing up to it has changed."
)
@json_option
def verify(head: str, as_json: bool) -> int:
    """Check that no row was changed, added in between, or removed; exits with 1 if one was.

    Keep the head that it prints somewhere else, and give it again later: then not even somebody who can
    write all of the sender's files can change what was before it.
    """
    from trainforge.client import Client

    with Client.configured() as client:
        verdict = client.verify_audit(head)
    if as_json:
        print_json(verdict.model_dump(mode="json"))
    else:
        for problem in verdict.problems:
            click.echo(click.style("✗ ", fg="red") + problem)
        if not verdict.problems:
            click.echo(f"all {verdict.rows} rows are as they were written")
        click.echo(f"head {verdict.head or '(none)'}")
        if verdict.problems:
            say("somebody has changed the sender's database, or an older copy of it was put in its place")
    return 1 if verdict.problems else 0


def _words(detail: dict[str, Any]) -> str:
    return "  ".join(f"{key}={value}" for key, value in detail.items() if value not in (None, "", False))
