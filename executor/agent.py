"""The executor as a whole: its nodes side by side, and the loops that keep it and the sender in step.

Each loop has a thread and one concern: heartbeats keep the leases, claims bring orders (in pull mode), the
pump hands journals over, the door (in push mode) lets the sender in. A loop that cannot reach the sender
tries again; the nodes do not notice.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from trainforge.config import disk
from trainforge.config.errors import (
    Conflict,
    Forbidden,
    NotFound,
    NotTrusted,
    SettingsError,
    TrainForgeError,
    Unreachable,
)
from trainforge.config.failpoints import failpoint
from trainforge.config.messages import GitCredential, Heartbeat, NodeKey, StopOrder
from trainforge.config.result import JobRecord
from trainforge.config.settings import ExecutorSettings
from trainforge.config.settings_load import write_private
from trainforge.config.trust import verify_order
from trainforge.executor.acceptance import Acceptance
from trainforge.executor.capabilities import load, own_capabilities
from trainforge.executor.identity import ExecutorIdentity, load_key
from trainforge.executor.link import CLAIM_WAIT_S, SenderLink
from trainforge.executor.node import Node
from trainforge.executor.orders import OrderBook
from trainforge.executor.status import CONNECTION, local_status
from trainforge.executor.telling import tell_the_terminal, told, work

if TYPE_CHECKING:
    from trainforge.executor.door import Door

__all__ = ["Agent", "local_status", "run_executor"]

log = logging.getLogger(__name__)

LONGEST_PAUSE_S = 30.0
REVIVE_S = 5.0


class Agent:
    """One executor in one data directory. `start`, then `close`; nothing in it is needed to survive."""

    def __init__(self, settings: ExecutorSettings) -> None:
        self.settings = settings
        self.identity = ExecutorIdentity.load(settings.data_dir)
        if settings.sender_url:
            self.identity = self.identity.model_copy(update={"sender_url": settings.sender_url})
        self.key = load_key(settings.data_dir)
        self.link = SenderLink(self.identity, self.key, self._noticed)
        self.book = OrderBook(settings.data_dir, self._ordered)
        self.nodes: dict[NodeKey, Node] = {}
        self.door: Door | None = None
        self.draining = False
        self._lock = threading.RLock()
        self._closing = threading.Event()
        self._beat = threading.Event()
        self._said = threading.Event()
        self._threads: list[threading.Thread] = []

    # --- what nodes need (node.Services) ---------------------------------------------------------------

    @property
    def data_dir(self) -> Path:
        return self.settings.data_dir

    @property
    def advertise(self) -> list[str]:
        return self.settings.advertise

    @property
    def environment_mode(self) -> str:
        return self.settings.environment_mode

    @property
    def allow_file(self) -> bool:
        """A repository named by a path is on this machine: only a sender on this machine may name it."""
        return urlsplit(self.identity.sender_url).hostname in ("127.0.0.1", "localhost", "::1")

    @property
    def acceptance(self) -> Acceptance:
        return Acceptance(self.settings.accept == "ask", self.settings.accept_timeout, self.settings.name)

    def credential(self, node: NodeKey) -> GitCredential | None:
        """The sender's for this node's repository, or this executor's own."""
        given = self.link.credential(node)
        if given.password:
            return given
        own = self.settings.git_token.get_secret_value()
        return GitCredential(username=self.settings.git_username, password=own) if own else None

    def record(self, node: NodeKey) -> JobRecord:
        return self.link.record(node)

    def trusted(self) -> bool:
        return self.link.trusted

    def said(self) -> None:
        self._said.set()

    def _noticed(self, problem: TrainForgeError | None) -> None:
        """The sender answers, or does not any more: said once."""
        if problem is None:
            log.info("connected to %s", self.identity.sender_url)
        else:
            log.warning("%s; trying again, running jobs go on", problem.message.rstrip("."))
        words = problem.message if problem else ""
        write_private(self.data_dir / CONNECTION, {"problem": words, "since": time.time()})

    # --- life ------------------------------------------------------------------------------------------

    def start(self) -> None:
        self.book.tidy()
        failpoint("27.executor.adopt")
        for key in self.book.known():
            self._ordered(key)
        if self.settings.connection == "push":
            from trainforge.executor.door import Door  # noqa: PLC0415 - a web server that pull mode never needs

            self.door = Door(self.settings, self.identity, self.key, self.accept, self.node, self._moved)
            self.door.start()
        loops: dict[str, Callable[[], None]] = {"heartbeat": self._heartbeats, "pump": self._pump}
        if self.settings.connection == "pull":
            loops["claims"] = self._claims
        for name, loop in loops.items():
            thread = threading.Thread(target=self._guarded, args=(name, loop), name=name, daemon=True)
            thread.start()
            self._threads.append(thread)

    def close(self, *, stop_jobs: bool = False, patience: float = 60.0) -> None:
        """Stop talking to the sender; training goes on unless it is to be stopped."""
        self.draining = True
        if stop_jobs:
            self._stop_jobs(patience)
        self._closing.set()
        for event in (self._beat, self._said):
            event.set()
        for node in list(self.nodes.values()):
            node.close()
        for node in list(self.nodes.values()):
            node.join(5)
        if self.door:
            self.door.close()
        for thread in self._threads:
            if thread.name != "claims":  # a claim may wait at the sender for a while yet
                thread.join(5)
        self.link.close()

    def _stop_jobs(self, patience: float) -> None:
        for node in list(self.nodes.values()):
            if node.active:
                node.stop("stopped", "the executor was shut down")
        end = time.monotonic() + patience
        while time.monotonic() < end:
            waiting = [node for node in self.nodes.values() if node.active or _unsaid(node)]
            if not waiting:
                return
            self._closing.wait(0.1)

    def _guarded(self, name: str, loop: Callable[[], None]) -> None:
        """A loop's process boundary: a bug is logged and the loop begins again."""
        while not self._closing.is_set():
            try:
                loop()
            except Exception:
                if not self._closing.is_set():
                    log.exception("%s failed and begins again", name)
                self._closing.wait(1)

    # --- orders and nodes ------------------------------------------------------------------------------

    def _ordered(self, key: NodeKey) -> None:
        with self._lock:
            node = self.nodes.get(key)
            if node is not None and node.is_alive():
                node.wake()
            elif self.book.read(key) and not self._closing.is_set():
                self.nodes[key] = Node(key, self.book, self)
                log.info("%s", work(key, self.nodes[key].order))
                self.nodes[key].start()

    def room(self, node: NodeKey) -> bool:
        if why := disk.low(self.data_dir, self.settings.disk_low):
            log.warning("%s is not taken: %s", told(node), why)
            return False
        with self._lock:
            taken = sum(1 for key, other in self.nodes.items() if other.active and key != node)
        return taken < self.settings.max_jobs and not self.draining

    def accept(self, token: str, challenge: str = "") -> str:
        """Verify and store one signed order; returns its id.

        Raises:
            NotTrusted: not a fresh order of our sender for us. Conflict, Unreachable: as `OrderBook.accept`.
        """
        order = verify_order(
            token,
            sender=self.identity.sender,
            keys=self.identity.sender_keys,
            executor=self.identity.executor,
            now=time.time(),
            challenge=challenge,
        )
        if self.book.accept(order, room=self.room) and isinstance(order.body, StopOrder):
            log.info("%s: to be stopped: %s", told(order.node), order.body.reason or order.body.code)
        failpoint("17.executor.order_stored")
        return order.id

    def node(self, key: NodeKey) -> Node | None:
        with self._lock:
            return self.nodes.get(key)

    def _tend(self) -> None:
        """Drop nodes that are forgotten; revive one whose thread died of a bug, after a pause."""
        with self._lock:
            for key, node in list(self.nodes.items()):
                if node.is_alive() or self._closing.is_set():
                    continue
                if node.forgotten:
                    del self.nodes[key]
                    self._beat.set()
                elif time.monotonic() - node.begun > REVIVE_S:
                    self.nodes[key] = Node(key, self.book, self)
                    self.nodes[key].start()

    # --- loops -----------------------------------------------------------------------------------------

    def _heartbeats(self) -> None:
        said = ""
        while not self._closing.is_set():
            self._beat.clear()
            try:
                self._heartbeat()
                said = ""
            except (Unreachable, NotTrusted):
                pass  # said by `_noticed`
            except TrainForgeError as error:
                if error.message != said:
                    log.warning("heartbeat: %s", error)
                said = error.message
            self._beat.wait(self.settings.heartbeat_every)
        with contextlib.suppress(TrainForgeError):
            self._heartbeat()  # draining now: the sender need not wait to see that nobody is here

    def _heartbeat(self) -> None:
        failpoint("22.executor.heartbeat")
        settings, nodes = self.settings, list(self.nodes.values())
        reply = self.link.heartbeat(
            Heartbeat(
                capabilities=own_capabilities(settings),
                load=load(
                    settings.data_dir, {gpu for node in nodes if node.active for gpu in node.order.gpus}
                ),
                nodes=[node.key for node in nodes if not node.forgotten],
                endpoint=self.door.url if self.door else "",
                endpoint_seq=self.door.seq if self.door else 0,
                draining=self.draining,
            )
        )
        for key in reply.unknown:
            node = self.node(key)
            if node is not None:
                # After its end that is how a forget order that is still on its way looks.
                level = logging.WARNING if node.active else logging.DEBUG
                log.log(level, "%s: the sender no longer knows it", told(key))
                node.abandon()

    def _moved(self) -> None:
        """The endpoint has another address: say so at once."""
        self._beat.set()

    def _claims(self) -> None:
        accepted: list[str] = []
        pause = self.settings.poll_interval
        while not self._closing.is_set() and not self.draining:
            try:
                challenge, reply = self.link.claim(accepted, CLAIM_WAIT_S)
            except TrainForgeError as error:
                if not isinstance(error, (Unreachable, NotTrusted)):
                    log.warning("asking for work: %s", error)
                self._closing.wait(pause)
                pause = min(pause * 2, LONGEST_PAUSE_S)
                continue
            pause = self.settings.poll_interval
            accepted = [order for token in reply.orders if (order := self._claimed(token, challenge))]
            if reply.orders and not accepted:
                self._closing.wait(max(1.0, pause))  # refused: it will be offered again, but not at once

    def _claimed(self, token: str, challenge: str) -> str:
        try:
            return self.accept(token, challenge)
        except TrainForgeError as error:
            log.warning("order refused: %s", error)
            return ""

    def _pump(self) -> None:
        pause = 0.5
        while not self._closing.is_set():
            self._said.wait(REVIVE_S)
            self._said.clear()
            self._tend()
            try:
                while self._hand_all_over():
                    pause = 0.5
            except Unreachable:
                self._closing.wait(pause)
                pause = min(pause * 2, LONGEST_PAUSE_S / 2)
                self._said.set()

    def _hand_all_over(self) -> bool:
        """One batch of each node, so that none waits for another's backlog; whether there may be more."""
        more = [self._hand_over(node) for node in list(self.nodes.values())]
        return any(more)

    def _hand_over(self, node: Node) -> bool:
        """One batch of a node's journal; whether there may be more."""
        records = node.journal.after(node.acknowledged)
        if not records or node.fenced:
            return False
        node.journal.sync()
        try:
            reached = self.link.journal(node.key, node.token(), node.acknowledged, records)
        except Conflict as error:
            log.warning("%s: given up: %s", told(node.key), error)
            node.abandon()
            return False
        except (NotFound, Forbidden, NotTrusted) as error:
            log.warning("%s: the sender does not take its journal: %s", told(node.key), error)
            return False
        node.acknowledge(reached)
        return node.acknowledged < node.journal.last and reached >= records[-1].n


def _unsaid(node: Node) -> bool:
    return not node.fenced and node.acknowledged < node.journal.last


# --- the whole program ----------------------------------------------------------------------------------


@contextlib.contextmanager
def only_one(data_dir: Path) -> Iterator[None]:
    """No two agents in one data directory.

    Raises:
        SettingsError: another one runs.
    """
    data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (data_dir / "agent.lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SettingsError(
                f"an executor already runs in {data_dir}",
                hint="stop it first, or give this one another data directory",
            ) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def run_executor(settings: ExecutorSettings, *, stop_jobs: bool = False) -> None:
    """Serve the sender until SIGTERM or SIGINT. Running training goes on, unless `stop_jobs`.

    Raises:
        SettingsError: not joined yet, or an executor already runs in this data directory.
    """
    tell_the_terminal(debug=settings.debug)
    with only_one(settings.data_dir):
        agent = Agent(settings)
        stopping = threading.Event()
        before = {
            number: signal.signal(number, lambda *_: stopping.set())
            for number in (signal.SIGTERM, signal.SIGINT)
        }
        try:
            agent.start()
            log.info("executor %s, data in %s", settings.name, settings.data_dir)
            while not stopping.wait(3600):
                pass
        finally:
            agent.close(stop_jobs=stop_jobs)
            for number, handler in before.items():
                signal.signal(number, handler)
