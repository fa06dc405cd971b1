"""`trainforge submit`: train what lies in the folder, committed or not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trainforge.commands.common import (
    executors_option,
    json_option,
    next_step,
    picked,
    print_json,
    say,
    set_option,
    waiting_words,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trainforge.client import Client
    from trainforge.config.views import JobDetail, JobSummary
    from trainforge.project import Project

OPTIONS = {"main_entry": "--entry", "requirements_file": "--requirements"}  # of what the API calls so


@click.command()
@click.argument("path", type=click.Path(path_type=Path, exists=True), default=".")
@click.option(
    "--workers", type=click.IntRange(1), help="Train on this many machines, whatever the manifest says."
)
@set_option
@executors_option
@click.option(
    "--remote", default="", metavar="NAME", help="The git remote to push to, instead of `trainforge`."
)
@click.option(
    "--bundle",
    type=click.Path(path_type=Path, exists=True),
    metavar="PATH",
    help="Upload this ZIP or folder instead; it needs no git repository and no manifest.",
)
@click.option(
    "--name", default="", help="With --bundle: the project's name; by default the manifest's or PATH's."
)
@click.option("--entry", default="", metavar="FILE", help="With --bundle: the script; main.py unless said.")
@click.option(
    "--requirements",
    default="",
    metavar="FILE",
    help="With --bundle: what to install; requirements.txt if there.",
)
@click.option("--with-secrets", is_flag=True, help="With --bundle: pack files that look like secrets, too.")
@click.option(
    "--follow", "-f", is_flag=True, help="Print the job's output; its exit code is the job's outcome."
)
@json_option
def submit(  # noqa: PLR0917 - click passes by name
    path: Path,
    workers: int | None,
    settings: tuple[str, ...],
    executors: tuple[str, ...],
    excluded: tuple[str, ...],
    remote: str,
    bundle: Path | None,
    name: str,
    entry: str,
    requirements: str,
    with_secrets: bool,
    follow: bool,
    as_json: bool,
) -> int:
    """Train the project as it is now, uncommitted and untracked files included.

    PATH is the project's folder or its manifest. The commit that carries your changes goes to a throw-away
    branch of the remote; your index, branch and files stay as they are.
    """
    from trainforge import project
    from trainforge.client import Client

    overrides = project.overrides(workers, settings)
    form = {"name": name, "main_entry": entry, "requirements_file": requirements}
    if bundle is None and (any(form.values()) or with_secrets):
        raise click.UsageError("--name, --entry, --requirements and --with-secrets go with --bundle")
    found = project.load(path, overrides) if bundle is None else None
    chosen = picked(executors, excluded)
    with Client.configured() as client:
        client.health()  # a sender that is down is said as for every command, before git finds out
        if found is not None:
            request = _push(client, found, remote)
            job = client.submit({**request, "overrides": overrides, "executors": chosen})
        elif bundle is not None:
            form |= {"overrides": json.dumps(overrides), "executors": ",".join(chosen)}
            job = _upload(client, bundle, form, with_secrets=with_secrets)
        if as_json and not follow:
            print_json(job.model_dump(mode="json"))
        elif not as_json:
            _show(client, job)
        return _follow(client, job, as_json=as_json) if follow else 0


def _upload(client: Client, path: Path, form: dict[str, str], *, with_secrets: bool) -> JobDetail:
    from trainforge import bundling
    from trainforge.config.errors import Place, TrainForgeError

    packed = bundling.pack(path, with_secrets=with_secrets)
    with packed.file:
        say(f"  {packed}")
        try:
            return client.submit_bundle(packed.file, packed.name, {k: v for k, v in form.items() if v})
        except TrainForgeError as error:
            if error.place and (option := OPTIONS.get(error.place.file)):
                error.place = Place(option)
            raise


def _push(client: Client, found: Project, remote: str) -> dict[str, Any]:
    """Bring the work tree as a commit to the remote; what the sender is to be asked for."""
    from trainforge import project, usergit

    repo = found.repository
    url = project.push_url(found, remote, client.url)
    name = project.builtin_name(client.url, url) or watched_name(client, url)
    subject = f"Submit {found.manifest.project.name} as it is in {usergit.user_name()}'s folder"
    # The marker keeps the sender from reading the push itself as another wish to train.
    commit = usergit.snapshot(repo, f"{subject}\n\n[skip train]")
    branch = usergit.submit_branch(commit)
    credential = project.credential_for(url, client.url, client.token, repo)
    usergit.push(repo, url, commit, branch, credential)
    return {
        "repository": name,
        "commit": commit,
        "manifest_path": found.manifest_path,
        "ref": f"refs/heads/{branch}",
    }


def watched_name(client: Client, url: str) -> str:
    """The name under which the sender watches a remote.

    Raises:
        TrainForgeError: it does not.
    """
    from trainforge.config.errors import TrainForgeError
    from trainforge.hooks.git import repository_id

    wanted = repository_id(url)
    for repository in client.repositories():
        if repository.id == wanted or repository.url == url:
            return repository.name
    raise TrainForgeError(
        f"the sender does not watch {url}",
        hint="add it with `trainforge sender watch URL`, or push to the sender's own git server",
        code="not_watched",
    )


def _show(client: Client, job: JobDetail) -> None:
    from trainforge.commands.jobs import titled

    for one in _all(client, job):
        click.echo(f"job {one.id} {one.state}" + (f"  {titled(one)}" if one.cell else ""))
    say(f"  commit {job.commit[:12]} of {job.repository}")
    for notice in job.notices:
        say(f"  {notice}")
    for words in waiting_words(job.waiting):
        say(f"  waits: {words}")
    short = job.id[:8]
    next_step(f"trainforge logs -f {short}", f"trainforge status {short}", f"trainforge pull {short}")


def _follow(client: Client, job: JobDetail, *, as_json: bool) -> int:
    from trainforge.commands.jobs import watch_job
    from trainforge.commands.logs import follow_lines, show_lines, trains_in_several

    worst = 0
    for one in _all(client, job):
        show_lines(follow_lines(client, one), prefixed=trains_in_several(job), as_json=as_json)
        worst = max(worst, watch_job(client, one.id, as_json=as_json))
    return worst


def _all(client: Client, job: JobDetail) -> Sequence[JobSummary]:
    """The job, or all jobs of its matrix in the matrix's order."""
    return client.jobs(matrix=job.matrix, limit=1000)[::-1] if job.matrix else [job]
