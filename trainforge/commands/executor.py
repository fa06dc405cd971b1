"""`trainforge executor`: pair this machine with a sender, train on it, look at its state."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trainforge.commands import machines
from trainforge.commands.common import Function, age, json_option, next_step, print_json, say
from trainforge.commands.sender import given, settings_file

if TYPE_CHECKING:
    from trainforge.config.settings import ExecutorSettings


def common_options(function: Function) -> Function:
    options: list[Callable[[Function], Function]] = [
        click.option(
            "--config",
            type=click.Path(path_type=Path),
            help="Settings file; default executor.yaml in the configuration folder.",
        ),
        click.option(
            "--data-dir", type=click.Path(path_type=Path), help="Where its key, caches and jobs lie."
        ),
        click.option("--name", help="What to call it.  [default: the machine's name]"),
    ]
    for option in reversed(options):
        function = option(function)
    return function


def _settings(config: Path | None, options: dict[str, Any]) -> ExecutorSettings:
    from trainforge.config.settings import ExecutorSettings

    return ExecutorSettings.load(settings_file(config, "executor.yaml"), **given(options))


def _here(config: Path | None, options: dict[str, Any]) -> str:
    """What names the same executor to the next command."""
    said = {"--config": config, "--data-dir": options.get("data_dir")}
    return "".join(f" {name} {shlex.quote(str(value))}" for name, value in said.items() if value)


@click.group()
def executor() -> None:
    """Run an executor, which trains on this machine; look after those of the sender."""


for command in machines.commands:
    executor.add_command(command)


@executor.command()
@click.argument("url")
@click.argument("token")
@common_options
@json_option
def join(url: str, token: str, config: Path | None, as_json: bool, **options: Any) -> None:
    """Pair this machine with the sender at URL, once.

    TOKEN is what `trainforge sender token` printed; it works once. The key that identifies this machine is
    made here and never leaves it.
    """
    from trainforge.executor.identity import load_key
    from trainforge.executor.join import join as pair

    settings = _settings(config, options)
    identity = pair(url, token, settings)
    fingerprint = load_key(settings.data_dir).id
    if as_json:
        said = {"executor": identity.executor, "name": identity.name, "sender": identity.sender_url}
        print_json(said | {"fingerprint": fingerprint, "pending": identity.pending})
        return
    click.echo(f"{identity.name} ({identity.executor}) belongs to {identity.sender_url} now")
    if identity.pending:
        click.echo(f"  its key is {fingerprint}")
        say(f"  it gets no work before `trainforge executor approve {identity.name}` at the sender")
    next_step(f"trainforge executor start{_here(config, options)}")


@executor.command()
@click.argument("key")
@common_options
@json_option
def trust(key: str, config: Path | None, as_json: bool, **options: Any) -> None:
    """Take orders from one-shot senders (`trainforge direct`) that sign with KEY.

    KEY is the public key, which `trainforge direct --new-key` prints. This takes the place of `join`.
    """
    from trainforge.executor.trusting import trust as pin

    identity = pin(_settings(config, options), key)
    if as_json:
        print_json({"executor": identity.executor, "name": identity.name, "sender": identity.sender})
        return
    click.echo(f"{identity.name} ({identity.executor}) takes orders signed by {identity.sender} now")
    next_step(f"trainforge executor start{_here(config, options)} --connection push --tunnel ngrok")


@executor.command("rotate-key")
@common_options
@json_option
def rotate_key(config: Path | None, as_json: bool, **options: Any) -> None:
    """Make a new key for this machine, announced by the old one; what runs goes on."""
    from trainforge.executor.rotation import rotate_key as change

    key = change(_settings(config, options))
    if as_json:
        print_json({"fingerprint": key.id})
        return
    click.echo(f"the key of this executor is {key.id} now")


@executor.command()
@common_options
@click.option(
    "--connection", type=click.Choice(["pull", "push"]), help="Ask for work, or be sent it.  [default: pull]"
)
@click.option("--host", help="Address to listen on where work is sent.  [default: 127.0.0.1]")
@click.option("--port", type=click.IntRange(0, 65535), help="Port; 0 takes a free one.  [default: 0]")
@click.option(
    "--tunnel", type=click.Choice(["none", "ngrok", "command"]), help="How it is reached from outside."
)
@click.option("--tunnel-command", help="Prints a public URL; {port} stands for the port.")
@click.option("--max-jobs", type=click.IntRange(1, 64), help="Jobs side by side.  [default: 1]")
@click.option(
    "--accept", type=click.Choice(["auto", "ask"]), help="Take each job, or ask you first.  [default: auto]"
)
@click.option(
    "--accept-timeout", help="How long it asks, such as 120s; then it refuses the job.  [default: 120s]"
)
@click.option("--session-ends", help="When this machine will be gone: 9h from now, or 2026-11-21T18:00.")
@click.option("--max-memory-gb", type=float, help="Memory that jobs may use, of 10^9 bytes.  [default: all]")
@click.option("--max-cpu-percent", type=float, help="Share of the cores that jobs get.  [default: 100]")
@click.option(
    "--isolation",
    type=click.Choice(["auto", "process", "sandbox", "container"]),
    help="How far jobs are kept from this machine.  [default: the strictest that works]",
)
@click.option(
    "--container-engine",
    type=click.Choice(["auto", "docker", "podman", "none"]),
    help="What runs containers.  [default: the first that works]",
)
@click.option("--container-image", help="For jobs that have to be in a container and name no image.")
@click.option(
    "--max-disk-gb", type=float, help="What one job may leave on disk, of 10^9 bytes.  [default: all]"
)
@click.option("--labels", help="What jobs may ask for, such as site=lab,disk=nvme.")
@click.option("--poll-interval", help="Before it asks again after a request for work failed.  [default: 1s]")
@click.option("--sender-url", help="Where its sender is now, if that has moved.")
@click.option("--debug", is_flag=True, default=None, help="Log every detail.")
@click.option("--status", "show", is_flag=True, help="Print what `executor status` prints, and exit.")
@click.option(
    "--ephemeral",
    nargs=2,
    metavar="URL TOKEN",
    help="Join as a visitor: the key is never stored, and nothing stays when it ends.",
)
def start(config: Path | None, show: bool, ephemeral: tuple[str, str] | None, **options: Any) -> None:
    """Train on this machine until Ctrl-C; a training outlives a restart of its executor.

    Every setting can be given in the file or as TRAINFORGE_EXECUTOR_... too.
    """
    settings = _settings(config, options)
    if show:
        _show(settings, _here(config, options), as_json=False)
        return
    from trainforge.executor.program import run_executor, run_visitor

    if ephemeral:
        url, token = ephemeral
        run_visitor(settings.model_copy(update={"sender_url": url.rstrip("/")}), token)
    else:
        run_executor(settings)


@executor.command()
@common_options
@json_option
def status(config: Path | None, as_json: bool, **options: Any) -> None:
    """Show whom this machine belongs to, whether it is connected, its jobs, waiting results and disk."""
    _show(_settings(config, options), _here(config, options), as_json=as_json)


def _show(settings: ExecutorSettings, here: str, *, as_json: bool) -> None:
    from trainforge.executor.identity import ExecutorIdentity, load_key
    from trainforge.executor.status import local_status

    identity = ExecutorIdentity.load(settings.data_dir)
    about = local_status(settings)
    if as_json:
        print_json(about | {"name": identity.name, "sender": identity.sender})
        return
    machine, free = about["capabilities"], about["load"]["disk_free_bytes"]
    gpus = ", ".join(gpu["model"] for gpu in machine["gpus"]) or "none"
    click.secho(f"{identity.name}  {identity.executor}", bold=True)
    who = identity.sender_url or f"one-shot, with key {identity.sender}"
    click.echo(f"  sender   {who}, {_contact(about)}")
    click.echo(f"  key      {load_key(settings.data_dir).id}")
    click.echo(f"  reached  {about['endpoint'].get('public_url') or 'asks for work itself'}")
    click.echo(f"  machine  {machine['cpu_count']} CPUs, {_gib(machine['memory_bytes'])}, GPUs: {gpus}")
    for number, gpu in enumerate(machine["gpus"]):
        if gpu["problem"]:
            click.secho(f"    GPU {number} is given to no job: {gpu['problem']}", fg="red")
    installers = ", ".join(machine["installers"]) or "nothing"
    click.echo(f"  python   {machine['python']}, torch {machine['torch'] or 'not installed'}")
    click.echo(f"  installs with {installers}")
    apart = machine["isolation"]
    bounded = ", ".join(apart["bounded"]) or "nothing"
    click.echo(f"  apart    as {apart['usual']}; control groups bound {bounded}")
    if "container" in apart["levels"]:
        click.echo(f"           containers by {apart['engine']}, image {apart['image'] or 'as jobs name'}")
    for what, why in apart["lacks"].items():
        click.echo(f"    lacks {what}: {why}")
    click.echo(f"  disk     {_gib(free)} free for {settings.data_dir}{_closed(machine)}")
    active = [node for node in about["nodes"] if not node.get("ended")]
    click.echo(f"  jobs     {len(active)} of {settings.max_jobs}")
    for node in active:
        going_on = ", training goes on" if node["training"] and not about["running"] else ""
        phase = "waits for your answer" if node["asked"] else node["phase"] or "taken"
        click.echo(f"    {_node(node)}: {phase}{going_on}")
    spool = [node for node in about["nodes"] if node["spooled"]]
    click.echo(f"  results  {f'{len(spool)} to be published' if spool else 'none waiting'}")
    for node in spool:
        click.echo(f"    {_node(node)}: {node['waiting'] or 'on its way'}")
    asked = [node["job"][:8] for node in active if node["asked"]]
    if not about["running"]:
        next_step(f"trainforge executor start{here}{'' if identity.sender_url else ' --connection push'}")
    elif asked:
        next_step(f"trainforge executor accept {asked[0]}{here}")


@executor.command()
@common_options
@json_option
def leave(config: Path | None, as_json: bool, **options: Any) -> None:
    """Part this machine from its sender: the opposite of `join`. Stop its executor first."""
    from trainforge.executor.leave import leave as part

    identity = part(_settings(config, options))
    if as_json:
        print_json({"executor": identity.executor, "name": identity.name, "sender": identity.sender_url})
        return
    click.echo(f"{identity.name} ({identity.executor}) has left {identity.sender_url or identity.sender}")


@executor.command()
@click.argument("job")
@common_options
@json_option
def accept(job: str, config: Path | None, as_json: bool, **options: Any) -> None:
    """Let a job train here that waits for your answer (accept: ask). JOB is the beginning of its id."""
    _say_to(job, _settings(config, options), as_json, yes=True)


@executor.command()
@click.argument("job")
@common_options
@json_option
def reject(job: str, config: Path | None, as_json: bool, **options: Any) -> None:
    """Refuse a job that waits for your answer (accept: ask). JOB is the beginning of its id."""
    _say_to(job, _settings(config, options), as_json, yes=False)


def _say_to(job: str, settings: ExecutorSettings, as_json: bool, *, yes: bool) -> None:
    from trainforge.executor.acceptance import answer

    found = answer(settings.data_dir, job, yes=yes)
    if as_json:
        print_json({"job": found, "accepted": yes})
        return
    click.echo(f"job {found[:8]} is {'accepted' if yes else 'rejected'}")


@executor.command()
@common_options
@click.option("--older-than", help="Only what no job has used for so long, such as 7d.")
@click.option("--dry-run", is_flag=True, help="Say what would be removed, and remove nothing.")
@json_option
def clean(config: Path | None, older_than: str | None, dry_run: bool, as_json: bool, **options: Any) -> None:
    """Remove what this machine keeps for later jobs: data, environments, mirrors. What jobs use stays.

    An executor may run meanwhile. By itself it does this when its disk is low or `disk_budget_gb` is reached.
    """
    from trainforge.config.manifest_types import parse_duration
    from trainforge.executor.housekeeping import clean as remove

    try:
        seconds = parse_duration(older_than) if older_than else 0.0
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--older-than") from error
    freed = remove(_settings(config, options).data_dir, older_than=seconds, dry_run=dry_run)
    if as_json:
        print_json(freed.told() | {"dry_run": dry_run})
        return
    rows = [("would go" if dry_run else "removed", entry, "") for entry in freed.removed]
    rows += [("in use", entry, ", ".join(f"job {job[:8]}" for job in jobs)) for entry, jobs in freed.in_use]
    for what, entry, jobs in rows:
        used = f"used {age(entry.used)}" if entry.used else ""
        size = f"{entry.size / 1e6:,.1f} MB"
        click.echo(f"  {what:<8}  {entry.kind:<12}  {size:>12}  {entry.name:<30}  {jobs or used}".rstrip())
    click.echo(f"{'would free' if dry_run else 'freed'} {freed.size / 1e6:,.1f} MB")
    if dry_run and freed.removed:
        next_step(f"trainforge executor clean{_here(config, options)}")


def _contact(about: dict[str, Any]) -> str:
    if not about["running"]:
        return "but no executor runs here"
    contact = about["contact"]
    if not contact:
        return "not asked yet"
    time = age(contact["since"]).removesuffix(" ago")
    return (
        f"not connected for {time}: {contact['problem']}" if contact["problem"] else f"connected for {time}"
    )


def _node(node: dict[str, Any]) -> str:
    nodes = node.get("nodes", 1)
    rank = f", rank {node['rank']} of {nodes}" if nodes > 1 else ""
    return f"{node['job'][:8]}  {node.get('project', '')}{rank}"


def _closed(machine: dict[str, Any]) -> str:
    return f"; it takes no new jobs: {machine['closed']}" if machine["closed"] else ""


def _gib(size: int) -> str:
    return f"{size / 1024**3:.0f} GiB"
