"""An executor: its disk, its nodes and its loops, with the production's decisions about orders and ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from simulator.remote import Mirror, Remote, record
from simulator.sender import SETTINGS, SimSender
from simulator.world import Actor, World
from trainforge.config.errors import Conflict, TrainForgeError, Unreachable
from trainforge.config.messages import (
    Capabilities,
    Ended,
    FencingToken,
    ForgetOrder,
    Heartbeat,
    HeartbeatReply,
    JournalBatch,
    LaunchOrder,
    Load,
    NodeKey,
    Order,
    ProbeOrder,
    PublishOrder,
    Record,
    RunOrder,
    StopOrder,
)
from trainforge.executor import agent, endings, link, orders, publishing
from trainforge.executor.supervise import Exit
from trainforge.hooks.gitrun import GitBlocked
from trainforge.hooks.results import swap_in

BATCH = 12
LINES = 6  # of log that each training writes


def machine(host: str, max_jobs: int) -> Capabilities:
    return Capabilities(
        hostname=host, cpu_count=4, memory_bytes=2**34, disk_free_bytes=2**40, max_jobs=max_jobs
    )


@dataclass
class Training:
    """What the supervisor's folder says; it goes on while the executor is down."""

    begun: float
    ends: float
    exit: Exit
    stopping: bool = False
    logged: int = 0


@dataclass
class SimNode:
    """A node's folder."""

    key: NodeKey
    orders: list[Order] = field(default_factory=list)
    journal: list[Record] = field(default_factory=list)
    acknowledged: int = 0
    training: Training | None = None
    record: dict[str, Any] | None = None
    texts: list[tuple[int, str]] = field(default_factory=list)  # number of the record, line
    # Not on disk:
    life: int = 0
    preparing: bool = False
    publishing: bool = False
    sending: bool = False
    spoken: float = 0.0
    abandoned: bool = False
    gone: bool = False

    @property
    def run(self) -> RunOrder:
        return self.orders[0].body  # type: ignore[return-value]

    @property
    def token(self) -> FencingToken:
        return self.orders[-1].token

    def newest(self, kind: type) -> Any:
        return next((order.body for order in reversed(self.orders) if isinstance(order.body, kind)), None)

    def find(self, kind: str) -> Record | None:
        return next((one for one in reversed(self.journal) if one.kind == kind), None)

    @property
    def settled(self) -> bool:
        return self.find("published") is not None or self.find("finished") is not None


class SimExecutor(Actor):
    def __init__(
        self, world: World, name: str, home: SimSender, remote: Remote, *, push_mode: bool, max_jobs: int
    ) -> None:
        super().__init__(world, name)
        self.home, self.remote, self.push_mode, self.max_jobs = home, remote, push_mode, max_jobs
        self.mirror = Mirror(remote, self)
        self.capabilities = machine(name, max_jobs)
        self.liar = False
        self.heard = 0.0  # when it asked what the sender answered last
        self.fails = 0.0  # chance that a training fails by itself
        self.revoked = False
        self.overheard: list[Order] = []  # for replays
        self.said_once: list[tuple[NodeKey, JournalBatch]] = []
        # On disk:
        self.highest = 0
        self.nodes: dict[NodeKey, SimNode] = {}
        self.forgotten: dict[NodeKey, FencingToken | None] = {}
        self.checkpoints: set[str] = set()

    def begin(self) -> None:
        self.trusted_until = 0.0
        self.accepted: list[str] = []
        self._claiming = self._pumping = self._again = False
        self.later(0.1, self._beat)
        if not self.push_mode:
            self.later(0.2, self._claims)
        for node in list(self.nodes.values()):
            self._begin_node(node)
        self._pump_soon()

    # --- loops ------------------------------------------------------------------------------------------

    def _beat(self) -> None:
        self.later(SETTINGS.heartbeat_every, self._beat)
        self._pump_soon()
        self.heartbeat()

    def heartbeat(self) -> None:
        nodes = [key for key, node in self.nodes.items() if not node.gone]
        beat = Heartbeat.model_construct(
            capabilities=self.capabilities,
            load=_LOAD,
            nodes=nodes,
            endpoint="",
            endpoint_seq=0,
            draining=False,
        )
        asked = self.world.now

        def answered(reply: HeartbeatReply) -> None:
            self.trusted_until = max(self.trusted_until, link.trust_ends(asked, reply.lease_ttl))
            self.heard = max(self.heard, asked)
            self.world.meanwhile(self, 0.1)
            for key in reply.unknown:
                if key in self.nodes:
                    self._abandon(self.nodes[key])

        self.world.call(self, self.home, lambda: self.home.on_heartbeat(self.name, beat), answered, _nothing)

    def poke(self) -> None:
        """There is an answer to the long poll."""
        if self.up and not self.push_mode:
            self.later(0.01, self._claim)

    def _claims(self) -> None:
        self.later(20.0, self._claims)
        self._claim()

    def _claim(self) -> None:
        if self._claiming:
            self._again = True
            return
        self._claiming, self._again = True, False
        accepted, self.accepted = self.accepted, []

        def answered(offered: list[Order]) -> None:
            self._claiming = False
            for order in offered:
                try:
                    self.accepted.append(self.accept(order))
                except TrainForgeError as error:
                    self.world.note(self.name, f"refuses {order.id}: {error}")
            if self.accepted or self._again:
                self.later(0.05, self._claim)

        def failed(error: TrainForgeError) -> None:
            self._claiming = False

        serve = lambda: self.home.on_claim(self.name, accepted)  # noqa: E731
        self.world.call(self, self.home, serve, answered, failed)

    # --- orders -----------------------------------------------------------------------------------------

    def accept(self, order: Order) -> str:
        """As `OrderBook.accept` in `Agent.accept`."""
        node = self.nodes.get(order.node)
        known = node.orders if node is not None else []
        if len(self.overheard) < 40:
            self.overheard.append(order)
        new = orders.is_new(
            order, known, forgotten=order.node in self.forgotten, highest=self.highest, nodes=list(self.nodes)
        )
        if not new:
            return order.id
        if node is None and self._active(order.node) >= self.max_jobs:
            raise Unreachable("this executor has no room for another node now", code="busy")
        if order.token.incarnation > self.highest:
            self.highest = order.token.incarnation
            self.durable()
        if node is None:
            node = self.nodes[order.node] = SimNode(order.node)
        node.orders.append(order)
        self.world.note(self.name, f"stores {order.id[:6]}{order.id[26:]}")
        self.durable()
        self.world.mark(f"accepted-{order.body.kind}", self.name, order.node.job)
        self.later(0.02, lambda: self._begin_node(node))
        return order.id

    def _active(self, besides: NodeKey) -> int:
        return sum(node.find("ended") is None for key, node in self.nodes.items() if key != besides)

    # --- a node -----------------------------------------------------------------------------------------

    def _begin_node(self, node: SimNode) -> None:
        """As `Node.run`, from wherever its folder says that it was; called again for each order."""
        if node.gone or self.nodes.get(node.key) is not node:
            return
        if node.life != self.life:
            node.life, node.preparing, node.publishing = self.life, False, False
            node.abandoned = node.sending = False
        if node.find("ended") is not None:
            self._after(node)
        elif node.training is not None:
            self._watch(node)
        elif (stop := self._stop(node)) is not None:
            self._say_ended(node, Ended(code=stop.code, reason=stop.reason))
        elif not node.preparing:
            node.preparing = True
            rng = self.world.rng
            self.later(rng.uniform(1, 40), lambda: self._prepared(node))
        elif node.find("ready") is not None:
            self._meet(node)

    def _stop(self, node: SimNode) -> StopOrder | None:
        if node.abandoned:
            return StopOrder(code="superseded", reason="the sender gave this node to another executor")
        return node.newest(StopOrder)  # type: ignore[no-any-return]

    def _prepared(self, node: SimNode) -> None:
        if node.gone or self._stop(node) is not None or node.find("ended") is not None:
            self._begin_node(node)
            return
        if node.run.nodes == 1:
            self._append(node, "ready", {})
            self._launch(node)
            return
        if node.find("ready") is None:
            self._append(node, "ready", {"addresses": [self.name], "port": 29500, "nonce": "n" * 8})
        self._meet(node)

    def _meet(self, node: SimNode) -> None:
        """As `Barrier`: the probe is answered, the launch obeyed."""
        probe = node.newest(ProbeOrder)
        if probe is not None and node.find("reached") is None and node.key.rank > 0:
            reached = dict.fromkeys(probe.addresses, self.name)
            self._append(node, "reached", {"reached": reached})
        if node.newest(LaunchOrder) is not None:
            self._launch(node)

    def _launch(self, node: SimNode) -> None:
        if node.training is not None:
            return
        now, rng = self.world.now, self.world.rng
        code = 1 if rng.random() < self.fails else 0
        ends = now + rng.uniform(10, 150)
        self.home.promises.started(self, node)
        node.training = Training(now, ends, Exit(code, started=now, ended=ends))
        self.durable()
        self.world.note(self.name, f"trains {node.key}")
        self._append(node, "started", {"argv": ["t.py"], "processes": 1, "pid": 1})
        self.world.mark("started", self.name, node.key.job)
        self._watch(node)

    def _watch(self, node: SimNode) -> None:
        """As `Watch.until_ended`: follow the output, obey a stop, see the exit record."""
        training, now = node.training, self.world.now
        if training is None or node.gone or node.find("ended") is not None:
            return
        stop = self._stop(node)
        if stop is not None and not training.stopping and now < training.ends:
            training.stopping = True
            training.ends = min(training.ends, now + self.world.rng.uniform(0.1, stop.grace_s))
            training.exit = Exit(-15, "stop", started=training.begun, ended=training.ends)
        self._follow(node, training)
        if now >= training.ends:
            self._say_ended(node, self._verdict(node, training.exit))
            return
        step = (training.ends - training.begun) / LINES
        self.later(min(max(training.ends - now, 0.001), step), lambda: self._watch(node))

    def _follow(self, node: SimNode, training: Training) -> None:
        length = max(training.ends - training.begun, 0.001)
        written = min(int((self.world.now - training.begun) / length * LINES), LINES)
        while training.logged < written:
            training.logged += 1
            text = f"{node.key} {node.token.incarnation}-{node.token.number} line {training.logged}"
            node.texts.append((len(node.journal) + 1, text))
            self._append(node, "log", {"rank": 0, "text": text + "\n"})

    def _verdict(self, node: SimNode, done: Exit) -> Ended:
        nodes = node.run.nodes
        ranks = [{"rank": node.key.rank, "world_size": nodes}]
        return endings.ended(
            done, _WORDS, stop=self._stop(node), ranks=ranks, processes=1, world_size=nodes, run_timeout=None
        )

    def reboot(self) -> None:
        """The machine goes down: trainings and all."""
        for node in self.nodes.values():
            if node.training is not None and self.world.now < node.training.ends:
                node.training.ends = self.world.now
                node.training.exit = Exit(None, started=node.training.begun, ended=self.world.now, lost=True)
        self.die()

    def _say_ended(self, node: SimNode, ended: Ended) -> None:
        if node.find("ended") is None:
            self._append(node, "ended", ended.model_dump(mode="json"))
            self.world.note(self.name, f"{node.key} ends {ended.code or 'well'}")
            self.world.mark("ended", self.name, node.key.job)
            if self.liar and not ended.code and node.key.rank == 0:
                lie = {
                    "branch": "trainforge-results",
                    "path": "x",
                    "commit": "0" * 40,
                    "outcome": "completed",
                }
                self._append(node, "published", lie)
        self._after(node)

    def _after(self, node: SimNode) -> None:
        if node.gone:
            return
        if node.abandoned or node.newest(ForgetOrder) is not None:
            self._forget(node)
        elif (publish := node.newest(PublishOrder)) is not None and not node.settled and not node.publishing:
            node.publishing = True
            self.later(self.world.rng.uniform(0.1, 5), lambda: self._publish(node, publish, 0))

    def _forget(self, node: SimNode) -> None:
        node.gone = True
        self.forgotten[node.key] = node.token
        self.durable()
        self.nodes.pop(node.key, None)
        self.world.note(self.name, f"forgets {node.key}")
        self.durable()

    def _abandon(self, node: SimNode) -> None:
        if not node.abandoned:
            self.world.note(self.name, f"{node.key} is not ours any more")
            node.abandoned = True
            self._begin_node(node)

    # --- publishing -------------------------------------------------------------------------------------

    def trusted(self) -> bool:
        return self.world.now < self.trusted_until

    def _still_mine(self, node: SimNode) -> None:
        if node.abandoned:
            raise publishing.LeaseEnded("the sender counts this node as given up")
        if not self.trusted():
            raise publishing.LeaseEnded("the sender was not heard of for too long to publish")

    def _ask(self, serve: Callable[[], Any]) -> Any:
        """A request that a thread waits for."""
        home = self.home
        if self.parted or home.parted or not home.up or abs(self.skew - home.skew) > 60:
            raise Unreachable("the sender cannot be reached")
        return serve()

    def _publish(self, node: SimNode, publish: PublishOrder, number: int) -> None:
        """As `Publishing.run`."""
        if node.gone or node.abandoned or node.settled or node.newest(ForgetOrder) is not None:
            self._after(node)
            return
        try:
            self._once(node)
        except GitBlocked as error:
            self._append(
                node, "finished", {"state": "failed", "code": "publish_blocked", "reason": str(error)}
            )
        except TrainForgeError as error:
            pause = min(10.0, 2.0 ** min(number, 6))
            waiting = {"reason": str(error)[:200], "next_try": self.world.now + pause}
            self._append(node, "publish_waiting", waiting)
            self.later(pause, lambda: self._publish(node, publish, number + 1))
        self._after(node)

    def _once(self, node: SimNode) -> None:
        if node.record is None:
            node.record = self._ask(lambda: self.home.on_record(self.name, node.key))
            self.durable()
        self._still_mine(node)
        self._ask(lambda: self.home._member(self.name))  # the credential is made for this push
        said = {key: node.record[key] for key in ("job", "outcome", "code", "reason")}
        path, data = f"{node.record['path']}/result.json", record(**said, by=str(node.key))

        def attempt(tip: str | None) -> str:
            self._still_mine(node)
            return self.mirror.push(tip, {path: data})

        before = self.remote.ever.get(node.key.job, set()).copy()
        written = swap_in(self.mirror, path, attempt, pause=lambda seconds: None)
        if not written.already:
            self.home.promises.published(self, node, before)
        self.world.mark("pushed", self.name, node.key.job)
        self.durable()
        outcome = said["outcome"]
        published = {
            "branch": "trainforge-results",
            "path": path,
            "commit": written.commit,
            "outcome": outcome,
        }
        self._append(node, "published", published)

    # --- the journal ------------------------------------------------------------------------------------

    def _append(self, node: SimNode, kind: str, data: dict[str, Any]) -> None:
        number = len(node.journal) + 1
        node.journal.append(Record.model_construct(n=number, time=self.wall(), kind=kind, data=data))
        self.durable()
        self._pump_soon()

    def _pump_soon(self) -> None:
        if not self._pumping:
            self._pumping = True
            self.later(0.3, self._pump)

    def _pump(self) -> None:
        self._pumping = False
        for node in list(self.nodes.values()):
            self._hand_over(node)

    def _hand_over(self, node: SimNode) -> None:
        """As `Agent._hand_over`."""
        records = node.journal[node.acknowledged : node.acknowledged + BATCH]
        silent = self.world.now - node.spoken < agent.SPEAK_S and not records
        if silent or node.abandoned or node.gone or (node.sending and node.life == self.life):
            return
        node.sending, node.spoken = True, self.world.now
        batch = JournalBatch.model_construct(token=node.token, after=node.acknowledged, records=records)
        if len(self.said_once) < 40:
            self.said_once.append((node.key, batch))

        def answered(reached: int) -> None:
            self.home.promises.acknowledged(self, node, reached)
            node.sending = False
            if reached != node.acknowledged:
                node.acknowledged = min(reached, len(node.journal))
                self.durable()
            if node.acknowledged < len(node.journal):
                self._pump_soon()

        def failed(error: TrainForgeError) -> None:
            node.sending = False
            if isinstance(error, Conflict):
                self._abandon(node)
            elif not self._pumping:
                self._pumping = True
                self.later(7.0, self._pump)

        serve = lambda: self.home.on_journal(self.name, node.key, batch)  # noqa: E731
        self.world.call(self, self.home, serve, answered, failed)


_LOAD = Load()
_WORDS = endings.Words("", {})


def _nothing(error: TrainForgeError) -> None:
    """It is tried again anyway."""
