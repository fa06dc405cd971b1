"""The jobs that wait for machines: one planning pass over all of them, then offers and reasons.

Kept in memory, and made again from the database: a job enters when the life cycle says that it is to be
placed, and leaves when it says anything else. Everything here runs in a worker thread.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice

from sqlalchemy.engine import RowMapping

from trainforge.config.errors import TrainForgeError
from trainforge.config.failpoints import failpoint
from trainforge.config.manifest import Manifest
from trainforge.config.messages import PREPARE, RESUME, Repository, RunOrder
from trainforge.config.reasons import kind_of
from trainforge.sender import lifecycle as life
from trainforge.sender import publisher
from trainforge.sender.context import Sender
from trainforge.sender.dispatch import ring_orders
from trainforge.sender.facts import JobFacts
from trainforge.sender.fence import Fence
from trainforge.sender.fit import Need, need_of
from trainforge.sender.gang import Seat
from trainforge.sender.notify import JOBS, job_key
from trainforge.sender.parameters import of_node
from trainforge.sender.planner import Plan, complete, refused_by_all
from trainforge.sender.preview import Line
from trainforge.sender.queue import QueuedJob, QueuePlan, plan_queue

log = logging.getLogger(__name__)
TELL_EVERY_S = 5.0  # what a job waits for may change with every pass; nobody reads that fast
TOLD_AT_ONCE = 2000

Look = tuple[JobFacts, RowMapping, Manifest | None, list[life.Step]]


@dataclass(frozen=True)
class Waiter:
    """A job in the queue; `alone`: it waits for machines and for no other jobs."""

    job: QueuedJob
    version: int
    alone: bool
    until: float | None


def online_for(sender: Sender) -> float:
    """For how long after its last heartbeat an executor counts as there."""
    return max(3 * sender.settings.heartbeat_every, 5.0)


class Placing:
    """`due`: machines or queue may have changed since the last pass."""

    def __init__(self, sender: Sender, look: Callable[[str], Look], fence: Fence) -> None:
        self.due = False
        self._sender, self._look = sender, look
        self._fence = fence
        self._queue: dict[str, Waiter] = {}
        self._entangled: set[str] = set()
        self._needs: dict[Need, Need] = {}
        self._kept: frozenset[str] = frozenset()
        self._told: dict[str, dict[str, str]] = {}
        self._told_all = -TELL_EVERY_S
        sender.line = self.line

    # --- the queue --------------------------------------------------------------------------------------

    def enter(self, facts: JobFacts, row: RowMapping, manifest: Manifest) -> float | None:
        """Until when it may wait, where that is limited."""
        need = _need(manifest, row, facts)
        need = self._needs.setdefault(need, need)  # one object for all jobs that ask for the same
        limit = manifest.timeout.queue
        until = None if limit is None else (row["queued"] or facts.created) + limit
        job = QueuedJob(facts.id, need, row["priority"], facts.created)
        alone = not row["matrix"] and not row["concurrency"]
        waiter = Waiter(job, facts.version, alone, until)
        self.due = self.due or self._queue.get(facts.id) != waiter
        self._queue[facts.id] = waiter
        if not alone:
            self._entangled.add(facts.id)
        return until

    def leave(self, job: str) -> None:
        self._entangled.discard(job)
        if self._queue.pop(job, None) is not None:
            self._told.pop(job, None)
            self.due = True  # what was kept free for it is free for others

    def line(self) -> Line:
        """The queue as it is, for any thread."""
        return Line([waiter.job for waiter in list(self._queue.values())], self._kept)

    def entangled(self) -> set[str]:
        """The waiting jobs whose turn depends on other jobs, too."""
        return set(self._entangled)

    def unsettled(self, versions: Mapping[str, int]) -> list[str]:
        """Of all unfinished jobs those to look at: not who waits for machines alone, unchanged, in time."""
        now = self._sender.now()
        for job in self._queue.keys() - versions.keys():
            self.leave(job)
        return [job for job, version in versions.items() if not self._settled(job, version, now)]

    def _settled(self, job: str, version: int, now: float) -> bool:
        waiter = self._queue.get(job)
        if waiter is None or waiter.version != version or not waiter.alone:
            return False
        return waiter.until is None or now <= waiter.until

    # --- a pass -----------------------------------------------------------------------------------------

    def run(self) -> set[str]:
        """Place what fits; gives the jobs to look at again."""
        self.due = False
        if not self._queue:
            self._needs.clear()
            return set()
        sender, now = self._sender, self._sender.now()
        machines = sender.store.machines(now, online_for(sender))
        jobs = [waiter.job for waiter in self._queue.values()]
        made = plan_queue(jobs, machines, now, held=self._kept)
        self._kept = made.kept
        for job, seats in made.placed.items():
            waiter = self._queue.pop(job)
            self._entangled.discard(job)
            self._told.pop(job, None)
            try:
                self._offer(job, waiter.job.need, seats)
            except TrainForgeError as error:
                log.warning("job %s cannot be placed now: %s", job, error)
        refused = {job.id: why for job in made.waiting if (why := refused_by_all(job.need, machines))}
        for job, why in refused.items():
            self._give_up(job, why)
        self._tell(made)
        return made.placed.keys() | refused.keys()

    def _offer(self, job: str, need: Need, seats: list[Seat]) -> None:
        """Unless something has happened to the job: jobs of one matrix must mind each other, too."""
        sender = self._sender
        facts, row, manifest, steps = self._look(job)
        wanted = manifest is not None and _need(manifest, row, facts) == need
        if manifest is None or not wanted or life.Place() not in steps:
            self.due = True
            return
        made = complete(manifest, need, seats)
        runs = run_orders(sender, row, manifest, made)
        failpoint("14.sender.planned")
        if sender.store.place(facts, made, runs, self._fence.next(), sender.now()):
            failpoint("16.sender.order_stored")
            ring_orders(sender, {placed.executor for placed in made.nodes})
            sender.bell.ring(JOBS, job_key(job))

    def _give_up(self, job: str, why: str) -> None:
        """Every executor that could train the job has refused it."""
        facts, _, _, steps = self._look(job)
        if life.Place() in steps and facts.refused:
            last = facts.attempt.code if facts.attempt else ""
            code = last if kind_of(last) == "elsewhere" else life.REFUSED
            self._sender.store.apply(facts, [life.Decide("failed", code, why)], self._sender.now())

    def _tell(self, made: QueuePlan) -> None:
        """Those who were told nothing yet at once, the others from time to time."""
        now = time.monotonic()
        everybody = now - self._told_all >= TELL_EVERY_S
        if everybody:
            turns = {job: turn for turn, job in enumerate(self._told)}  # who was told last is last
            jobs = sorted(made.waiting, key=lambda job: turns.get(job.id, -1))
            self._told_all = now
        else:
            jobs = [job for job in made.waiting if job.id not in self._told]
        summaries: dict[int, dict[str, str]] = {}
        news: dict[str, dict[str, str]] = {}
        for job in jobs:
            why = made.why(job)
            if id(why) not in summaries:
                summaries[id(why)] = why.summary()
            if self._told.get(job.id) != summaries[id(why)]:
                news[job.id] = summaries[id(why)]
        news = dict(islice(news.items(), TOLD_AT_ONCE))
        if news:
            self._sender.store.tell(news)
            for job_id, words in news.items():
                self._told.pop(job_id, None)
                self._told[job_id] = words
            self._sender.bell.ring(JOBS, *map(job_key, news))


def _need(manifest: Manifest, row: RowMapping, facts: JobFacts) -> Need:
    where = {"repository": row["repository_id"], "ref": row["ref"]}
    return need_of(manifest, row["executors"], facts.refused, **where)


def run_orders(sender: Sender, row: RowMapping, manifest: Manifest, made: Plan) -> dict[int, RunOrder]:
    """What each node of the plan is told to do."""
    repo = sender.store.repository(row["repository_id"])
    url = publisher.clone_url(sender, repo.name) if repo.kind == "builtin" else repo.url
    return {
        placed.rank: RunOrder(
            repository=Repository(id=repo.id, name=repo.name, url=url),
            ref=row["ref"],
            commit=row["commit"],
            manifest_path=row["manifest_path"],
            manifest_blob=row["manifest_blob"],
            project=row["project"],
            nodes=len(made.nodes),
            processes_per_node=made.processes_per_node,
            gpus=list(placed.gpus),
            params=of_node(made.params, made.adjusted, placed.rank),
            overrides=row["overrides"],
            results_branch=manifest.results.branch,
            lease_ttl=sender.settings.lease_ttl,
            session_ends=made.session_ends,
            prepare=row["source"] == PREPARE,
            resume_of=row["rerun_of"] if row["source"] == RESUME else "",
        )
        for placed in made.nodes
    }
