"""Publishes again, from the spool, what is not on the remote any more; beside everything else."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from trainforge.config.errors import TrainForgeError
from trainforge.config.messages import NodeKey, Order, PublishOrder, RunOrder
from trainforge.config.result import JobRecord
from trainforge.executor.isolating import Walls
from trainforge.executor.job_secrets import JobSecrets
from trainforge.executor.journal import Journal
from trainforge.executor.publishing import Publishing
from trainforge.executor.services import Services
from trainforge.executor.spool import Spool
from trainforge.executor.telling import told

log = logging.getLogger(__name__)
AGAIN_S = 30.0


class Restoring:
    """One result at a time; what failed or is not here is not looked for again at once."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._tried: dict[NodeKey, float] = {}
        self._busy = threading.Lock()

    def begin(self, nodes: Sequence[NodeKey]) -> None:
        """Do what can be done for these nodes, in a thread of its own."""
        now = time.monotonic()
        wanted = [node for node in nodes if now - self._tried.get(node, -AGAIN_S) >= AGAIN_S]
        if wanted and not self._busy.locked():
            self._tried |= dict.fromkeys(wanted, now)
            threading.Thread(target=self._restore, args=(wanted,), name="restoring", daemon=True).start()

    def _restore(self, nodes: Sequence[NodeKey]) -> None:
        with self._busy:
            for node in nodes:
                kept = Spool(self._services.data_dir).find(node.job)
                if kept is None:
                    log.warning("%s: its result is gone from the remote, and is not kept here", told(node))
                    continue
                try:
                    self._publish(node, kept)
                except (TrainForgeError, OSError, ValueError) as error:
                    log.warning("%s: its result cannot be published again: %s", told(node), error)
                else:
                    log.info("%s: its result was gone from the remote, and is published again", told(node))

    def _publish(self, node: NodeKey, kept: Path) -> None:
        orders = [
            Order.model_validate_json(line) for line in (kept / "orders.jsonl").read_bytes().splitlines()
        ]
        order, token = orders[0].body, orders[0].token
        record = JobRecord.model_validate_json((kept / "record.json").read_bytes())
        assert isinstance(order, RunOrder)  # noqa: S101 - nothing else opens a node
        secrets = JobSecrets(node, lambda: token, self._services.secrets, self._services.own_secrets)
        journal = Journal(kept / "journal.jsonl")
        try:
            Publishing(
                key=node,
                folder=kept,
                order=order,
                publish=PublishOrder(outcome=record.outcome, code=record.code, reason=record.reason[:8000]),
                manifest=None,
                journal=journal,
                services=self._services,
                secrets=secrets,
                walls=Walls(kept, self._services.settings),
            ).again()
        finally:
            journal.close()
            secrets.close()
