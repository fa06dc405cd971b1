"""Looking at jobs and steering them: `status`, `stop`, `retry`, `events`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from trainforge.commands.common import (
    ENDED,
    age,
    choose_job,
    job_argument,
    json_option,
    metrics_text,
    next_step,
    one_line,
    print_json,
    say,
    state_text,
    table,
    waiting_words,
)

if TYPE_CHECKING:
    from trainforge.client import Client
    from trainforge.config.views import AttemptView, JobDetail, JobSummary

WATCH_EVERY_S = 1.0


@click.command()
@job_argument
@click.option(
    "--watch", "-w", is_flag=True, help="Go on until the job ends; its exit code is the job's outcome."
)
@click.option("--limit", default=20, show_default=True, help="How many jobs to list.")
@json_option
def status(job: str | None, watch: bool, limit: int, as_json: bool) -> int:
    """Show jobs, or one job in detail.

    JOB is a job's id or a beginning of it. Without one the newest jobs are listed (with --watch: the newest
    is watched).
    """
    from trainforge.client import Client

    with Client.configured() as client:
        if watch:
            return watch_job(client, choose_job(client, job), as_json=as_json)
        if job is None:
            _list(client.jobs(limit=limit), as_json=as_json)
            return 0
        detail = client.job(job)
        if as_json:
            print_json(detail.model_dump(mode="json"))
        else:
            show_job(detail)
            next_step(*following(detail))
    return 0


def following(detail: JobDetail) -> list[str]:
    """What a person would do next with a job in this state."""
    short = detail.id[:8]
    if detail.state == "completed":
        return [f"trainforge pull {short}"]
    if detail.code == "manifest_invalid":
        return [f"trainforge validate {detail.manifest_path}"]
    if detail.state in ENDED:
        return [f"trainforge logs {short}", f"trainforge retry {short}"]
    return [f"trainforge logs -f {short}", f"trainforge stop {short}"]


def watch_job(client: Client, job: str, *, as_json: bool = False) -> int:
    """Print what changes until the job has ended; 0 when it completed."""
    seen = ""
    while True:
        detail = client.job(job)
        line = _progress_line(detail)
        if line != seen:
            seen = line
            if as_json:
                print_json(detail.model_dump(mode="json"))
            else:
                click.echo(line)
        if detail.state in ENDED:
            if not as_json:
                next_step(*following(detail))
            return 0 if detail.state == "completed" else 1
        time.sleep(WATCH_EVERY_S)


def _progress_line(detail: JobDetail) -> str:
    parts = [detail.id[:8], state_text(detail.state)]
    if detail.progress is not None and detail.state == "running":
        parts.append(f"{detail.progress:.0%}")
    attempt = detail.attempts[-1] if detail.attempts else None
    if attempt and detail.state not in ENDED:
        parts += [f"{node.executor_name}:{node.phase or node.state}" for node in attempt.nodes]
    parts += waiting_words(detail.waiting)
    if detail.metrics:
        parts.append(metrics_text(detail.metrics))
    if detail.reason:
        parts.append(one_line(detail.reason))
    return "  ".join(parts)


def _list(jobs: list[JobSummary], *, as_json: bool) -> None:
    if as_json:
        print_json({"jobs": [job.model_dump(mode="json") for job in jobs]})
        return
    if not jobs:
        click.echo("no jobs yet")
        next_step("trainforge submit")
        return
    headings = ("JOB", "PROJECT", "STATE", "COMMIT", "NODES", "CREATED", "METRICS")
    rows = (
        (
            job.id[:8],
            titled(job),
            state_text(job.state),
            job.commit[:8],
            str(job.nodes),
            age(job.created),
            metrics_text(job.metrics) or job.reason or "; ".join(waiting_words(job.waiting)),
        )
        for job in jobs
    )
    table(headings, rows)
    next_step(f"trainforge status {jobs[0].id[:8]}")


def titled(job: JobSummary) -> str:
    """The project, and of a matrix the cell."""
    from trainforge.config.matrix import cell_name

    return f"{job.project} ({cell_name(job.cell)})" if job.cell else job.project


def show_job(detail: JobDetail) -> None:
    """One job on a screen."""
    from trainforge.config.reasons import REASONS

    click.secho(f"{titled(detail)}  {detail.id}", bold=True)
    facts = [
        ("state", state_text(detail.state) + (", publishing its result" if detail.ending else "")),
        ("commit", f"{detail.commit[:12]} on {detail.ref}  {detail.subject}".rstrip()),
        ("manifest", f"{detail.manifest_path} of {detail.repository}"),
        ("created", f"{age(detail.created)}, by {detail.source}"),
    ]
    if detail.started is not None:
        seconds = (detail.ended or time.time()) - detail.started
        facts.append(("ran" if detail.ended else "runs", f"{seconds:.0f} s, attempt {detail.attempt}"))
    if detail.rerun_of:
        facts.append(("repeats", detail.rerun_of))
    if detail.reason:
        facts.append(("reason", detail.reason + (f" ({detail.code})" if detail.code else "")))
    if detail.code in REASONS:
        facts.append(("next", REASONS[detail.code].hint))
    facts += [("waits" if name == "*" else f"waits for {name}", why) for name, why in detail.waiting.items()]
    if detail.metrics:
        facts.append(("metrics", metrics_text(detail.metrics)))
    facts += [("gate" if gate.passed else "missed gate", gate.words) for gate in detail.gates]
    if detail.result_commit:
        where = f"{detail.result_branch}:{detail.result_path}"
        gone = ", but result_missing: the remote does not have it any more" if detail.result_missing else ""
        facts.append(("result", f"{where} at {detail.result_commit[:12]}{gone}"))
    facts += [("note", notice) for notice in detail.notices]
    width = max(len(name) for name, _ in facts)
    for name, value in facts:
        click.echo(f"  {name:<{width}}  " + value.rstrip().replace("\n", "\n" + " " * (width + 4)))
    if detail.attempts:
        _show_nodes(detail.attempts[-1])


def _show_nodes(attempt: AttemptView) -> None:
    click.echo()
    rows = [
        (
            str(node.rank),
            node.executor_name or node.executor,
            state_text(node.state),
            node.phase or "",
            node.reason or node.detail,
        )
        for node in attempt.nodes
    ]
    table(("NODE", "EXECUTOR", "STATE", "PHASE", ""), rows)


@click.command()
@job_argument
@click.option("--reason", default="", help="Said in the job's result.")
@json_option
def stop(job: str | None, reason: str, as_json: bool) -> None:
    """Stop a job; what it has done so far is still published.

    JOB may be left out where just one job is under way.
    """
    from trainforge.client import Client

    with Client.configured() as client:
        detail = client.job(choose_job(client, job, unfinished=True))
        answer = client.stop(detail.id, reason)
        if as_json:
            print_json(answer)
            return
        click.echo(f"stopping {detail.id}")
        next_step(f"trainforge status {detail.id[:8]} --watch")


@click.command()
@job_argument
@click.option("--resume", is_flag=True, help="From its newest checkpoint, if it failed or was stopped.")
@json_option
def retry(job: str | None, resume: bool, as_json: bool) -> None:
    """Run a job again, as a new job that names the old one; without JOB the newest."""
    from trainforge.client import Client

    with Client.configured() as client:
        old = choose_job(client, job)
        new = client.resume(old) if resume else client.retry(old)
        if as_json:
            print_json(new.model_dump(mode="json"))
            return
        old = new.rerun_of or old
        click.echo(f"job {new.id} goes on from {old}" if resume else f"job {new.id} runs {old} again")
        next_step(*following(new))


@click.command()
@click.option("--repository", default="", help="Only this repository's.")
@click.option("--limit", default=20, show_default=True, help="How many events to list.")
@json_option
def events(repository: str, limit: int, as_json: bool) -> None:
    """Show what arrived, and what it led to: jobs, or the reason for none."""
    from trainforge.client import Client

    with Client.configured() as client:
        found = client.events(repository=repository, limit=limit)
    if as_json:
        print_json({"events": [event.model_dump(mode="json") for event in found]})
        return
    if not found:
        say("nothing has arrived yet")
        return
    rows = (
        (
            age(event.time),
            event.source,
            event.repository,
            event.ref.removeprefix("refs/heads/"),
            event.new[:8],
            event.decision,
            ", ".join(job[:8] for job in event.jobs) or event.reason,
        )
        for event in found
    )
    table(("WHEN", "SOURCE", "REPOSITORY", "REF", "COMMIT", "DECISION", "BECAUSE"), rows)
