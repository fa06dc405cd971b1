"""`trainforge pull`: a job's result, from the results branch to a folder here."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from trainforge.commands.common import (
    ENDED,
    choose_job,
    job_argument,
    json_option,
    metrics_text,
    next_step,
    print_json,
    say,
)

if TYPE_CHECKING:
    from trainforge.client import Client
    from trainforge.config.views import JobDetail


@click.command()
@job_argument
@click.option(
    "--to",
    "destination",
    type=click.Path(path_type=Path, file_okay=False),
    help="The folder to make; by default results/<job>.",
)
@json_option
def pull(job: str | None, destination: Path | None, as_json: bool) -> None:
    """Bring a job's result home: model, metrics, logs; without JOB the newest job's."""
    from trainforge.client import Client

    with Client.configured() as client:
        detail = client.job(choose_job(client, job))
        _require_result(detail)
        target = destination or Path("results") / detail.id
        files = _fetch(client, detail, target)
    if as_json:
        print_json({"job": detail.id, "folder": str(target), "commit": detail.result_commit, "files": files})
        return
    click.echo(f"{len(files)} files of job {detail.id} are in {target}")
    metrics = target / "metrics.json"
    if metrics.is_file() and (told := metrics_text(json.loads(metrics.read_text()))):
        say(f"  {told}")
    artifacts = [f"ls {target}/artifacts"] if (target / "artifacts").is_dir() else []
    next_step(f"less {target}/README.md", *artifacts)


def _require_result(detail: JobDetail) -> None:
    from trainforge.config.errors import Conflict, NotFound

    short = detail.id[:8]
    if detail.state not in ENDED:
        raise Conflict(
            f"job {short} has no result yet: it is {detail.state}", hint=f"`trainforge logs -f {short}` waits"
        )
    if not detail.result_commit:
        why = f": {detail.reason}" if detail.reason else ""
        raise NotFound(
            f"job {short} {detail.state} without a result{why}", hint=f"`trainforge status {short}`"
        )


def _fetch(client: Client, detail: JobDetail, target: Path) -> list[str]:
    from trainforge import project
    from trainforge.hooks.results import read_result_files

    url = repository_url(client, detail.repository)
    return read_result_files(
        mirror_for(url),
        url,
        detail.result_branch,
        detail.result_path,
        target,
        credential=project.credential_for(url, client.url, client.token, Path.cwd()),
        allow_file=True,
    )


def repository_url(client: Client, name: str) -> str:
    """Where this machine finds a repository: those on the built-in server by the sender's known address."""
    from trainforge import project
    from trainforge.config.errors import NotFound

    for repository in client.repositories():
        if name in {repository.name, repository.id}:
            if repository.kind == "builtin":
                return project.builtin_url(client.url, repository.name)
            return repository.url
    raise NotFound(f"the sender does not know the repository {name} any more")


def mirror_for(url: str) -> Path:
    """The kept mirror of a remote's results, so that a second pull moves only what is new."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "trainforge" / "results" / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}.git"
