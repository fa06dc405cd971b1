"""`trainforge logs`: what a job's processes printed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import click

from trainforge.commands.common import (
    ENDED,
    choose_job,
    job_argument,
    json_option,
    next_step,
    print_json,
    say,
    waiting_words,
)

if TYPE_CHECKING:
    from trainforge.client import Client
    from trainforge.config.views import JobDetail, JobSummary, LogLine

PAGE = 1000
LOOK_S, FOLLOW_S = 2.0, 20.0  # how long to wait for lines while the job waits, and while it runs
COLOURS = ("cyan", "magenta", "yellow", "green", "blue")


@click.command()
@job_argument
@click.option("--follow", "-f", is_flag=True, help="Go on until the job ends; exit code 0 if it completed.")
@click.option("--rank", type=int, help="Only this process's lines (-1: the machines' own).")
@json_option
def logs(job: str | None, follow: bool, rank: int | None, as_json: bool) -> int:
    """Print a job's output; without JOB the newest job's.

    Where several processes printed, each line starts with the rank of its process. With --json each line is
    a JSON object. While a followed job waits, standard error says why, and in the end what became of it.
    """
    from trainforge.client import Client

    with Client.configured() as client:
        detail = client.job(choose_job(client, job))
        lines = follow_lines(client, detail, rank) if follow else stored(client, detail.id, rank)
        prefixed = rank is None and trains_in_several(detail)
        if prefixed and not follow:  # the machines' journals arrive one after the other
            lines = sorted(lines, key=lambda line: (line.attempt, line.time))
        count = show_lines(lines, prefixed=prefixed, as_json=as_json)
        if follow:
            detail = client.job(detail.id)
    if detail.state in ENDED and (follow or not count):
        say_outcome(detail, printed=bool(count))
    elif not count and not as_json:
        _say_waiting(detail)
        say("nothing was printed yet")
    if not as_json:
        next_step(f"trainforge status {detail.id[:8]}")
    return 0 if not follow or detail.state == "completed" else 1


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


def follow_lines(client: Client, job: JobSummary, rank: int | None = None) -> Iterator[LogLine]:
    """Every line up to the job's end, as it comes; while there is none, why the job waits, on stderr."""
    after, said = 0, ""
    while True:
        running = job.state == "running" and not job.waiting
        wait = FOLLOW_S if running else LOOK_S
        lines, after, ended = client.logs(job.id, after=after, rank=rank, wait=wait)
        yield from lines
        if lines:
            continue
        if ended:
            return
        job = detail = client.job(job.id)
        told = "; ".join(waiting_words(detail.waiting))
        if told != said:
            _say_waiting(detail)
            said = told


def _say_waiting(detail: JobDetail) -> None:
    """Why a job waits, an executor a line; or where it begins, now that it waits no more."""
    short = detail.id[:8]
    if detail.waiting:
        say(f"job {short} waits:")
        for words in waiting_words(detail.waiting):
            say(f"  {words}")
    elif detail.attempts:
        names = ", ".join(node.executor_name for node in detail.attempts[-1].nodes)
        say(f"job {short} goes to {names}")


def say_outcome(detail: JobDetail, *, printed: bool) -> None:
    """What became of a job, and why, on stderr."""
    silent = "" if printed else " without printing anything"
    why = f": {detail.reason.rstrip()} ({detail.code})" if detail.reason else ""
    say(f"job {detail.id[:8]} {detail.state}{silent}{why}")


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
