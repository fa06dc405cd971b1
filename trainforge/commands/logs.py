"""`trainforge logs`: what a job's processes printed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import click

from trainforge.commands.common import choose_job, job_argument, json_option, next_step, print_json

if TYPE_CHECKING:
    from trainforge.client import Client
    from trainforge.config.views import JobDetail, LogLine

PAGE = 1000
COLOURS = ("cyan", "magenta", "yellow", "green", "blue")


@click.command()
@job_argument
@click.option("--follow", "-f", is_flag=True, help="Go on until the job has ended.")
@click.option("--rank", type=int, help="Only this process's lines (-1: the machines' own).")
@json_option
def logs(job: str | None, follow: bool, rank: int | None, as_json: bool) -> None:
    """Print a job's output; without JOB the newest job's.

    Where several processes printed, each line starts with the rank of its process. With --json each line is
    a JSON object.
    """
    from trainforge.client import Client

    with Client.configured() as client:
        detail = client.job(choose_job(client, job))
        lines = client.follow_logs(detail.id, rank=rank) if follow else stored(client, detail.id, rank)
        prefixed = rank is None and trains_in_several(detail)
        count = show_lines(lines, prefixed=prefixed, as_json=as_json)
        if as_json:
            return
        if not count and not follow:
            click.echo("nothing was printed yet", err=True)
        next_step(f"trainforge status {detail.id[:8]}")


def trains_in_several(detail: JobDetail) -> bool:
    """Whether more than one process prints."""
    return int(detail.plan.get("world_size") or detail.nodes) > 1


def stored(client: Client, job: str, rank: int | None) -> Iterable[LogLine]:
    """Every line there is now."""
    cursor = 0
    while True:
        lines, cursor, _ = client.logs(job, after=cursor, rank=rank, limit=PAGE)
        if not lines:
            return
        yield from lines


def show_lines(lines: Iterable[LogLine], *, prefixed: bool, as_json: bool) -> int:
    """Print lines as they come; how many there were."""
    count = 0
    for count, line in enumerate(lines, start=1):  # noqa: B007 - the last number is the answer
        if as_json:
            print_json(line.model_dump(mode="json"))
        else:
            click.echo(line_text(line, prefixed=prefixed))
    return count


def line_text(line: LogLine, *, prefixed: bool) -> str:
    """A line for a terminal: escapes that a training printed are not let through, but for colours' sake."""
    text = click.unstyle(line.text.rstrip("\n"))
    text = "".join(character if character >= " " or character == "\t" else "\ufffd" for character in text)
    if not prefixed:
        return text
    mark = f"[{line.rank}]" if line.rank >= 0 else f"[node {line.node}]"
    return click.style(mark, fg=COLOURS[line.rank % len(COLOURS)]) + " " + text
