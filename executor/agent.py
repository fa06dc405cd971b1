"""The executor as a whole: its nodes side by side, and the loops that keep it and the sender in step.

Each loop has a thread and one concern: heartbeats keep the leases, claims bring orders (in pull mode), the
pump hands journals over, the door (in push mode) lets the sender in. A loop that cannot reach the sender
tries again; the nodes do not notice.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from trainforge.config import discreet
from trainforge.config.errors import (
    Conflict,
    Forbidden,
    NotFound,
    NotTrusted,
    TrainForgeError,
    Unreachable,
)
from trainforge.config.failpoints import failpoint
from trainforge.config.messages import FencingToken, GitCredential, Heartbeat, NodeKey, RunOrder, StopOrder
from trainforge.config.redact import Redactor
from trainforge.config.result import JobRecord
from trainforge.config.settings import ExecutorSettings
from trainforge.config.settings_load import write_private
from trainforge.config.trust import SigningKey, thumbprint, verify_order
from trainforge.executor.acceptance import Acceptance, OrderRefused
from trainforge.executor.capabilities import load, own_capabilities, own_policy
from trainforge.executor.housekeeping import Housekeeper
from trainforge.executor.identity import ExecutorIdentity, load_key
from trainforge.executor.link import CLAIM_WAIT_S, SenderLink
from trainforge.executor.mailbox import Mailbox
from trainforge.executor.node import Node
from trainforge.executor.orders import OrderBook
from trainforge.executor.restoring import Restoring
from trainforge.executor.spool import Spool
from trainforge.executor.standing import Standing
from trainforge.executor.status import CONNECTION, local_status
from trainforge.executor.telling import told, work
from trainforge.hooks.result_queue import ResultQueues

if TYPE_CHECKING:
    from trainforge.executor.door import Door

__all__ = ["Agent", "local_status"]

log = logging.getLogger(__name__)

LONGEST_PAUSE_S = 30.0
REVIVE_S = 5.0
SPEAK_S = 30.0


class Agent:
    """One executor in one data directory. `start`, then `close`; nothing in it is needed to survive."""

    def __init__(
        self,
        settings: ExecutorSettings,
        identity: ExecutorIdentity | None = None,
        key: SigningKey | None = None,
    ) -> None:
        """With an identity and a key of the caller's none are read or kept."""
        self.identity = identity or ExecutorIdentity.load(settings.data_dir)
        self.settings = settings = settings.model_copy(update={"name": self.identity.name})
        if settings.sender_url:
            self.identity = self.identity.model_copy(update={"sender_url": settings.sender_url})
        self.key = key or load_key(settings.data_dir)
        self.standing = Standing(settings, self.identity, self._rekeyed)
        self.mailbox = None if self.identity.sender_url else Mailbox(self._moved)
        self.link = SenderLink(self.identity, self.key, self._noticed, self.mailbox)
        self.book = OrderBook(settings.data_dir, self._ordered)
        self.nodes: dict[NodeKey, Node] = {}
        discreet.learn(self, Redactor(self.own_secrets))
        self.door: Door | None = None
        self.draining = False
        self._lock = threading.RLock()
        self._closing = threading.Event()
        self._beat = threading.Event()
        self._said = threading.Event()
        self._restoring = Restoring(self)
        self.keeper = Housekeeper(settings)
        self.results = ResultQueues()
        self._ended = threading.Event()
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
        settings = self.settings
        ask, policy = settings.accept == "ask", own_policy(settings)
        return Acceptance(ask, settings.accept_timeout, settings.name, policy, settings.accept_here)

    def push_turn(self, node: NodeKey) -> float:
        return self.link.push_turn(node)

    def credential(self, node: NodeKey) -> GitCredential | None:
        """The sender's for this node's repository, or this executor's own."""
        given = self.link.credential(node)
        if given.password:
            return given
        own = self.settings.git_token.get_secret_value()
        return GitCredential(username=self.settings.git_username, password=own) if own else None

    @property
    def own_secrets(self) -> list[str]:
        """This machine's own credentials, which no job is to show either."""
        own = (self.settings.git_token, self.settings.ngrok_token)
        return [token.get_secret_value() for token in own if token.get_secret_value()]

    def secrets(self, node: NodeKey, token: FencingToken, names: Sequence[str]) -> dict[str, str]:
        return self.link.secrets(node, token, names)

    def record(self, node: NodeKey) -> JobRecord:
        return self.link.record(node)

    def trusted(self) -> bool:
        return self.link.trusted

    def said(self) -> None:
        self._said.set()

    def _noticed(self, problem: TrainForgeError | None) -> None:
        """The sender answers, or does not any more: said once."""
        if problem is None:
            log.info("connected to %s", self.identity.sender_url or self.link.sender)
        elif self.mailbox is not None:  # as is usual between two runs
            log.info("no one-shot sender is here; running jobs go on")
        else:
            log.warning("%s; trying again, running jobs go on", problem.message.rstrip("."))
        words = problem.message if problem else ""
        write_private(self.data_dir / CONNECTION, {"problem": words, "since": time.time()})

    def _rekeyed(self, key: SigningKey) -> None:
        self.key = self.link.key = key
        if self.door:
            self.door.rekeyed(key)

    # --- life ------------------------------------------------------------------------------------------

    def start(self) -> None:
        self.book.tidy()
        Spool(self.data_dir).tidy()
        failpoint("27.executor.adopt")
        for key in self.book.known():
            self._ordered(key)
        if self.settings.connection == "push":
            from trainforge.executor.door import Door  # noqa: PLC0415 - a web server that pull mode never needs

            said = (self.accept, self.node, self._moved, self.mailbox)
            self.door = Door(self.settings, self.identity, self.key, *said)
            self.door.start()
        loops: dict[str, Callable[[], None]] = {"heartbeat": self._heartbeats, "pump": self._pump}
        loops["housekeeping"] = lambda: self.keeper.run(self._closing, self._ended)
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
        for event in (self._beat, self._said, self._ended):
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
        discreet.forget(self)

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
        if why := self.keeper.refuses():
            log.warning("%s is not taken: %s", told(node), why)
            return False
        with self._lock:
            taken = sum(1 for key, other in self.nodes.items() if other.active and key != node)
        return taken < self.settings.max_jobs and not self.draining

    def accept(self, token: str, challenge: str = "") -> str:
        """Verify and store one signed order; returns its id.

        Raises:
            NotTrusted: not a fresh order of our sender for us. Conflict, Unreachable: as `OrderBook.accept`.
            OrderRefused: the machine's owner does not allow it.
        """
        order = verify_order(
            token,
            sender=self.identity.sender,
            keys=self.identity.sender_keys,
            executor=self.identity.executor,
            now=time.time(),
            challenge=challenge,
        )
        if isinstance(order.body, RunOrder) and not self.book.read(order.node):
            try:
                self.acceptance.check_order(order.body)
            except Forbidden as error:
                raise OrderRefused(order.id, error) from error
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
                    self._ended.set()
                elif time.monotonic() - node.begun > REVIVE_S:
                    self.nodes[key] = Node(key, self.book, self)
                    self.nodes[key].start()

    # --- loops -----------------------------------------------------------------------------------------

    def _heartbeats(self) -> None:
        said = ""
        while not self._closing.is_set():
            self._beat.clear()
            try:
                self.standing.look_for_key()
                self._heartbeat()
                said = ""
            except (Unreachable, NotTrusted) as error:  # said by `_noticed`
                if self.standing.refused(error):
                    self._end_removed()
            except TrainForgeError as error:
                if self.standing.refused(error):
                    self._end_removed()
                elif error.message != said:
                    log.warning("heartbeat: %s", error)
                said = error.message
            if self.mailbox is not None and self.mailbox.forsaken():
                self._end_forsaken()
            self._beat.wait(self.settings.heartbeat_every)
        with contextlib.suppress(TrainForgeError):
            self._heartbeat()  # draining now: the sender need not wait to see that nobody is here

    def _heartbeat(self) -> None:
        failpoint("22.executor.heartbeat")
        settings, nodes = self.settings, list(self.nodes.values())
        held = {gpu for node in nodes if node.active for gpu in node.order.gpus}
        reply = self.link.heartbeat(
            Heartbeat(
                capabilities=own_capabilities(settings, held),
                load=load(settings, held),
                nodes=[node.key for node in nodes if not node.forgotten],
                endpoint=self.door.url if self.door else "",
                endpoint_seq=self.door.seq if self.door else 0,
                draining=self.draining or not self.standing.trusts,
                sender_key=thumbprint(self.identity.sender_key),
            )
        )
        self.standing.heard(reply)
        for key in reply.unknown:
            node = self.node(key)
            if node is not None:
                # After its end that is how a forget order that is still on its way looks.
                level = logging.WARNING if node.active and not node.fenced else logging.DEBUG
                log.log(level, "%s: the sender no longer knows it", told(key))
                node.abandon()
        self._restoring.begin(reply.missing)

    def _end_removed(self) -> None:
        """The sender counts every node here as lost: end them, and let the program end."""
        self.draining = True
        for node in list(self.nodes.values()):
            node.abandon()

    def _end_forsaken(self) -> None:
        """A one-shot sender that has gone is not coming back: nobody would ever stop what it began."""
        for node in list(self.nodes.values()):
            if node.active:
                log.warning("%s: its one-shot sender has gone", told(node.key))
                node.abandon()

    def _moved(self) -> None:
        """The endpoint has another address: say so at once."""
        self._beat.set()

    def _claims(self) -> None:
        accepted: list[str] = []
        refused: dict[str, str] = {}
        pause = self.settings.poll_interval
        while not self._closing.is_set() and not self.draining:
            try:
                challenge, reply = self.link.claim(accepted, CLAIM_WAIT_S, refused)
            except TrainForgeError as error:
                if not isinstance(error, (Unreachable, NotTrusted)) and not self.standing.refused(error):
                    log.warning("asking for work: %s", error)
                self._closing.wait(pause)
                pause = min(pause * 2, LONGEST_PAUSE_S)
                continue
            pause = self.settings.poll_interval
            refused = {}
            accepted = [
                order for token in reply.orders if (order := self._claimed(token, challenge, refused))
            ]
            if reply.orders and not accepted and not refused:
                self._closing.wait(max(1.0, pause))  # refused: it will be offered again, but not at once

    def _claimed(self, token: str, challenge: str, refused: dict[str, str]) -> str:
        try:
            return self.accept(token, challenge)
        except TrainForgeError as error:
            if isinstance(error, OrderRefused):
                failpoint("19.executor.refuses")
                refused[error.order] = error.message
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
        """One batch of a node's journal; whether there may be more.

        An empty one from time to time: a sender that was restored says that it has less than it had.
        """
        records = node.journal.after(node.acknowledged)
        if node.fenced or not (records or time.monotonic() - node.spoken >= SPEAK_S):
            return False
        node.spoken = time.monotonic()
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
        return node.acknowledged < node.journal.last and (not records or reached >= records[-1].n)


def _unsaid(node: Node) -> bool:
    return not node.fenced and node.acknowledged < node.journal.last
