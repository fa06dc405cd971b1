"""What people can ask a sender to do, for the API and the pages alike."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from trainforge.config.errors import Conflict, NotFound, TrainForgeError
from trainforge.config.failpoints import failpoint
from trainforge.config.manifest import apply_overrides, parse_manifest
from trainforge.config.messages import AnswerOrder
from trainforge.config.views import ExecutorView, JobDetail, RepositoryView
from trainforge.hooks.addresses import validate_url
from trainforge.hooks.watch import git_folder
from trainforge.sender import events, leading, registry, resuming
from trainforge.sender.context import Sender
from trainforge.sender.dispatch import ring_orders
from trainforge.sender.notify import JOBS, REPOSITORIES, job_key
from trainforge.sender.preview import preview
from trainforge.sender.store_audit import SENDER
from trainforge.sender.store_events import Repo

log = logging.getLogger(__name__)
T = TypeVar("T")


async def in_thread(work: Callable[..., T], *arguments: Any) -> T:
    """Database and git calls block: they never run on the event loop."""
    return await asyncio.to_thread(work, *arguments)


async def stop(sender: Sender, job: str, reason: str, actor: str = SENDER) -> JobDetail:
    """Ask for a job's end. Raises Conflict when it has ended."""
    await in_thread(sender.store.request_stop, job, "stopped", reason, sender.now(), actor)
    failpoint("45.sender.stop_stored")
    sender.wake(job)
    sender.bell.ring(job_key(job), JOBS)
    return await in_thread(sender.queries.job, job)


async def answer(sender: Sender, job: str, *, accept: bool, actor: str) -> JobDetail:
    """Answer for the machines that ask whether they may run a job. Raises Conflict when none asks."""
    body = AnswerOrder(accept=accept)
    ring_orders(sender, await in_thread(sender.store.answer, job, body, sender.now(), actor))
    sender.bell.ring(job_key(job))
    return await in_thread(sender.queries.job, job)


async def retry(
    sender: Sender, job: str, actor: str = SENDER, changes: Mapping[str, Any] | None = None
) -> JobDetail:
    """A new job that does the same again and names the old one.

    `changes` are the keys of the manifest that it sets anew, in place of those that the old one set.
    """
    again = await in_thread(partial(events.retry_job, sender, job, overrides=changes))
    note = partial(sender.store.audit, actor, "job.retried", job, {"as": again}, now=sender.now())
    await in_thread(note)
    return await in_thread(sender.queries.job, again)


async def resume(sender: Sender, job: str, actor: str) -> JobDetail:
    """A new job that goes on from the newest checkpoint of one that failed or was stopped."""
    again = await in_thread(resuming.resume_job, sender, job)
    await in_thread(partial(sender.store.audit, actor, "job.resumed", job, {"as": again}, now=sender.now()))
    return await in_thread(sender.queries.job, again)


async def submit(
    sender: Sender,
    *,
    repository: str,
    commit: str,
    manifest_path: str,
    ref: str,
    overrides: Mapping[str, Any],
    executors: Sequence[str],
    rerun: bool,
) -> JobDetail:
    """A job for a commit that is on the remote. The same request makes the same job, unless `rerun`."""
    ask = partial(
        events.request_job,
        sender,
        repository,
        commit,
        manifest_path=manifest_path,
        ref=ref,
        overrides=overrides,
        executors=executors,
        rerun=secrets.token_hex(8) if rerun else "",
    )
    return await in_thread(sender.queries.job, await in_thread(ask))


async def look(sender: Sender, repository: str, source: str) -> list[str]:
    """Read a repository's heads now; gives lines for whoever pushed, also where that failed."""
    try:
        return await in_thread(events.handle_hint, sender, repository, source)
    except TrainForgeError as error:
        log.warning("looking at %s failed: %s", repository, error)
        return [f"TrainForge: {error}"]


async def watch(
    sender: Sender, url: str, name: str | None, actor: str = SENDER, *, take_over: bool = False
) -> RepositoryView:
    """Watch a repository from now on; what it holds already leads to no job.

    Raises:
        AddressRefused: not a usable URL. Conflict: the name is another's. NotFound: no repository there.
    """
    repo = await in_thread(register, sender, url, name)
    note = partial(
        sender.store.audit, actor, "repository.watched", repo.id, {"url": repo.url}, now=sender.now()
    )
    await in_thread(note)
    try:
        if take_over:
            await in_thread(leading.take_over, sender, events.place_of(sender, repo))
        await look(sender, repo.id, "watch")
    finally:  # it is watched, whatever the first look came to
        sender.bell.ring(REPOSITORIES)
    views = await in_thread(sender.queries.repositories)
    return next(view for view in views if view.id == repo.id)


def unwatch(sender: Sender, named: str, actor: str = SENDER) -> RepositoryView:
    """Look at a repository no more; its jobs and their results stay.

    Raises:
        NotFound: it is not watched. Conflict: it is held by this sender, or the settings name it.
    """
    view = next((one for one in sender.queries.repositories() if named in (one.name, one.id)), None)
    if view is None:
        raise NotFound(
            f"no repository {named[:80]} is watched here", hint="`trainforge sender status` lists them"
        )
    if view.kind == "builtin":
        raise Conflict(f"{view.name} is held by this sender", hint="what is pushed here is always looked at")
    configured = {
        validate_url(one.url, allow_file=True).repository_id for one in sender.settings.repositories
    }
    if view.id in configured:
        raise Conflict(
            f"the settings name {view.name}", hint="remove it from sender.yaml, and start the sender again"
        )
    sender.store.unwatch(view.id, sender.now())
    sender.store.audit(actor, "repository.unwatched", view.id, {"url": view.url}, now=sender.now())
    sender.bell.ring(REPOSITORIES)
    return view


def register(sender: Sender, url: str, name: str | None) -> Repo:
    address = validate_url(url, allow_file=True)
    if address.local:
        git_folder(Path(address.path))
    last = address.path.rstrip("/").rsplit("/", 1)[-1].removesuffix(".git")
    kind = "local" if address.local else "remote"
    repo = Repo(address.repository_id, name or last, address.text, kind)
    return sender.store.add_repository(repo, sender.now())


def make_plan(
    sender: Sender, manifest: str, overrides: dict[str, Any], executors: Sequence[str] = ()
) -> dict[str, Any]:
    """What would happen to this manifest now. `executors` may be picked by hand, as for a job.

    Raises:
        ManifestError: it cannot be used. NotFound: an executor is unknown.
    """
    wanted = apply_overrides(parse_manifest(manifest), overrides)
    chosen, now = registry.choose_executors(sender, executors), sender.now()
    machines = sender.store.machines(now, sender.queries.online_for)
    return preview(wanted, machines, now, chosen=chosen, line=sender.line())


def invite(sender: Sender, actor: str = SENDER, **kind: Any) -> dict[str, Any]:
    """A one-time join token, and the command that uses it."""
    token, expires = registry.create_join_token(sender, actor, **kind)
    command = f"trainforge executor join {sender.base_url} {token.text}"
    if kind.get("ephemeral"):
        command = f"trainforge executor start --ephemeral {sender.base_url} {token.text}"
    return {"token": token.text, "expires": expires, "command": command}


def drain_executor(sender: Sender, which: str, drained: bool, actor: str = SENDER) -> ExecutorView:
    """Raises NotFound."""
    found = sender.queries.executor(which, sender.now())
    registry.drain_executor(sender, found.id, drained, actor)
    return sender.queries.executor(found.id, sender.now())


def remove_executor(sender: Sender, which: str, actor: str = SENDER) -> ExecutorView:
    """Raises NotFound."""
    found = sender.queries.executor(which, sender.now())
    registry.remove_executor(sender, found.id, actor)
    return found.model_copy(update={"status": "revoked"})
