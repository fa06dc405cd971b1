"""One seed: a small fleet, a choice of faults that is its own, and a calm at the end.

Each seed takes some kinds of faults and leaves others out, and drives jobs to a chosen moment to strike
there: faults spread evenly would hardly ever meet in the places that matter.
"""

from __future__ import annotations

import calendar
import logging
from collections.abc import Callable
from typing import Any

from simulator.executor import SimExecutor
from simulator.manifests import BROKEN, REPO
from simulator.promises import Promises
from simulator.remote import Remote
from simulator.sender import SimSender
from simulator.store import ModelStore
from simulator.world import Weather, World
from trainforge.config.errors import TrainForgeError

FAULTS_S = (200.0, 800.0)
CALM_S = 6 * 3600.0
MOMENTS = (
    "acked", "pending", "placed", "accepted-run", "accepted-probe", "accepted-launch", "accepted-stop",
    "started", "ended", "accepted-publish", "pushed", "sender-pushed", "dispatching", "running", "completed",
)  # fmt: skip
_END_OF_MONTH = calendar.timegm((2026, 11, 30, 23, 55, 0))
Make = Callable[["Run", str], Any]


def model_store(run: Run, name: str) -> Any:
    return ModelStore(REPO, lambda: run.senders[name].committed())  # noqa: PLW0108


class Run:
    """A whole simulated life; raises Violation where a promise was broken."""

    def __init__(self, seed: int, make_store: Make = model_store, *, trace: bool = True) -> None:
        logging.disable(logging.CRITICAL)
        self.world = world = World(seed, begin=_END_OF_MONTH - 86_400, keep_trace=trace)
        rng = self.rng = world.rng
        if rng.random() < 0.3:
            world.now = _END_OF_MONTH - rng.uniform(0, 600)
        self.remote = Remote(world)
        self.promises = Promises(world, self.remote)
        self.senders: dict[str, SimSender] = {}
        self.executors: list[SimExecutor] = []
        for number in range(2 if rng.random() < 0.25 else 1):
            name = f"sender{number}"
            sender = SimSender(world, name, self.remote, self.promises, make_store(self, name))
            self.senders[name] = sender
            for index in range(rng.choice((3, 3, 4)) if number == 0 else 2):
                self._add_executor(f"x{number}{index}", sender)
        self.main = self.senders["sender0"]
        self._faults = self._choose()
        self._strikes()

    def _add_executor(self, name: str, home: SimSender) -> None:
        rng = self.rng
        push, jobs = rng.random() < 0.3, rng.choice((1, 1, 2))
        executor = SimExecutor(self.world, name, home, self.remote, push_mode=push, max_jobs=jobs)
        executor.fails = rng.choice((0.0, 0.0, 0.3))
        home.executors[name] = executor
        home.store.add_executor(name, name, executor.capabilities, home.now())
        self.executors.append(executor)

    # --- the choice of faults ---------------------------------------------------------------------------

    def _choose(self) -> list[Callable[[], None]]:
        rng = self.rng
        often = [
            self.kill_sender, self.cut_sender, self.kill_executor, self.cut_executor, self.reboot, self.part,
            self.part_long, self.back_up, self.cancel, self.remote_down, self.lose_answers, self.push,
            self.replay_order, self.replay_journal, self.redeliver, self.part_sender,
        ]  # fmt: skip
        rare = [
            self.restore,
            self.restore,
            self.clock,
            self.revoke,
            self.delete_results,
            self.lie,
            self.block,
            self.long_night,
        ]
        chosen = rng.sample(often, rng.randint(3, 8)) + rng.sample(rare, rng.choice((0, 0, 1, 1, 2)))
        if self.restore in chosen:
            chosen.append(self.back_up)
        bad = rng.random()
        if bad > 0.3:
            self.world.weather = Weather(
                rng.uniform(0, 0.3) * bad, rng.uniform(0, 0.3), rng.choice((0.2, 2, 6))
            )
        return [fault for fault in chosen for _ in range(rng.randint(1, 4))]

    def _strikes(self) -> None:
        """Faults that wait for a job to come to a certain moment."""
        rng = self.rng
        for _ in range(rng.choice((0, 1, 1, 2, 3))):
            moment, nth = rng.choice(MOMENTS), rng.randint(1, 2)
            fault, delay = rng.choice(self._faults), rng.choice((0.0, 0.0, rng.uniform(0, 3)))
            self.world.watchers.append(self._strike(moment, nth, fault, delay))

        for story in (self._torn_push, self._next_month, self._starved_publisher):
            if rng.random() < 0.1:
                story()

    def _torn_push(self) -> None:
        """A sender dies within the first writes after it has acknowledged a push."""

        def tear() -> None:
            self.main.fuse = self.rng.randint(1, 4)

        self.world.watchers.append(self._strike("acked", 1, tear, 0.0))

    def _next_month(self) -> None:
        """A backup of before the first push is restored after the month has ended."""
        world = self.world
        world.now = _END_OF_MONTH - self.rng.uniform(0, 200)
        world.later(0.5, lambda: self._guarded(self.main.back_up))
        world.later(
            self.rng.uniform(320, 600), lambda: self._guarded(lambda: self.main.restore(keep_file=True))
        )

    def _starved_publisher(self) -> None:
        """Who is to publish reaches no remote, then no sender, until another is asked to train."""
        world = self.world

        def watch(moment: str, who: str, about: Any) -> None:
            if moment == "accepted-publish" and not world.calm:
                world.watchers.remove(watch)
                self.remote.down = True
                one = next(executor for executor in self.executors if executor.name == who)
                world.later(6, lambda: setattr(one, "parted_until", world.now + self.rng.uniform(200, 260)))
                world.later(150, self._remote_up)

        world.watchers.append(watch)

    def _strike(self, moment: str, nth: int, fault: Callable[[], None], delay: float) -> Callable[..., None]:
        left = nth

        def watch(seen: str, who: str, about: Any) -> None:
            nonlocal left
            if seen == moment and not self.world.calm:
                left -= 1
                if left == 0:
                    self.world.later(delay, lambda: self._guarded(fault))

        return watch

    def _guarded(self, fault: Callable[[], None]) -> None:
        if not self.world.calm:
            self.world.note("fault", fault.__name__)
            self.world.run(self.main, fault)

    # --- the whole --------------------------------------------------------------------------------------

    def run(self) -> Run:
        world, rng = self.world, self.rng
        for actor in (*self.senders.values(), *self.executors):
            actor.start()
        world.later(rng.uniform(0, 30), self.push)
        for _ in range(rng.randint(0, 2)):
            world.later(rng.uniform(0, 200), self.push)
        end = world.now + rng.uniform(*FAULTS_S)
        moment = world.now
        while moment < end:
            moment += rng.expovariate(1 / 30)
            world.later(moment - world.now, lambda: self._guarded(rng.choice(self._faults)))
        while world.step(end):
            pass
        world.now = max(world.now, end)
        self._heal()
        end = world.now + CALM_S
        while not (self._at_rest() and world.now > end - CALM_S + 130):
            if not world.step(end):
                break
        for sender in self.senders.values():
            self.promises.final(sender)
        return self

    def _at_rest(self) -> bool:
        return all(sender.up and self.promises.at_rest(sender) for sender in self.senders.values())

    def _heal(self) -> None:
        world = self.world
        world.note("fault", "all faults stop")
        world.calm, world.weather = True, Weather()
        self.remote.down, self.remote.lost_answers = False, 0.0
        for actor in (*self.senders.values(), *self.executors):
            actor.fuse, actor.parted_until, actor.skew = 0, 0.0, 0.0
            actor.start()
        for executor in self.executors:
            executor.liar, executor.fails = False, 0.0

    # --- faults -----------------------------------------------------------------------------------------

    def _one(self) -> SimExecutor:
        return self.rng.choice(self.executors)

    def _sender(self) -> SimSender:
        return self.rng.choice(list(self.senders.values()))

    def push(self) -> None:
        if len(self.remote.main) >= 5:
            return
        which = self.rng.choice((0, 0, 0, 1, 1, 2, 3, BROKEN))
        commit = self.remote.commit(which)
        self.world.note(
            "git", f"push of {commit[:8]} (manifest {which}): job {self.promises.job_of(commit)[:6]}"
        )
        self._tell(commit)

    def _tell(self, commit: str) -> None:
        """GitHub's webhook to each sender; one that fails is not sent again."""
        number = self.remote.main.index(commit)
        before = self.remote.main[number - 1] if number else ""
        for sender in self.senders.values():
            serve = lambda s=sender: s.webhook(commit, commit, before)  # noqa: E731
            answered = lambda _, s=sender, n=len(sender.restored): self._acknowledged(s, commit, n)  # noqa: B008, E731
            self.world.call(_Hub(self.world), sender, serve, answered, lambda error: None)

    def _acknowledged(self, sender: SimSender, commit: str, restores: int) -> None:
        if len(sender.restored) == restores:
            self.promises.push_acknowledged(sender, commit)

    def redeliver(self) -> None:
        if self.remote.main:
            self._tell(self.rng.choice(self.remote.main))

    def kill_sender(self) -> None:
        self._sender().die()

    def cut_sender(self) -> None:
        self._sender().fuse = self.rng.randint(1, 12)

    def long_night(self) -> None:
        """A sender that is down for long."""
        self._sender().die(self.rng.uniform(200, 900))

    def kill_executor(self) -> None:
        self._one().die()

    def cut_executor(self) -> None:
        self._one().fuse = self.rng.randint(1, 8)

    def reboot(self) -> None:
        self._one().reboot()

    def part(self) -> None:
        self._one().parted_until = self.world.now + self.rng.uniform(5, 100)

    def part_long(self) -> None:
        self._one().parted_until = self.world.now + self.rng.uniform(150, 500)

    def part_sender(self) -> None:
        self._sender().parted_until = self.world.now + self.rng.uniform(5, 150)

    def back_up(self) -> None:
        self._sender().back_up()

    def restore(self) -> None:
        self._sender().restore(keep_file=self.rng.random() < 0.7)

    def cancel(self) -> None:
        sender = self._sender()
        if sender.up and (jobs := sorted(sender.store.versions())):
            self.world.run(sender, lambda: sender.cancel(self.rng.choice(jobs)))

    def remote_down(self) -> None:
        self.remote.down = True
        self.world.later(self.rng.uniform(10, 300), self._remote_up)

    def _remote_up(self) -> None:
        self.remote.down = False

    def lose_answers(self) -> None:
        self.remote.lost_answers = 0.5

    def revoke(self) -> None:
        if not self.promises.revoked:
            executor = self.rng.choice([one for one in self.executors if one.home is self.main])
            self.promises.revoked.add(executor.name)
            self.main.store.revoke(executor.name, self.main.now())
            self.main.wake()

    def delete_results(self) -> None:
        self.promises.deleted = True
        self.remote.delete_results()

    def lie(self) -> None:
        self._one().liar = True

    def block(self) -> None:
        if self.remote.main and not self.remote.blocked:
            self.remote.blocked = self.promises.job_of(self.rng.choice(self.remote.main))

    def clock(self) -> None:
        actor = self.rng.choice((*self.senders.values(), *self.executors))
        self.promises.clock_set = True
        actor.skew = self.rng.choice((-7200.0, 7200.0, 0.0))

    def replay_order(self) -> None:
        """An order of long ago arrives again."""
        executor = self._one()
        if executor.up and executor.overheard:
            order = self.rng.choice(executor.overheard)

            def again() -> None:
                try:
                    executor.accept(order)
                except TrainForgeError:
                    return

            self.world.run(executor, again)

    def replay_journal(self) -> None:
        executor = self._one()
        if executor.home.up and executor.said_once:
            key, batch = self.rng.choice(executor.said_once)

            def again() -> None:
                try:
                    executor.home.on_journal(executor.name, key, batch)
                except TrainForgeError:
                    return

            self.world.run(executor.home, again)


class _Hub(SimExecutor):
    """Whoever calls from outside."""

    def __init__(self, world: World) -> None:
        self.world, self.name, self.life, self.up = world, "git host", 0, True
        self.parted_until = self.skew = 0.0
        self.fuse = 0

    def wall(self) -> float:
        return self.world.now
