"""Brings every unfinished job forward: read its facts, ask the life cycle, apply the steps, again.

Steps that change only the database are applied at once; jobs to be placed wait in `placing` for one pass
over all of them; what talks to a remote runs beside, one task per job, and comes back as a fact. Nothing
here is needed to recover: a restarted reconciler sees the same facts.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

from sqlalchemy.engine import RowMapping

from trainforge.config.errors import TrainForgeError
from trainforge.config.manifest import Manifest
from trainforge.hooks.gitrun import GitAuthFailed, GitBlocked, GitNotFound, GitUnreachable
from trainforge.sender import lifecycle as life
from trainforge.sender import publisher, turns
from trainforge.sender.batches import Batches
from trainforge.sender.clock import Jumps
from trainforge.sender.context import Sender
from trainforge.sender.dispatch import ring_orders
from trainforge.sender.due import Due
from trainforge.sender.facts import JobFacts, Policy
from trainforge.sender.fence import Fence
from trainforge.sender.notify import JOBS, RECONCILE, job_key
from trainforge.sender.pace import push_turn
from trainforge.sender.placing import Placing

log = logging.getLogger(__name__)
T = TypeVar("T")
LOOK_EVERY_S = 5.0  # leases end and offers expire without anybody ringing
MAX_ROUNDS = 50
LOOKS_AT_ONCE = 200
PASS_REST = 4  # so that planning a large fleet takes no more than a fifth of the time
SIDE_BY_SIDE = 8  # looks; each mostly waits for its commit, which they share
REMOTES_AT_ONCE = 8
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 60.0
MISSING_TRIES = 6  # a copy of the remote may be some seconds behind
SOON_S = 1.0
TOGETHER = "its result goes with the next push of results to this repository"
REFUSED_TRIES = 6  # a refused credential may be a mistake that somebody mends within some minutes


@dataclass(frozen=True)
class Round:
    """What one look at a job led to: whether to look again at once, whether machines may have become
    free, and what is to be done with the remote."""

    again: bool = False
    freed: bool = False
    remote: life.RemoteStep | None = None


def _in_turns(jobs: list[str]) -> list[list[str]]:
    """Not so many at a time that the first would wait long for machines; one turn where there are none."""
    return [jobs[begin : begin + LOOKS_AT_ONCE] for begin in range(0, len(jobs) or 1, LOOKS_AT_ONCE)]


class Reconciler:
    """`results` reaches the remotes: `publish`, `publish_together` and `look` of `publisher.py`."""

    def __init__(
        self, sender: Sender, fence: Fence | None = None, jumps: Jumps | None = None, results: Any = publisher
    ) -> None:
        self._sender, self._results = sender, results
        self._jumps = jumps or Jumps(sender)
        sender.fence = fence or Fence(sender.store, sender.data_dir / "fence.json")
        self.placing = Placing(sender, self._steps, sender.fence)
        self._remote: dict[str, asyncio.Task[None]] = {}
        self._desks: dict[tuple[str, str], Batches[str, None]] = {}  # by repository and branch
        self._pauses: dict[str, tuple[float, int]] = {}  # job -> (not before, tries)
        self._held: set[str] = set()  # jobs that wait for other jobs
        self._looked: set[str] = set()  # jobs that the remote has no result of, as far as was seen
        self._due = Due()
        self._last_full = -LOOK_EVERY_S
        self._next_pass = 0.0
        self._threads = ThreadPoolExecutor(SIDE_BY_SIDE, "decide")
        self._for_remotes = ThreadPoolExecutor(REMOTES_AT_ONCE, "remote")
        self._looking, self._asking = asyncio.Semaphore(SIDE_BY_SIDE), asyncio.Semaphore(REMOTES_AT_ONCE)

    async def run(self) -> None:
        """Until the sender stops."""
        sender = self._sender
        try:
            await asyncio.to_thread(self._jumps.begin)
            with sender.bell.listen(RECONCILE) as listener:
                while not sender.stopping:
                    for jobs in _in_turns(await self._jobs()):
                        await asyncio.gather(*map(self._look, jobs))
                        if self.placing.due and time.monotonic() >= self._next_pass:
                            await self._place()
                    if not sender.changed:
                        await listener.wait(self._rest())
        finally:
            for task in self._remote.values():
                task.cancel()
            for desk in self._desks.values():
                desk.cancel()
            await asyncio.gather(*self._remote.values(), return_exceptions=True)
            self._threads.shutdown(wait=False)
            self._for_remotes.shutdown(wait=False)

    async def _jobs(self) -> list[str]:
        """Whom to look at: those that changed or are due, or from time to time all."""
        now = time.monotonic()
        changed = self._sender.take_changed()
        if self._sender.machines_changed:
            self._sender.machines_changed, self.placing.due = False, True
        changed |= self._due.take(self._sender.now())
        if "" in changed or now - self._last_full >= LOOK_EVERY_S:
            self._last_full = now
            self.placing.due = True  # machines come and go, and their hours begin and end
            return await self._decide(lambda: self.placing.unsettled(self._sender.store.versions()))
        return sorted(changed | {job for job, (moment, _) in self._pauses.items() if moment <= now})

    def _rest(self) -> float:
        """Seconds until something is due without anybody ringing."""
        now = time.monotonic()
        moments = [moment for job, (moment, _) in self._pauses.items() if job not in self._remote]
        if self.placing.due:
            moments.append(self._next_pass)
        if (due := self._due.first()) is not None:
            moments.append(now + due - self._sender.now())
        return max(min([self._last_full + LOOK_EVERY_S, *moments]) - now, 0.01)

    async def _in(self, threads: ThreadPoolExecutor, work: Callable[..., T], *said: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(threads, work, *said)

    async def _decide(self, work: Callable[..., T], *said: Any) -> T:
        """In threads that no request takes: decisions must not queue behind the heartbeats of a fleet."""
        return await self._in(self._threads, work, *said)

    async def _look(self, job: str) -> None:
        try:
            async with self._looking:
                await self.advance(job)
        except TrainForgeError as error:
            log.warning("job %s cannot go on now: %s", job, error)
        except Exception:
            log.exception("job %s cannot go on", job)  # one job's bug must not hold up the others

    async def _place(self) -> None:
        """One planning pass over all jobs that wait for machines; then a rest, the longer it took."""
        begun = time.monotonic()
        try:
            placed = await self._decide(self.placing.run)
        except Exception:  # what runs has to be looked after, whatever keeps others from being placed
            log.exception("planning failed")
        else:
            if placed:
                self._sender.wake(*placed)
        now = time.monotonic()
        self._next_pass = now + min(PASS_REST * (now - begun), LOOK_EVERY_S)

    async def advance(self, job: str) -> None:
        """Take the job as far as its facts allow."""
        done = await self._decide(self.take, job)
        if done.freed:
            self.freed()
        if done.remote is not None:
            self._begin_remote(job, done.remote)

    def freed(self) -> None:
        """A job has left its machines, or its turn in a matrix or group: for those it matters to."""
        self.placing.due = True
        if waiting := self._held | self.placing.entangled():
            self._sender.wake(*waiting)

    # --- in a worker thread -----------------------------------------------------------------------------

    def take(self, job: str) -> Round:
        """Look and apply until nothing follows any more; what all of it led to."""
        freed = False
        for _ in range(MAX_ROUNDS):
            done = self._round(job)
            freed = freed or done.freed
            if not done.again:
                return replace(done, freed=freed)
        log.error("job %s does not come to rest", job)
        return Round(freed=freed)

    def _round(self, job: str) -> Round:
        """One look, and its steps."""
        sender = self._sender
        self._jumps.settle()
        facts, row, manifest, steps = self._steps(job)
        if life.Place() not in steps:
            self.placing.leave(job)
        self._held.discard(job)
        self._due.put(job, None)
        outside = [step for step in steps if isinstance(step, life.Wait | life.Place | life.RemoteStep)]
        inside = [step for step in steps if step not in outside]
        if inside:
            told = sender.store.apply(facts, inside, sender.now())
            ring_orders(sender, told or [])
            sender.bell.ring(JOBS, job_key(job))
            freed = any(isinstance(step, life.Finish | life.Decide | life.MarkAttempt) for step in inside)
            return Round(again=True, freed=freed)
        if not outside:
            return Round()
        first = outside[0]
        if isinstance(first, life.Place) and self._may_have_ended(facts):
            return Round(remote=life.FindResult("", ""))
        if isinstance(first, life.Wait):
            self._held.add(job)
            if not first.held:
                self._due.put(job, turns.rests_until(facts, self._policy(manifest)))
            if sender.store.wait(job, first.reasons, held=first.held):
                sender.bell.ring(JOBS, job_key(job))
            return Round()
        if isinstance(first, life.Place):
            if manifest is not None:
                self._due.put(job, self.placing.enter(facts, row, manifest))
            return Round()
        return Round(remote=first)

    def _steps(self, job: str) -> tuple[JobFacts, RowMapping, Manifest | None, list[life.Step]]:
        facts, row = self._sender.store.facts(job)
        manifest = publisher.manifest_of(row)
        if manifest is None and not facts.manifest_problem:
            facts = replace(facts, manifest_problem="the manifest can no longer be used")
        return facts, row, manifest, life.next_steps(facts, self._policy(manifest), self._sender.now())

    def _policy(self, manifest: Manifest | None) -> Policy:
        settings = self._sender.settings
        if manifest is None:
            return Policy(lost_after=settings.lost_after, offer_timeout=settings.lease_ttl)
        return Policy(
            lost_after=settings.lost_after,
            offer_timeout=settings.lease_ttl,
            grace_s=min(manifest.timeout.grace, 3600.0),
            setup_timeout=manifest.timeout.setup,
            queue_timeout=manifest.timeout.queue,
            retry_max=manifest.retry.max,
            retry_on=frozenset(manifest.retry.on),
            max_parallel=manifest.strategy.max_parallel,
            fail_fast=manifest.strategy.fail_fast,
        )

    def _may_have_ended(self, job: JobFacts) -> bool:
        """Whether a later copy of this database may have seen the job's end: the remote knows."""
        fence = self._sender.fence
        return fence is not None and fence.restored and job.attempt is None and job.id not in self._looked

    # --- what talks to a remote -------------------------------------------------------------------------

    def _begin_remote(self, job: str, step: life.RemoteStep) -> None:
        moment, _ = self._pauses.get(job, (0.0, 0))
        if job in self._remote or time.monotonic() < moment or self._sender.stopping:
            return
        task = asyncio.create_task(self._do_remote(job, step), name=f"result of {job}")
        self._remote[job] = task
        task.add_done_callback(lambda _: self._remote.pop(job, None))

    async def _do_remote(self, job: str, step: life.RemoteStep) -> None:
        """Publish or look; the outcome becomes a fact, a failure a pause."""
        sender = self._sender
        try:
            if isinstance(step, life.PublishHere):
                await self._publish(job)
            else:
                async with self._asking:
                    await self._in(self._for_remotes, self.settle, job, step)
        except TrainForgeError as error:
            await asyncio.to_thread(self.unsettled, job, error)
        except Exception as error:  # a bug is told as the reason, and tried again as a remote that is away
            log.exception("the result of job %s", job)
            failed = TrainForgeError(f"TrainForge itself failed: {error}")
            await asyncio.to_thread(self.unsettled, job, failed)
            raise
        if job not in self._pauses:
            sender.wake(job)

    async def _publish(self, job: str) -> None:
        """With the results of other jobs for the same branch, when it is this sender's turn."""
        row = await self._decide(self._sender.store.job, job)
        repository, branch = row["repository_id"], row["result_branch"]
        desk = self._desks.get((repository, branch))
        if desk is None:
            turn = partial(self._turn, repository)
            desk = Batches("publish", self._publish_together, before=turn, threads=self._for_remotes)
            self._desks[repository, branch] = desk
        publishing = asyncio.ensure_future(desk.do(job))
        try:
            done, _ = await asyncio.wait({publishing}, timeout=SOON_S)
            if not done and await self._decide(self._sender.store.wait, job, {"remote": TOGETHER}):
                self._sender.bell.ring(JOBS, job_key(job))
            await publishing
        finally:
            publishing.cancel()

    async def _turn(self, repository: str) -> None:
        while (pause := await self._decide(push_turn, self._sender, repository, self._sender.id)) > 0:  # noqa: ASYNC110
            await asyncio.sleep(pause)

    def _publish_together(self, jobs: Sequence[str]) -> list[Exception | None]:
        """Note what came of each."""
        if len(jobs) == 1:
            self.settle(jobs[0], life.PublishHere())
            return [None]
        try:
            published = self._results.publish_together(self._sender, jobs)
        except GitUnreachable as error:
            return [error] * len(jobs)
        for job, found in zip(jobs, published, strict=True):
            if not isinstance(found, Exception):
                self._sender.store.note_result(job, *found)
                self._pauses.pop(job, None)
        return [found if isinstance(found, Exception) else None for found in published]

    def settle(self, job: str, step: life.RemoteStep) -> None:
        """Publish or look, and note what came of it.

        Raises:
            TrainForgeError: not now, or never: `unsettled` tells.
        """
        if isinstance(step, life.PublishHere):
            found: Any = self._results.publish(self._sender, job)
        else:
            found = self._results.look(self._sender, job)
        if found is not None:
            self._sender.store.note_result(job, *found)
        elif isinstance(step, life.LookAtRemote):
            missing = "the result is said to be published, but it is not on the remote"
            _, tries = self._pauses.get(job, (0.0, 0))
            if tries < MISSING_TRIES:
                raise TrainForgeError(missing)
            self._blame(job, step, life.Blame("lost", missing))
        elif isinstance(step, life.FindResult):
            self._looked.add(job)
            self._blame(job, step, life.Blame(step.code, step.reason))
        self._pauses.pop(job, None)

    def _blame(self, job: str, step: life.RemoteStep, blame: life.Blame) -> None:
        """The remote has no result: hold that against the attempt, unless somebody was heard meanwhile."""
        facts, _, _, steps = self._steps(job)
        if step in steps:
            self._sender.store.apply(facts, [blame], self._sender.now())

    def unsettled(self, job: str, error: TrainForgeError) -> float:
        """Note why; gives the pause before the next try, none where that is not to be."""
        sender = self._sender
        _, tries = self._pauses.get(job, (0.0, 0))
        tries += 1
        refused = isinstance(error, GitAuthFailed | GitNotFound) and tries >= REFUSED_TRIES
        if isinstance(error, GitBlocked) or refused:
            sender.store.note_blocked(job, str(error))
            self._pauses.pop(job, None)
            return 0.0
        pause: float = min(FIRST_PAUSE_S * 2 ** (tries - 1), LONGEST_PAUSE_S) * random.uniform(0.8, 1.2)  # noqa: S311
        self._pauses[job] = (time.monotonic() + pause, tries)
        if sender.store.wait(job, {"remote": error.message}):
            sender.bell.ring(JOBS, job_key(job))
        return pause
