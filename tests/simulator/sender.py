"""A sender: the production reconciler, placing and event handling over a store, with simulated edges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from simulator.manifests import REPO, manifest_file
from simulator.remote import MAIN, Mirror, Remote, record
from simulator.world import Actor, World
from trainforge.config.errors import Conflict, Forbidden, NotTrusted, TrainForgeError
from trainforge.config.messages import Heartbeat, HeartbeatReply, JournalBatch, NodeKey, Order
from trainforge.config.settings import SenderSettings
from trainforge.hooks.gitread import CommitInfo
from trainforge.hooks.results import swap_in
from trainforge.hooks.triggers import MANIFEST, RefChange
from trainforge.sender import dispatch, events, journals, publisher
from trainforge.sender import lifecycle as life
from trainforge.sender.clock import Jumps
from trainforge.sender.drafts import ManifestFile
from trainforge.sender.events import Place
from trainforge.sender.facts import Result
from trainforge.sender.fence import Fence
from trainforge.sender.reconciler import Reconciler
from trainforge.sender.store_events import Noted

if TYPE_CHECKING:
    from simulator.executor import SimExecutor
    from simulator.promises import Promises

SETTINGS = SenderSettings(data_dir=Path("/nonexistent"), lease_ttl=60, lost_after=120, heartbeat_every=20)
TICK_S, POLL_S = 15.0, 60.0


@dataclass(frozen=True)
class SimPlace(Place):
    """The watched repository, read without git."""

    remote: Any = None

    def refs(self) -> dict[str, str]:
        return self.remote.refs()  # type: ignore[no-any-return]

    def read(self, ref: str, commit: str) -> tuple[CommitInfo, list[ManifestFile]]:
        self.remote.reach()
        when = int(self.remote.times[commit])
        info = CommitInfo(commit, (), "ann", "ann@example.org", when, "Try", "Try")
        return info, [manifest_file(self.remote.manifests[commit])]

    def changed(self, change: RefChange, handled: Mapping[str, str]) -> list[tuple[str, str]]:
        return [("M", MANIFEST)]

    def rewritten(self, change: RefChange, parents: Sequence[str]) -> bool:
        return False


class SimFence(Fence):
    """The file beside the database is a dictionary."""

    def __init__(self, sender: SimSender) -> None:
        self._sender = sender
        super().__init__(sender.store, Path("/nonexistent"), sender.now)

    def _read(self) -> tuple[int, int] | None:
        return self._sender.fence_file

    def _write(self, number: int) -> None:
        self._sender.fence_file = (self.incarnation, number)
        self._sender.durable()


class Results:
    """What `publisher` does with git, by the same swap on a simulated branch."""

    def __init__(self, mirror: Mirror) -> None:
        self._mirror = mirror

    def publish(self, sender: SimSender, job: str) -> tuple[Result, list[Any]]:
        row = sender.store.job(job)
        outcome, path = publisher.outcome_of(row), f"{row['result_path']}/result.json"
        said = record(job=job, outcome=outcome, code=row["code"], reason=row["reason"], by=sender.name)
        push = lambda tip: self._mirror.push(tip, {path: said})  # noqa: E731
        written = swap_in(self._mirror, path, push, pause=lambda seconds: None)
        sender.world.mark("sender-pushed", sender.name, job)
        if written.already and (found := self.look(sender, job)) is not None:
            return found
        return Result(outcome, written.commit, row["code"], row["reason"]), []

    def look(self, sender: SimSender, job: str) -> tuple[Result, list[Any]] | None:
        row = sender.store.job(job)
        tip = self._mirror.fetch_tip()
        data = self._mirror.read(tip, f"{row['result_path']}/result.json") if tip else None
        return publisher.read_result(row, str(tip), data) if data is not None else None


class SimSender(Actor):
    """Stands where the production code expects a `Sender`."""

    def __init__(self, world: World, name: str, remote: Remote, promises: Promises, store: Any) -> None:
        super().__init__(world, name)
        self.remote, self.promises, self.store = remote, promises, store
        self.fence_file: tuple[int, int] | None = None
        self.mirror = Mirror(remote, self)
        self.place = SimPlace(REPO, Path("/nonexistent"), REPO.url, remote=remote)
        self.executors: dict[str, SimExecutor] = {}
        self.restored: list[float] = []
        self.backups: list[tuple[Any, float]] = []
        # The rest is what `Sender` has.
        self.settings, self.data_dir, self.base_url = SETTINGS, Path("/nonexistent"), "http://sender"
        self.bell = SimpleNamespace(ring=self._ring, closed=False)
        self.changed: set[str] = set()
        self.delivered: dict[str, float] = {}
        self.asked: set[str] = set()
        self.stopping = self.machines_changed = False

    def committed(self) -> None:
        """After every transaction."""
        self.promises.look(self)
        self.durable()

    def now(self) -> float:
        return self.wall()

    def replan(self) -> None:
        self.machines_changed = True
        self._turn_soon()

    def wake(self, *jobs: str) -> None:
        self.changed.update(jobs or {""})
        self._turn_soon()

    def _turn_soon(self) -> None:
        if not self._soon:
            self._soon = True
            self.later(0.05, self._reconcile)

    def _ring(self, *keys: str) -> None:
        for key in keys:
            if key.startswith("orders:") and (executor := self.executors.get(key.removeprefix("orders:"))):
                self.later(0.01, lambda executor=executor: self._deliver(executor))  # type: ignore[misc]

    # --- life -------------------------------------------------------------------------------------------

    def begin(self) -> None:
        self.changed, self._soon, self._busy = set(), False, set[str]()
        self._pushing: set[str] = set()
        self._not_before: dict[str, float] = {}
        jumps = Jumps(self, wall=self.wall, steady=lambda: self.world.now)  # type: ignore[arg-type]
        results = Results(self.mirror)
        self.reconciler = Reconciler(self, SimFence(self), jumps, results)  # type: ignore[arg-type]
        jumps.begin()
        self.later(0.1, self._tick)
        self.later(0.2, self._poll)

    def _tick(self) -> None:
        self.later(TICK_S, self._tick)
        self.wake()
        for executor in self.executors.values():
            if executor.push_mode:
                self._deliver(executor)

    def _poll(self) -> None:
        self.later(POLL_S, self._poll)
        self._look("poll")

    def _look(self, source: str) -> None:
        """As `events.handle_hint`."""
        self.world.meanwhile(self)
        try:
            if self.parted:
                return
            events.handle_refs(self, self.place, self.place.refs(), source)  # type: ignore[arg-type]
        except TrainForgeError as error:
            self.world.note(self.name, f"cannot look: {error}")

    def webhook(self, delivery: str, commit: str, before: str) -> str:
        """As `webhooks.on_github`."""
        if not self.store.first_delivery(
            "github", delivery, self.now(), Noted(REPO.id, MAIN, before, commit)
        ):
            return "known"
        self.later(self.world.rng.uniform(0, 2), lambda: self._look("webhook"))
        self.world.mark("acked", self.name, commit)
        return "accepted"

    # --- deciding ---------------------------------------------------------------------------------------

    def _reconcile(self) -> None:
        """As `Reconciler.run`, one turn."""
        self._soon = False
        changed, self.changed = self.changed, set()
        placing = self.reconciler.placing
        if self.machines_changed:
            self.machines_changed, placing.due = False, True
        jobs = sorted(changed - {""})
        if "" in changed:
            placing.due = True
            jobs = placing.unsettled(self.store.versions())
        for job in jobs:
            try:
                done = self.reconciler.take(job)
            except Conflict as error:
                self.world.broken(f"{job} cannot go on: {error}")
            if done.freed:
                self.reconciler.freed()
            if done.remote is not None:
                self._begin_remote(job, done.remote)
        if placing.due and (placed := placing.run()):
            self.wake(*placed)
            for job in sorted(placed):
                self.world.mark("placed", self.name, job)

    def _begin_remote(self, job: str, step: life.RemoteStep) -> None:
        if job not in self._busy and self.world.now >= self._not_before.get(job, 0.0):
            self._busy.add(job)
            self.later(self.world.rng.uniform(0.05, 1.0), lambda: self._remote(job, step))

    def _remote(self, job: str, step: life.RemoteStep) -> None:
        """As `Reconciler._do_remote`."""
        try:
            self.reconciler.settle(job, step)
        except TrainForgeError as error:
            pause = self.reconciler.unsettled(job, error)
            self._not_before[job] = self.world.now + pause
            self.later(pause, lambda: self.wake(job))
        else:
            self.wake(job)
        self._busy.discard(job)

    # --- executors' requests ----------------------------------------------------------------------------

    def _member(self, executor: str) -> Any:
        member = self.store.member(executor)
        if member is None:
            raise NotTrusted("no such executor has joined this sender")
        if member.revoked:
            raise Forbidden("this executor was removed from the sender")
        return member

    def on_heartbeat(self, executor: str, beat: Heartbeat) -> HeartbeatReply:
        """As `registry.heartbeat`."""
        self._member(executor)
        before, ttl = self.store.leases(), self.settings.lease_ttl
        unknown, changed = self.store.heartbeat(executor, beat, self.now(), ttl)
        self.promises.leases(self, executor, before)
        if changed:
            self.replan()
        return HeartbeatReply.model_construct(unknown=unknown, lease_ttl=ttl)

    def on_claim(self, executor: str, accepted: list[str]) -> list[Order]:
        self._member(executor)
        self._accepted(executor, accepted)
        return self.store.open_orders(executor)  # type: ignore[no-any-return]

    def _accepted(self, executor: str, orders: list[str]) -> None:
        done = (
            self.store.accept_orders(executor, orders, self.now(), self.settings.lease_ttl) if orders else []
        )
        if done:
            self.wake(*{job for job, _ in done})

    def on_journal(self, executor: str, key: NodeKey, batch: JournalBatch) -> int:
        """As `executor_api.journal`."""
        self._member(executor)
        before = self.store.leases()
        stored = self.store.append_journal(executor, key, batch, self.now(), self.settings.lease_ttl)
        self.promises.spoken(self, key, batch.token, before)
        if stored.intake is not None:
            journals.announce(self, key, stored.intake, first=batch.after == 0)  # type: ignore[arg-type]
        return stored.acknowledged  # type: ignore[no-any-return]

    def on_record(self, executor: str, key: NodeKey) -> dict[str, Any]:
        """As `publisher.record_of`, what of it matters."""
        self._member(executor)
        self.store.check_node(executor, key)
        row = self.store.job(key.job)
        said = {
            "job": key.job,
            "outcome": publisher.outcome_of(row),
            "code": row["code"],
            "reason": row["reason"],
        }
        return {**said, "path": row["result_path"]}

    # --- delivering -------------------------------------------------------------------------------------

    def _deliver(self, executor: SimExecutor) -> None:
        """To executors that poll this is the end of the long poll; to others, a POST for each order."""
        if not executor.push_mode:
            executor.poke()
            return
        row = self.store.member(executor.name)
        if row.revoked or executor.name in self._pushing:
            return
        for order in self.store.open_orders(executor.name):
            self._pushing.add(executor.name)
            self._post(executor, order)

    def _post(self, executor: SimExecutor, order: Order) -> None:
        def failed(error: TrainForgeError) -> None:
            self._pushing.discard(executor.name)
            if isinstance(error, Conflict | Forbidden):
                self.world.note(self.name, f"{executor.name} refuses {order.id}: {error}")
                if dispatch.too_late(order, error.status):
                    self.store.close_order(executor.name, order.id, self.now())
                    return
                self.store.refuse_order(executor.name, order.id, str(error), self.now())
                self.wake(order.node.job)

        def answered(stored: str) -> None:
            self._pushing.discard(executor.name)
            self._accepted(executor.name, [stored])

        self.world.call(self, executor, lambda: executor.accept(order), answered, failed)

    # --- what people do to it ---------------------------------------------------------------------------

    def cancel(self, job: str) -> None:
        try:
            self.store.request_stop(job, "stopped", "by a person", self.now())
        except TrainForgeError:
            return
        self.world.note(self.name, f"{job[:6]} is to be stopped")
        self.wake(job)

    def back_up(self) -> None:
        self.backups.append((self.store.backup(), self.world.now))
        self.world.note(self.name, "its database is backed up")

    def restore(self, *, keep_file: bool) -> None:
        """An old copy of the database takes the place of the newest."""
        if not self.backups:
            return
        backup, when = self.world.rng.choice(self.backups)
        self.die(self.world.rng.uniform(10, 120))
        self.store.restore(backup)
        if not keep_file:
            self.fence_file = None
        self.world.note(
            self.name, f"a backup is restored, {'with' if keep_file else 'without'} the fence file"
        )
        self.restored.append(when)
        self.promises.restored(self, when)
