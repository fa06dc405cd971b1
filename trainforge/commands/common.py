"""What the commands share: output for people and for programs, the next step, finding the job meant."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from trainforge.config.counters import measured
from trainforge.config.errors import ManifestError, NotFound, TrainForgeError

if TYPE_CHECKING:
    from trainforge.client import Client
    from trainforge.config.views import JobSummary

Function = TypeVar("Function", bound=Callable[..., Any])
ENDED = frozenset({"completed", "failed", "cancelled"})  # messages.OUTCOMES, without its imports at start-up
COLOURS = {"completed": "green", "failed": "red", "cancelled": "yellow", "running": "cyan", "online": "green"}


def json_option(function: Function) -> Function:
    """`--json`: one JSON document (for streams one a line) on stdout, and nothing else there."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")(function)


def set_option(function: Function) -> Function:
    """`--set KEY=VALUE`, repeatable: the manifest's keys changed for this once."""
    return click.option(
        "--set",
        "settings",
        multiple=True,
        metavar="KEY=VALUE",
        help="Set a key of the manifest for this job, such as training.params.epochs=3; repeatable.",
    )(function)


def executors_option(function: Function) -> Function:
    """`--executor` and `--exclude`, repeatable: the executors picked by hand."""
    only = click.option(
        "--executor", "executors", multiple=True, metavar="NAME", help="Only on this executor; repeatable."
    )
    without = click.option(
        "--exclude", "excluded", multiple=True, metavar="NAME", help="Not on this executor; repeatable."
    )
    return only(without(function))


def picked(executors: Sequence[str], excluded: Sequence[str]) -> list[str]:
    """As the API has it: with `!` before what is left out."""
    return [*executors, *(f"!{name}" for name in excluded)]


def job_argument(function: Function) -> Function:
    return click.argument("job", required=False)(function)


def print_json(data: Any) -> None:
    indent = 2 if sys.stdout.isatty() else None
    click.echo(json.dumps(data, indent=indent, ensure_ascii=False))


def next_step(*commands: str) -> None:
    """The commands that come next, on stderr so that a pipe gets the data alone."""
    for command in commands:
        click.secho(f"→ {command}", err=True, dim=True)


def say(text: str) -> None:
    """A remark for people beside the data."""
    click.echo(text, err=True)


def state_text(state: str) -> str:
    return click.style(state, fg=COLOURS.get(state))


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Columns as wide as their content; the last one may be of any length."""
    lines = [tuple(headings), *(tuple(map(one_line, row)) for row in rows)]
    widths = [max(len(click.unstyle(line[i])) for line in lines) for i in range(len(headings) - 1)]
    for number, line in enumerate(lines):
        cells = [
            cell + " " * (width - len(click.unstyle(cell))) for cell, width in zip(line, widths, strict=False)
        ]
        text = "  ".join([*cells, line[-1]]).rstrip()
        click.secho(text, bold=number == 0)


def one_line(text: str) -> str:
    """The first line of a text, and how many more it has."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    more = len(lines) - 1
    return "".join(lines[:1]) + (f" (and {more} more line{'' if more == 1 else 's'})" if more > 0 else "")


def waiting_words(waiting: dict[str, str]) -> list[str]:
    """Why a job waits: each reason once, after the names of the executors that it holds for."""
    names: dict[str, list[str]] = {}
    for name, why in waiting.items():
        names.setdefault(one_line(why), []).append(name)
    return [why if held == ["*"] else f"{', '.join(held)}: {why}" for why, held in names.items()]


def age(moment: float | None, now: float | None = None) -> str:
    """How long ago, in one unit: `3 min ago`."""
    if moment is None:
        return "never"
    seconds = max(0.0, (now or time.time()) - moment)
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def number_text(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def metrics_text(metrics: dict[str, Any]) -> str:
    shown = [f"{name}={number_text(value)}" for name, value in measured(metrics).items()]
    return "  ".join(shown)


def choose_job(client: Client, given: str | None, *, unfinished: bool = False) -> str:
    """The id of the job meant: by its prefix, or the newest; with `unfinished` the only one under way.

    Raises:
        NotFound: there is none. TrainForgeError: several are under way and none was named.
    """
    if given:
        return given
    jobs: list[JobSummary] = client.jobs(limit=100 if unfinished else 1)
    if unfinished:
        jobs = [job for job in jobs if job.state not in ENDED]
        if len(jobs) > 1:
            names = ", ".join(job.id[:8] for job in jobs)
            raise TrainForgeError(f"several jobs are under way: {names}", hint="say which one")
    if not jobs:
        if unfinished:
            raise NotFound("no job is under way", hint="`trainforge status` lists the newest")
        raise NotFound("there are no jobs yet", hint="`trainforge submit` in a project makes one")
    return jobs[0].id


# --- errors -------------------------------------------------------------------------------------------


def error_document(error: TrainForgeError) -> dict[str, Any]:
    """The same members as the API's problem documents."""
    document: dict[str, Any] = {"code": error.code, "detail": error.message, "hint": error.hint}
    if error.place is not None:
        document["place"] = str(error.place)
    if isinstance(error, ManifestError):
        document["problems"] = [error_document(problem) for problem in error.problems]
    return document


def show_error(error: TrainForgeError, *, as_json: bool) -> None:
    """Print a refusal: every problem with its place, and what to do next."""
    if as_json:
        print_json({"error": error_document(error)})
        return
    from trainforge.config.discreet import hide_tokens

    problems = error.problems if isinstance(error, ManifestError) else [error]
    for problem in problems:
        where = f"{problem.place}: " if problem.place else ""
        message = where + hide_tokens(problem.message)
        click.echo(click.style("error: ", fg="red", bold=True) + message, err=True)
        if problem.hint:
            click.echo(f"  {problem.hint}", err=True)
