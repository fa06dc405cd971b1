"""Jobs that start at times: what `on.schedule` of the manifests on default branches asks for.

A pass looks at the heads that were handled, reads manifests where the default branch has moved, and makes
the jobs of each time that has come. Of the times missed while no sender ran, the newest counts alone. A
time is handled in the transaction that makes its jobs, so it makes them exactly once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from trainforge.config import cron
from trainforge.config.errors import TrainForgeError
from trainforge.hooks import git, triggers
from trainforge.hooks.gitread import ObjectReader, has_commit
from trainforge.sender import events
from trainforge.sender.context import Sender
from trainforge.sender.drafts import new_jobs, read_commit, read_manifest
from trainforge.sender.notify import EVENTS, REPOSITORIES
from trainforge.sender.store_events import NewEvent, Repo
from trainforge.sender.store_schedules import Schedule

log = logging.getLogger(__name__)
LONGEST_REST_S = 60.0  # clocks are set, and machines sleep
_USUAL = ("refs/heads/main", "refs/heads/master")


async def run(sender: Sender) -> None:
    """Until the sender stops."""
    scheduler = Scheduler(sender)
    while not sender.stopping:
        with sender.bell.listen(EVENTS, REPOSITORIES) as listener:
            rest = await asyncio.to_thread(scheduler.look)
            await listener.wait(rest)


class Scheduler:
    """Everything here runs in a worker thread."""

    def __init__(self, sender: Sender) -> None:
        self._sender = sender
        self._seen: dict[str, dict[str, str]] = {}  # repository -> heads at which it was read

    def look(self) -> float:
        """One pass; gives the seconds until the next time comes."""
        store, now = self._sender.store, self._sender.now
        for repo in store.repositories():
            try:
                self._refresh(repo)
            except (TrainForgeError, OSError) as error:
                log.warning("the schedules of %s cannot be read now: %s", repo.name, error)
        for schedule in store.schedules():
            slot = cron.due(schedule.crons, schedule.handled, now())
            if slot is not None:
                try:
                    self._start(schedule, slot)
                except (TrainForgeError, OSError) as error:
                    log.warning("%s cannot start at its time: %s", schedule.manifest_path, error)
        times = [cron.next_time(schedule.crons, now()) for schedule in store.schedules()]
        rest = min((time - now() for time in times if time is not None), default=LONGEST_REST_S)
        return min(max(rest, 0.01), LONGEST_REST_S)

    def _refresh(self, repo: Repo) -> None:
        """Read the default branch's manifests if it has moved."""
        store = self._sender.store
        heads = store.heads(repo.id)
        if self._seen.get(repo.id) == heads:
            return
        place = events.place_of(self._sender, repo)
        ref = default_ref(place, heads)
        commit = heads.get(ref, "")
        if commit and commit != store.scheduled_commit(repo.id):
            if not has_commit(place.mirror, commit):
                git.fetch_commit(
                    place.mirror, place.url, commit,
                    ref=ref, credential=place.credential, allow_file=place.local,
                )  # fmt: skip
            _, files = read_commit(place.mirror, commit)
            crons = {
                file.path: [one.cron for one in file.manifest.on.schedule]
                for file in files
                if file.manifest is not None and file.manifest.on.schedule
            }
            store.note_schedules(repo.id, ref, commit, crons, self._sender.now())
        self._seen[repo.id] = heads

    def _start(self, schedule: Schedule, slot: float) -> None:
        """Make the jobs of a time, for the newest commit that can be had."""
        sender = self._sender
        repo = sender.store.repository(schedule.repository_id)
        try:
            events.handle_hint(sender, repo.id, "poll")
            self._refresh(repo)
        except (TrainForgeError, OSError) as error:
            log.warning("%s is run as it was last seen: %s", schedule.manifest_path, error)
        known = {one.manifest_path: one for one in sender.store.schedules(repo.id)}
        newest = known.get(schedule.manifest_path)
        if newest is None or newest.handled != schedule.handled:
            return  # it has just been changed or taken away, or somebody else was faster
        with ObjectReader(events.place_of(sender, repo).mirror) as reader:
            info = reader.commit(newest.commit)
            file = read_manifest(reader, newest.commit, newest.manifest_path)
        name = cron.slot_name(slot)
        jobs = new_jobs(repo, info, file, ref=newest.ref, source="schedule", rerun=f"schedule:{name}")
        reason = f"{newest.manifest_path} at {name}"
        event = NewEvent("schedule", repo.id, repo.name, "job", reason, ref=newest.ref, new=newest.commit)
        if sender.store.record_slot(newest, slot, event, jobs, sender.now()):
            events.announce(sender, jobs)


def default_ref(place: events.Place, heads: Mapping[str, str]) -> str:
    """The remote's default branch; where it names none that is there, a usual one or the only one."""
    if not heads:
        return ""
    named = git.default_branch(place.url, credential=place.credential, allow_file=place.local)
    branches = [ref for ref in heads if ref.startswith(triggers.BRANCH) and not triggers.ignored_ref(ref)]
    wanted = [ref for ref in (named, *_USUAL) if ref in heads]
    return (wanted or (branches if len(branches) == 1 else [""]))[0]
