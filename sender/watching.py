"""The sender's eyes on repositories: a look at all of them now and then, and at local ones at once."""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from trainforge.config.errors import TrainForgeError
from trainforge.hooks import watch
from trainforge.hooks.addresses import validate_url
from trainforge.hooks.git_http import repository_name
from trainforge.sender import actions, events
from trainforge.sender.context import Sender
from trainforge.sender.notify import REPOSITORIES
from trainforge.sender.store_events import Repo

log = logging.getLogger(__name__)
NEW_EVERY_S = 3600.0
AGAIN_S = 2.0


def builtin(sender: Sender, name: str) -> Repo:
    """The built-in repository of this name, noted if it was not."""
    return sender.store.add_repository(Repo(f"builtin:{name}", name, "", "builtin"), sender.now())


async def note_later(sender: Sender, name: str) -> None:
    """Note the repository of a push that was taken while it could not be, as on a full disk."""
    while not sender.stopping:
        await asyncio.sleep(AGAIN_S)
        try:
            repo = await asyncio.to_thread(builtin, sender, name)
        except Exception as error:  # noqa: BLE001 - whatever is in the way, the push was acknowledged
            log.warning("a push to %s is not noted yet: %s", name, error)
        else:
            sender.bell.ring(REPOSITORIES)
            await actions.look(sender, repo.id, "push")
            return


def adopt(sender: Sender) -> None:
    """Note what was pushed just before a crash, and what the settings name."""
    for bare in sorted([*sender.git_root.glob("*.git"), *sender.git_root.glob("*/*.git")]):
        if (bare / "HEAD").is_file():
            builtin(sender, repository_name(str(bare.relative_to(sender.git_root))))
    for wanted in sender.settings.repositories:
        try:
            actions.register(sender, wanted.url, wanted.name)
        except TrainForgeError as error:
            log.warning("cannot watch %s: %s", wanted.url, error)


async def poll(sender: Sender) -> None:
    """Look at every repository, first of all after a start: what was missed meanwhile is found so."""
    await asyncio.to_thread(adopt, sender)
    sender.bell.ring(REPOSITORIES)
    known: list[str] = []

    def repositories() -> list[str]:
        return known

    async def look(repository: str, source: str) -> None:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(pool, events.handle_hint, sender, repository, source)

    async def refresh() -> None:
        while True:
            with sender.bell.listen(REPOSITORIES) as listener:
                known[:] = [repo.id for repo in await asyncio.to_thread(sender.store.repositories)]
                await listener.wait(NEW_EVERY_S)

    known[:] = [repo.id for repo in await asyncio.to_thread(sender.store.repositories)]
    # Threads of its own: remotes that do not answer must not take those that requests are served with.
    pool = ThreadPoolExecutor(watch.AT_ONCE, thread_name_prefix="poll")
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(refresh())
            group.create_task(watch.poll(repositories, look, interval=sender.settings.poll_interval))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


async def watch_local(sender: Sender) -> None:
    """Have the disk tell of pushes to local repositories, including those that are added later."""

    async def hint(repository: str, source: str) -> list[str]:
        return await actions.look(sender, repository, source)

    watched: set[str] = set()
    async with watch.LocalWatcher(hint) as watcher:
        while not sender.stopping:
            with sender.bell.listen(REPOSITORIES) as listener:
                for repo in await asyncio.to_thread(sender.store.repositories):
                    if repo.kind == "local" and repo.id not in watched and _watch(watcher, repo):
                        watched.add(repo.id)
                await listener.wait(NEW_EVERY_S)


def _watch(watcher: watch.LocalWatcher, repo: Repo) -> bool:
    try:
        watcher.watch(repo.id, Path(validate_url(repo.url, allow_file=True).path))
    except (TrainForgeError, OSError) as error:
        log.warning("cannot watch %s on disk, it is only polled: %s", repo.name, error)
        return False
    return True
