"""What every part of a running sender holds: one object, made by `app.py`, found at `app.state.sender`."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from trainforge.config.trust import SigningKey
from trainforge.sender.disk import Disk
from trainforge.sender.keys import Nonces, SenderKeys
from trainforge.sender.logins import Logins
from trainforge.sender.notify import RECONCILE, Bell
from trainforge.sender.pace import Paces
from trainforge.sender.preview import Line
from trainforge.sender.tails import Tails
from trainforge.sender.throttle import Throttle

if TYPE_CHECKING:
    from trainforge.config.settings import SenderSettings
    from trainforge.hooks.github_api import Minted
    from trainforge.sender.fence import Fence
    from trainforge.sender.people import People
    from trainforge.sender.queries import Queries
    from trainforge.sender.store import Store

T = TypeVar("T")
log = logging.getLogger(__name__)


@dataclass
class Sender:
    """`base_url` is where others reach this sender, `local_url` where this machine does."""

    settings: SenderSettings
    store: Store
    keys: SenderKeys
    people: People
    queries: Queries
    logins: Logins = field(default_factory=Logins)
    nonces: Nonces = field(default_factory=Nonces)
    # Who tries join tokens, or signatures of hooks, that do not hold; by address.
    strangers: Throttle = field(default_factory=lambda: Throttle(free=100, longest=60, forget_s=600))
    bell: Bell = field(default_factory=Bell)
    tails: Tails = field(default_factory=Tails)
    clock: Callable[[], float] = time.time
    base_url: str = ""
    local_url: str = ""
    # Jobs that the reconciler should look at, and when each open order was last sent out (monotonic).
    changed: set[str] = field(default_factory=set)
    machines_changed: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)
    delivered: dict[str, float] = field(default_factory=dict)
    # Executors that are asked for a sign of life: their waiting claims are answered at once.
    asked: set[str] = field(default_factory=set)
    line: Callable[[], Line] = Line  # the jobs that wait for machines now
    tasks: set[asyncio.Task[Any]] = field(default_factory=set)
    disk: Disk = field(init=False)
    # Results branches that others than our executors may have moved: repository id and branch.
    moved: set[tuple[str, str]] = field(default_factory=set)
    # Repositories that this sender works for, by the commit that says so there, and those that others do.
    led: dict[str, str] = field(default_factory=dict)
    led_by_others: dict[str, str] = field(default_factory=dict)
    fence: Fence | None = None
    # Tokens for git that Apps made: the sender's by repository, those of machines by job.
    minted: dict[str, Minted] = field(default_factory=dict)
    lent: dict[str, tuple[str, Minted]] = field(default_factory=dict)
    # Each unpacks an upload in a thread of those that requests are served with.
    unpacking: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(2))
    paces: Paces = field(init=False)

    def __post_init__(self) -> None:
        self.paces = Paces(self.settings.pushes_per_minute)
        self.disk = Disk(self.data_dir, self.settings.disk_low)
        self.store.on_full = self.disk.give_up_reserve

    @property
    def key(self) -> SigningKey:
        return self.keys.current

    @property
    def id(self) -> str:
        return self.keys.id

    @property
    def data_dir(self) -> Path:
        return Path(self.settings.data_dir)

    @property
    def mirrors(self) -> Path:
        """Bare repositories of our own, one per watched repository, that user code never touches."""
        return self.data_dir / "mirrors"

    @property
    def git_root(self) -> Path:
        """The repositories that the built-in git server holds."""
        return self.data_dir / "git"

    @property
    def stopping(self) -> bool:
        return self.bell.closed

    def now(self) -> float:
        return self.clock()

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Do something beside the answer to a request; ended with the process."""
        task = asyncio.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self._spawned_ended)
        return task

    def _spawned_ended(self, task: asyncio.Task[Any]) -> None:
        self.tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a side task failed", exc_info=error)

    def replan(self) -> None:
        """Machines came, went or became free: have the jobs that wait for some planned again."""
        self.machines_changed = True
        self.bell.ring(RECONCILE)

    def wake(self, *jobs: str) -> None:
        """Have the reconciler look at these jobs now; without any, at all that have not ended."""
        with self.lock:
            self.changed.update(jobs or {""})
        self.bell.ring(RECONCILE)

    def take_changed(self) -> set[str]:
        """Whom to look at, as `wake` was told since the last call."""
        with self.lock:
            changed, self.changed = self.changed, set()
        return changed
