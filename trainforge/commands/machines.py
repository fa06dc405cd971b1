"""`trainforge executor list, add, show, drain, undrain, remove`: the executors as their sender sees them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

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

if TYPE_CHECKING:
    from trainforge.config.views import ExecutorView

GIB = 2**30
LONG_POLL_S = 20.0


@click.command("list")
@json_option
def list_executors(as_json: bool) -> None:
    """List the sender's executors, and those that are expected but have not joined (`pending`)."""
    from trainforge.client import Client

    with Client.configured() as client:
        views = [view for view in client.executors() if view.status != "revoked"]
        pending = [one for one in client.machines() if one["pending"]]
    if as_json:
        print_json({"executors": [view.model_dump(mode="json") for view in views], "pending": pending})
        return
    rows = [
        (
            view.name,
            state_text(view.status),
            age(view.last_seen),
            str(view.capabilities.cpu_count),
            str(len(view.capabilities.gpus)),
            f"{len(view.jobs)}/{view.capabilities.max_jobs}",
            ", ".join(job[:8] for job in view.jobs),
        )
        for view in views
    ]
    rows += [(one["name"], state_text("pending"), "never", "", "", "", "") for one in pending]
    table(("EXECUTOR", "STATUS", "SEEN", "CPUS", "GPUS", "USED", "JOBS"), rows)
    next_step("trainforge executor show NAME" if views else "trainforge sender token")


@click.command()
@click.argument("name")
@click.option("--host", default="", help="Its address, to find it by.  [default: NAME]")
@click.option("--wait", is_flag=True, help="Until it has joined, at most as long as its line works.")
@json_option
def add(name: str, host: str, wait: bool, as_json: bool) -> int:
    """Expect a machine, and print the line to run there, which works once within 15 minutes."""
    from trainforge.client import Client

    with Client.configured() as client:
        told = client.expect_machine(name, host or name)
        if not wait:
            if as_json:
                print_json(told)
                return 0
            click.echo(f"{name} is expected; {told['hint']}:")
            click.echo(f"  {told['join_command']}")
            next_step("trainforge executor list")
            return 0
        say(f"{name} is expected; {told['hint']}:\n  {told['join_command']}")
        found = told
        while (found["pending"] or found["status"] == "offline") and time.time() < told["expires"]:
            found = client.arrival(name, LONG_POLL_S)
    if as_json:
        print_json(found)
    elif found["pending"]:
        click.echo(f"{name} has not joined; `trainforge executor add {name}` gives a new line")
    else:
        has = found["capabilities"]
        sizes = f"{has['cpu_count']} CPUs, {has['gpu_count']} GPUs, {has['memory'] / GIB:.1f} GiB of memory"
        click.echo(f"{name} has joined and is {state_text(found['status'])}: {sizes}")
        next_step(f"trainforge executor show {name}")
    return 1 if found["pending"] else 0


@click.command()
@click.argument("name")
@json_option
def show(name: str, as_json: bool) -> None:
    """Show one executor, by name or id: what it has, its load, its jobs."""
    from trainforge.client import Client

    with Client.configured() as client:
        view = client.executor(name)
    if as_json:
        print_json(view.model_dump(mode="json"))
        return
    from trainforge.config.result import moment

    has, load = view.capabilities, view.load
    click.secho(f"{view.name}  {view.id}", bold=True)
    click.echo(f"  status   {state_text(view.status)}, seen {age(view.last_seen)}")
    click.echo(f"  key      {view.fingerprint}{', a visitor' if view.ephemeral else ''}")
    click.echo(f"  reached  {view.endpoint or 'asks for work itself'}")
    memory = f"{load.memory_bytes / GIB:.1f} of {has.memory_bytes / GIB:.1f} GiB"
    click.echo(f"  machine  {has.hostname}: {has.cpu_count} CPUs at {load.cpu_percent:.0f}%, memory {memory}")
    click.echo(f"  disk     {has.disk_free_bytes / GIB:.1f} GiB free")
    for number, gpu in enumerate(has.gpus):
        used = f", {load.gpu_percent[number]:.0f}% in use" if number < len(load.gpu_percent) else ""
        if number < len(load.gpu_others_bytes) and load.gpu_others_bytes[number] >= GIB:
            used += f", {load.gpu_others_bytes[number] / GIB:.1f} GiB by other programs"
        click.echo(f"  gpu {number}    {gpu.model}, {gpu.memory_bytes / GIB:.1f} GiB{used}")
        if gpu.problem:
            click.secho(f"           not given to jobs: {gpu.problem}", fg="red")
    click.echo(f"  python   {has.python or '?'}, torch {has.torch or 'not installed'}")
    if has.session_ends:
        click.echo(f"  session  ends at {moment(has.session_ends)[:16]} UTC")
    click.echo(f"  labels   {', '.join(f'{key}={value}' for key, value in has.labels.items()) or 'none'}")
    click.echo(f"  jobs     {len(view.jobs)} of {has.max_jobs}  {', '.join(job[:8] for job in view.jobs)}")


@click.command()
@click.argument("name")
@json_option
def approve(name: str, as_json: bool) -> None:
    """Let an executor have work that joined with a token that asks for this.

    Compare the fingerprint that is printed here with the one that `executor status` prints over there.
    """
    from trainforge.client import Client

    with Client.configured() as client:
        view = client.tell_executor(name, "approve")
    if as_json:
        print_json(view.model_dump(mode="json"))
        return
    click.echo(f"{view.name} is approved, with the key {view.fingerprint}")
    next_step("trainforge executor list")


@click.command()
@click.argument("name")
@json_option
def drain(name: str, as_json: bool) -> None:
    """Give an executor no new jobs; what it trains goes on."""
    _told(name, "drain", as_json, "gets no new jobs", "trainforge executor undrain")


@click.command()
@click.argument("name")
@json_option
def undrain(name: str, as_json: bool) -> None:
    """Give an executor jobs again."""
    _told(name, "undrain", as_json, "gets jobs again", "trainforge executor show")


@click.command()
@click.argument("name")
@json_option
def remove(name: str, as_json: bool) -> None:
    """Have the sender refuse an executor from now on; its jobs are tried elsewhere."""
    _told(name, "remove", as_json, "is removed; joining again needs a new token", "")


commands = (list_executors, add, show, approve, drain, undrain, remove)


def _told(name: str, action: str, as_json: bool, done: str, after: str) -> None:
    from trainforge.client import Client

    with Client.configured() as client:
        view: ExecutorView = client.tell_executor(name, action)
    if as_json:
        print_json(view.model_dump(mode="json"))
        return
    jobs = f" ({len(view.jobs)} under way)" if view.jobs else ""
    click.echo(f"{view.name} {done}{jobs}")
    if after:
        next_step(f"{after} {view.name}")
