"""Results that were on the remote and are not there any more: somebody deleted or rewrote the branch.

The jobs' states stay as they are. Whoever may still have a result publishes it again: the executor from its
spool, asked with its heartbeat, or the sender what it had published itself. Until then, and for good where
nobody has it, the job is marked `result_missing`.
"""

from __future__ import annotations

import asyncio
import logging

from trainforge.config.errors import TrainForgeError
from trainforge.config.failpoints import failpoint
from trainforge.hooks.results import present_local_results, present_results
from trainforge.sender import publisher
from trainforge.sender.context import Sender
from trainforge.sender.events import place_of
from trainforge.sender.notify import JOBS, RESULTS, job_key

log = logging.getLogger(__name__)
SINCE_S = 30 * 86_400.0
AGAIN_S = 30.0


async def run(sender: Sender) -> None:
    """Look at every results branch after a start, and at those that others have moved."""
    repositories = await asyncio.to_thread(sender.store.repositories)
    for repo in repositories:
        for branch in await asyncio.to_thread(sender.store.results_branches, repo.id):
            sender.moved.add((repo.id, branch))
    with sender.bell.listen(RESULTS) as listener:
        while not sender.stopping:
            for moved in sorted(sender.moved):
                sender.moved.discard(moved)
                try:
                    await asyncio.to_thread(check, sender, *moved)
                except TrainForgeError as error:
                    log.info("the results of %s cannot be looked at: %s", moved[0], error)
                    sender.moved.add(moved)
            await listener.wait(AGAIN_S)


def check(sender: Sender, repository_id: str, branch: str) -> None:
    """Compare what the remote has with what it should have.

    Raises:
        TrainForgeError: the remote cannot be read.
    """
    expected = sender.store.results_of(repository_id, branch, sender.now() - SINCE_S)
    if not expected:
        return
    place = place_of(sender, sender.store.repository(repository_id))
    folders = [row.result_path for row in expected]
    if place.builtin:
        found = present_local_results(place.mirror, branch, folders)
    else:
        mirror = publisher.results_mirror(sender, place)
        found = present_results(
            mirror, place.url, branch, folders, credential=place.credential, allow_file=place.local
        )
    gone = [row for row in expected if row.result_path not in found]
    news = [row.id for row in gone if row.result_missing is None]
    again = [row.id for row in expected if row.result_missing is not None and row.result_path in found]
    if news:
        failpoint("49.sender.result_missing")
        log.warning("%d results are not on %s of %s any more", len(news), branch, place.repo.name)
    if news or again:
        sender.store.flag_results(news, again, sender.now())
        sender.bell.ring(JOBS, *map(job_key, [*news, *again]))
    for row in gone:
        if not row.by_executor:
            publisher.publish(sender, row.id, row.state)
            sender.store.flag_results([], [row.id], sender.now())
