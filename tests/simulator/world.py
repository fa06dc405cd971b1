"""Virtual time, one queue of events, a network that loses things, and the trace of what happened.

Nothing here waits, reads a clock or draws from anything but the seed: the same seed is the same run.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from trainforge.config.errors import TrainForgeError, Unreachable

TIMEOUT_S = 20.0


class Killed(BaseException):
    """A process is gone between two durable writes; nothing but the event loop may catch this."""

    def __init__(self, actor: Actor) -> None:
        super().__init__(actor.name)
        self.actor, self.life = actor, actor.life

    def settle(self) -> None:
        if self.actor.life == self.life:
            self.actor.die()


class Violation(AssertionError):  # noqa: N818
    """A promise was broken."""


class Actor:
    """A program on a machine. `life` counts its starts: what an earlier life had planned is void."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        self.life, self.up = 0, False
        self.fuse = 0  # durable writes until it is killed; 0 is never
        self.parted_until = 0.0
        self.skew = 0.0  # of its wall clock

    def begin(self) -> None:
        """What the program does when it starts."""
        raise NotImplementedError

    def start(self) -> None:
        if not self.up:
            self.life, self.up = self.life + 1, True
            self.world.note(self.name, "starts")
            self.world.run(self, self.begin)

    def die(self, pause: float = 0.0) -> None:
        """As by kill -9; it is started again."""
        if self.up:
            self.up, self.fuse = False, 0
            self.life += 1
            self.world.note(self.name, "is killed")
            self.world.later(pause or self.world.rng.uniform(1, 90), self.start)

    def durable(self) -> None:
        """Something of this program is on disk now: a place to be killed at."""
        if self.fuse:
            self.fuse -= 1
            if not self.fuse:
                raise Killed(self)

    def later(self, delay: float, act: Callable[[], None]) -> None:
        """Do it then, if this life lasts until then."""
        life = self.life
        self.world.later(delay, lambda: self.world.run(self, act) if self.life == life else None)

    @property
    def parted(self) -> bool:
        return self.world.now < self.parted_until

    def wall(self) -> float:
        return self.world.now + self.skew


@dataclass
class Weather:
    """How bad the network is: chances of loss, doubling, and the longest delay."""

    drop: float = 0.0
    double: float = 0.0
    delay: float = 0.2


@dataclass
class World:
    seed: int
    begin: float = 0.0
    rng: random.Random = field(init=False)
    now: float = field(init=False)
    weather: Weather = field(default_factory=Weather)
    calm: bool = False  # faults have stopped
    keep_trace: bool = True
    trace: deque[str] = field(default_factory=lambda: deque(maxlen=4000))
    moments: Counter[str] = field(default_factory=Counter)
    watchers: list[Callable[[str, str, Any], None]] = field(default_factory=list)
    _queue: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    _count: int = 0
    _depth: int = 0

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)  # noqa: S311
        random.seed(self.seed)  # the jitter of the production code
        self.now = self.begin

    def note(self, who: str, text: str) -> None:
        if self.keep_trace:
            self.trace.append(
                f"{datetime.fromtimestamp(self.now, UTC):%d %H:%M:%S.%f}"[:-4] + f"  {who:<9} {text}"
            )

    def mark(self, moment: str, who: str, about: Any = None) -> None:
        """A phase of somebody's life, at which faults may wait for their turn."""
        self.moments[moment] += 1
        for watcher in list(self.watchers):
            watcher(moment, who, about)

    def broken(self, promise: str) -> None:
        self.note("PROMISE", promise)
        raise Violation(promise)

    # --- time -------------------------------------------------------------------------------------------

    def later(self, delay: float, act: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._queue, (self.now + delay, self._count, act))

    def run(self, actor: Actor, act: Callable[[], None]) -> None:
        try:
            act()
        except Killed as killed:
            killed.settle()

    def step(self, until: float) -> bool:
        """The next event; False when there is none before `until`."""
        if not self._queue or self._queue[0][0] > until:
            return False
        moment, _, act = heapq.heappop(self._queue)
        self.now = max(self.now, moment)
        act()
        return True

    def meanwhile(self, actor: Actor, chance: float = 0.2) -> None:
        """Others may act while a thread of `actor` is at work; it may be gone afterwards."""
        if self.calm or self._depth > 1 or self.rng.random() > chance:
            return
        life = actor.life
        self._depth += 1
        try:
            end = self.now + self.rng.uniform(0.1, 4.0)
            for _ in range(self.rng.randint(1, 12)):
                if not self.step(end):
                    break
        finally:
            self._depth -= 1
        if actor.life != life:
            gone = Killed(actor)
            gone.life = life
            raise gone

    # --- the network ------------------------------------------------------------------------------------

    def call(  # noqa: C901
        self,
        caller: Actor,
        server: Actor,
        serve: Callable[[], Any],
        answered: Callable[[Any], None],
        failed: Callable[[TrainForgeError], None],
    ) -> None:
        """A request that may arrive late, twice or never, and whose answer may be lost."""
        weather, rng, life = self.weather, self.rng, caller.life
        done = False

        def settle(act: Callable[[], None]) -> None:
            nonlocal done
            if not done and caller.life == life:
                done = True
                self.run(caller, act)

        def arrive(again: bool = False) -> None:
            if not server.up or caller.parted or server.parted:
                return
            if abs(caller.skew - server.skew) > 60:
                reply: Any = Unreachable("the clocks are too far apart for proofs to hold")
            else:
                try:
                    reply = serve()
                except TrainForgeError as error:
                    reply = error
                except Killed as killed:
                    killed.settle()
                    return
            if again or rng.random() < weather.drop or caller.parted:
                return
            back: Callable[[], None]
            back = (
                (lambda: failed(reply)) if isinstance(reply, TrainForgeError) else (lambda: answered(reply))
            )
            self.later(rng.uniform(0.01, weather.delay), lambda: settle(back))

        if rng.random() >= weather.drop:
            self.later(rng.uniform(0.01, weather.delay), arrive)
            if rng.random() < weather.double:
                self.later(rng.uniform(0.01, weather.delay * 20), lambda: arrive(again=True))
        self.later(TIMEOUT_S, lambda: settle(lambda: failed(Unreachable("no answer"))))
