"""Planted bugs: each replaces one decision by a wrong one that somebody might well have written."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

from simulator import executor, members, sender, store
from simulator.remote import Remote
from simulator.store import ModelStore
from trainforge.config.messages import PublishOrder, StopOrder
from trainforge.executor import link, orders
from trainforge.hooks.gitrun import GitRejected
from trainforge.hooks.results import Written
from trainforge.sender import drafts, facts, fence, lifecycle, placing, reconciler
from trainforge.sender import lifecycle as life
from trainforge.sender.store_journal import Stored

Mutant = Callable[[], AbstractContextManager[Any]]
MUTANTS: dict[str, Mutant] = {}


def mutant(plant: Callable[[], Iterator[None]]) -> Mutant:
    made = contextmanager(plant)
    MUTANTS[plant.__name__] = made
    return made


@mutant
def acknowledged_before_written() -> Iterator[None]:
    """A webhook is answered, and only its delivery id is on disk."""
    real = ModelStore.first_delivery

    def forgets(self: ModelStore, source: str, delivery: str, now: float, push: Any = None) -> bool:
        return real(self, source, delivery, now)

    with patch.object(ModelStore, "first_delivery", forgets):
        yield


@mutant
def head_marked_before_jobs() -> Iterator[None]:
    """The head counts as handled in a transaction of its own, before that of its jobs."""

    def torn(self: ModelStore, event: Any, jobs: Any, now: float) -> Any:
        if self.heads_.get(event.ref, "") != event.old:
            return None
        self.heads_[event.ref] = event.new
        self.pushes.pop((event.ref, event.new), None)
        self._done()
        return self._add_event(event, jobs, now)

    with patch.object(ModelStore, "record_push", torn):
        yield


@mutant
def random_job_ids() -> Iterator[None]:
    """Ids are drawn, so that making a job twice makes two."""

    def drawn(*_: str, **__: str) -> str:
        return "".join(random.choice("abcdefghijklmnopqrstuvwxyz234567") for _ in range(26))  # noqa: S311

    with patch.object(drafts, "job_id", drawn):
        yield


@mutant
def folder_by_the_clock() -> Iterator[None]:
    """The result's folder has the month in which the job was made, and made again."""
    real = store.job_row
    with patch.object(store, "job_row", lambda job, now: real(replace(job, dated=0.0), now)):
        yield


def _careless(target: Any, record: str, attempt: Any, pause: Any = None) -> Written:
    """`swap_in` that does not look at the tip."""
    for _ in range(20):
        try:
            return Written(attempt(target.fetch_tip()), already=False)
        except GitRejected:
            continue
    raise GitRejected("it moved each time")


@mutant
def no_path_check() -> Iterator[None]:
    """A result is pushed whether or not the job has one."""
    with (
        patch.object(sender, "swap_in", _careless),
        patch.object(executor, "swap_in", _careless),
    ):
        yield


@mutant
def force_push() -> Iterator[None]:
    """Who loses the race overwrites the winner."""
    real = Remote.push

    def forced(self: Remote, old: str | None, new: str, files: dict[str, bytes]) -> None:
        self.forced = True
        real(self, old, new, files)

    with patch.object(Remote, "push", forced):
        yield


@mutant
def believes_the_executor() -> Iterator[None]:
    """What an executor calls published is: nobody looks at the remote."""
    real = reconciler.Reconciler.settle

    def believes(self: Any, job: str, step: Any) -> None:
        if isinstance(step, life.LookAtRemote):
            found = facts.Result("completed", step.commit)
            self._sender.store.note_result(job, found, [])
        else:
            real(self, job, step)

    with patch.object(reconciler.Reconciler, "settle", believes):
        yield


@mutant
def waits_for_a_liar() -> Iterator[None]:
    """A result that is said to be there is waited for, for ever."""
    with patch.object(reconciler, "MISSING_TRIES", 10**9):
        yield


@mutant
def any_token_may_speak() -> Iterator[None]:
    """Journals are taken from whoever was given the node at any time."""
    with patch.object(facts, "may_speak", lambda *_, **__: None):
        yield


@mutant
def any_order_is_new() -> Iterator[None]:
    """An executor takes an order of a node that it has forgotten, or with an older token."""
    with patch.object(orders, "is_new", lambda order, known, **_: all(old.id != order.id for old in known)):
        yield


@mutant
def heartbeat_revives() -> Iterator[None]:
    """A heartbeat renews the lease of an attempt that was given up."""

    def renew(self: ModelStore, name: str, key: Any, until: float) -> bool:
        node = self.nodes.get((key.job, key.attempt, key.rank))
        if node is None or node["executor_id"] != name:
            return False
        node["lease_until"] = until
        return True

    with patch.object(ModelStore, "_renew", renew):
        yield


@mutant
def restored_unnoticed() -> Iterator[None]:
    """An old copy of the database goes on with the incarnation that it knows."""
    with patch.object(fence, "recognise", lambda known, *_: (known or 1, False)):
        yield


@mutant
def lost_at_once() -> Iterator[None]:
    """`lost_after` is ignored: whoever is late with one heartbeat is given up."""
    real = lifecycle._failure
    with patch.object(
        lifecycle, "_failure", lambda node, policy, now: real(node, replace(policy, lost_after=0.0), now)
    ):
        yield


@mutant
def publishes_without_lease() -> Iterator[None]:
    """An executor publishes however long it has not heard of the sender."""
    with patch.object(link, "trust_ends", lambda asked, ttl: asked + 1e9):
        yield


@mutant
def journal_twice() -> Iterator[None]:
    """Records that are stored already are stored again."""

    def all_of_them(batch: Any, acknowledged: int) -> Any:
        return None if batch.after > acknowledged else list(batch.records)

    with patch.object(members, "fresh_records", all_of_them):
        yield


@mutant
def journal_with_gaps() -> Iterator[None]:
    """A batch is taken although the one before it never came."""

    def whatever(batch: Any, acknowledged: int) -> Any:
        return [record for record in batch.records if record.n > acknowledged]

    with patch.object(members, "fresh_records", whatever):
        yield


@mutant
def acknowledged_before_stored() -> Iterator[None]:
    """A batch that cannot be stored yet is acknowledged all the same."""
    real = ModelStore.append_journal

    def hasty(  # noqa: PLR0917
        self: ModelStore, name: str, key: Any, batch: Any, now: float, ttl: float
    ) -> Stored:
        stored = real(self, name, key, batch, now, ttl)
        return Stored(stored.acknowledged + 3, stored.intake)

    with patch.object(ModelStore, "append_journal", hasty):
        yield


@mutant
def retried_beside_the_old_gang() -> Iterator[None]:
    """One rank failed, and the job is tried again while the others still train."""
    with patch.object(lifecycle, "_training", lambda node: False):
        yield


@mutant
def half_a_gang() -> Iterator[None]:
    """A job starts on as many machines as there are."""
    real = placing.complete
    with patch.object(placing, "complete", lambda manifest, need, seats: real(manifest, need, seats[:1])):
        yield


@mutant
def cancelled_at_once() -> Iterator[None]:
    """A stop ends the job in the database, and a completion that is under way comes on top."""

    def at_once(job: Any, policy: Any, now: float) -> list[Any]:
        return [life.Finish("cancelled", job.stop.code, job.stop.reason)]

    with patch.object(lifecycle, "_stop", at_once):
        yield


@mutant
def ended_job_reopened() -> Iterator[None]:
    """What is heard late of a job that has ended changes its state."""
    real = lifecycle.next_steps

    def late(job: Any, policy: Any, now: float) -> list[Any]:
        attempt = job.attempt
        if job.state == "cancelled" and attempt is not None and all(node.ended for node in attempt.nodes):
            return [life.Finish("completed")]
        return real(job, policy, now)

    def read(self: ModelStore) -> dict[str, int]:
        return {row["id"]: row["version"] for row in self.jobs.values()}

    with ExitStack() as stack:
        stack.enter_context(patch.object(lifecycle, "next_steps", late))
        stack.enter_context(patch.object(lifecycle, "is_legal", lambda old, new: True))
        stack.enter_context(patch.object(ModelStore, "versions", read))
        yield


@mutant
def sent_and_forgotten() -> Iterator[None]:
    """An order leaves the outbox when it is handed out, not when it was accepted."""
    real = ModelStore.open_orders

    def once(self: ModelStore, name: str) -> Any:
        handed = real(self, name)
        for order in handed:
            if isinstance(order.body, StopOrder | PublishOrder):
                self.orders[order.id]["closed"] = 0.0
        return handed

    with patch.object(ModelStore, "open_orders", once):
        yield
