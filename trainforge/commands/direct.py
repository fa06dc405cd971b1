"""`trainforge direct`: train without a sender."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from trainforge.commands.common import executors_option, next_step, picked, set_option

if TYPE_CHECKING:
    from trainforge.ci import Asked
    from trainforge.client import Client


@click.command()
@click.argument("path", type=click.Path(path_type=Path, exists=True), default=".")
@click.option("--remote", default="origin", show_default=True, help="The git remote that has the commit.")
@click.option(
    "--key", type=click.Path(path_type=Path), help="File of the signing key, if not TRAINFORGE_SIGNING_KEY."
)
@click.option(
    "--new-key",
    type=click.Path(path_type=Path),
    help="Make a signing key in this file, say what executors trust, and end.",
)
@set_option
@executors_option
@click.option("--plan", "only_plan", is_flag=True, help="Only say where the job would train.")
@click.option("--rerun", is_flag=True, help="Train again what has a result already.")
@click.option("--timeout", default="6h", show_default=True, help="For how long to stay, such as 90m.")
@click.option(
    "--allow-private", is_flag=True, help="Go to executors on this machine and in private networks, too."
)
def direct(  # noqa: PLR0917 - click passes by name
    path: Path,
    remote: str,
    key: Path | None,
    new_key: Path | None,
    settings: tuple[str, ...],
    executors: tuple[str, ...],
    excluded: tuple[str, ...],
    only_plan: bool,
    rerun: bool,
    timeout: str,
    allow_private: bool,
) -> int:
    """Train the commit that is checked out on executors that announce themselves in its repository.

    PATH is the project's folder or its manifest. This process is the sender, until the result is on the
    results branch. The commit has to be pushed.
    """
    if new_key is not None:
        return _make_key(new_key)
    import signal
    from dataclasses import replace
    from functools import partial

    from trainforge import project
    from trainforge.ci import Asked
    from trainforge.commands.ci import read_seconds
    from trainforge.direct import TOKEN, USERNAME, head_of, signing_key, train
    from trainforge.runner import Runner
    from trainforge.sender.direct import Direct
    from trainforge.usergit import stored_credential

    overrides = project.overrides(None, settings)
    found = project.load(path, overrides)
    url, which = head_of(found.folder, remote)
    runner = Runner()
    token = runner.get(TOKEN)
    stored = None if token else stored_credential(url, found.folder)
    wanted = Direct(
        repository=url,
        key=signing_key(file=key),
        git_username=stored.username if stored else USERNAME,
        git_token=stored.password if stored else token,
        allow_private=allow_private,
    )
    asked = Asked(
        manifest=found.manifest_path,
        overrides=overrides,
        executors=picked(executors, excluded),
        timeout=read_seconds(timeout),
    )
    plan = partial(_plan, found.text, asked) if only_plan else None
    for number in (signal.SIGINT, signal.SIGTERM):  # the former, too, is ignored in a script's background
        signal.signal(number, signal.default_int_handler)  # the job is stopped in either case
    return train(wanted, replace(which, rerun=rerun), runner, asked, plan=plan)


def _plan(manifest: str, asked: Asked, client: Client) -> int:
    from trainforge.commands.manifest import show_answer

    answer = client.plan(manifest, dict(asked.overrides), asked.executors)
    show_answer(answer)
    return 0 if answer.get("plan") else 1


def _make_key(path: Path) -> int:
    import shlex

    from trainforge.config.errors import Conflict
    from trainforge.config.trust import SigningKey, public_text

    if path.exists():
        raise Conflict(f"{path} is there already", hint="name a new file")
    key = SigningKey.generate()
    key.save(path)
    click.echo(public_text(key.public))
    next_step(
        f"trainforge executor trust {public_text(key.public)}",
        f"gh secret set TRAINFORGE_SIGNING_KEY --env training < {shlex.quote(str(path))}",
    )
    return 0
