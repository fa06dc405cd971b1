"""One node's part in the gang barrier: say ready, prove that it meets the others, learn where to meet."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from trainforge.config.errors import NodeFailed
from trainforge.config.messages import LaunchOrder, NodePhase, Order, ProbeOrder, Reached, Ready
from trainforge.executor import rendezvous
from trainforge.executor.journal import Journal
from trainforge.executor.launch import Meeting


class Barrier:
    """`phase` is told when this node is ready. The port stays open until it is time to launch."""

    def __init__(
        self, rank: int, journal: Journal, advertise: list[str], phase: Callable[[NodePhase], None]
    ) -> None:
        self.rank = rank
        self.journal = journal
        self.advertise = advertise
        self.phase = phase
        self._probed: set[str] = set()
        self._listener: rendezvous.Listener | None = None

    def ready(self) -> None:
        """Ready to train alone."""
        if self.journal.find("ready") is None:
            self.phase("ready")
            self.journal.append("ready", Ready())

    def open(self, port: int, checkpoints: list[str]) -> None:
        """Ready to meet others; rank 0 at `port`, where 0 is any. After a restart at the same one again."""
        said = self.journal.find("ready")
        if said is not None:
            known = Ready.model_validate(said.data)
            self._listener = rendezvous.Listener(known.port, known.nonce)
            return
        try:
            self._listener = rendezvous.Listener(port if self.rank == 0 else 0)
        except OSError as error:
            raise NodeFailed(
                f"port {port} cannot be opened: {error.strerror}", code="rendezvous_unreachable"
            ) from error
        self.phase("ready")
        here = rendezvous.ready(self._listener, self.advertise)
        self.journal.append("ready", here.model_copy(update={"checkpoints": checkpoints}))

    def probe(self, orders: Sequence[Order]) -> None:
        """Try what these orders ask to be tried, each once."""
        for order in orders:
            if isinstance(order.body, ProbeOrder) and order.id not in self._probed:
                self._probed.add(order.id)
                self.journal.append("reached", rendezvous.probe(order.body))

    def meeting(self, order: LaunchOrder) -> Meeting:
        """Where to meet, and the interface that leads there; the port is the training's from now on."""
        self.close()
        said = self.journal.find("reached")
        address = order.master_address
        source = Reached.model_validate(said.data).reached.get(address, "") if said else address
        interface = rendezvous.interface_of(source or rendezvous.source_for(address))
        return Meeting(address, order.master_port, interface, order.resume)

    @staticmethod
    def alone(port: int) -> Meeting:
        """Where several processes of this machine meet that no launcher brings together."""
        try:
            return Meeting("127.0.0.1", rendezvous.alone(port), "lo")
        except OSError as error:
            raise NodeFailed(
                f"port {port} cannot be opened: {error.strerror}", code="rendezvous_unreachable"
            ) from error

    def close(self) -> None:
        if self._listener:
            self._listener.close()
            self._listener = None
