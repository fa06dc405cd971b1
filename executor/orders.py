"""Accepting orders: verified, not stale, and on disk before anybody is told that they were accepted.

A node is its folder below `nodes/`; `orders.jsonl` in it holds what was accepted. What has been forgotten
leaves its name below `forgotten/`, so that a late copy of its first order does not start it again.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from pydantic import ValidationError

from trainforge.config.errors import Conflict, Unreachable
from trainforge.config.failpoints import failpoint
from trainforge.config.messages import FencingToken, NodeKey, Order, RunOrder
from trainforge.executor import budget
from trainforge.executor.supervisor import write_atomically

FORGOTTEN_S = 7 * 86_400
CHECKPOINTS_S = 14 * 86_400


def is_new(
    order: Order, known: Sequence[Order], *, forgotten: bool, highest: int, nodes: Iterable[NodeKey]
) -> bool:
    """Whether an order is to be stored; False when it was before, or has nothing left to act upon.

    `known` are the orders of its node, `nodes` all nodes here, `highest` is the sender's highest
    incarnation that was seen.

    Raises:
        Conflict: an older fencing token or attempt than what is known, or a node that is gone.
    """
    if forgotten:
        if order.body.kind in ("forget", "stop"):
            return False
        raise Conflict(f"node {order.node} has ended and is forgotten")
    if any(old.id == order.id for old in known):
        return False
    if known and _number(order.token) < _number(known[-1].token):
        raise Conflict(f"order {order.id} has an older fencing token than node {order.node}")
    if not known:
        _check_opening(order, highest, nodes)
    return True


def _check_opening(order: Order, highest: int, nodes: Iterable[NodeKey]) -> None:
    """What began before the sender was restored keeps its token; nothing new begins with such a one."""
    if order.token.incarnation < highest:
        raise Conflict(f"incarnation {order.token.incarnation} of the sender is over, {highest} was seen")
    if not isinstance(order.body, RunOrder):
        raise Conflict(f"node {order.node} is not known here")
    newer = [node for node in nodes if node.job == order.node.job and node.attempt > order.node.attempt]
    if newer:
        raise Conflict(f"attempt {newer[0].attempt} of this job has already begun here")


class OrderBook:
    """The accepted orders of every node of this executor; safe to use from several threads."""

    def __init__(self, data_dir: Path, wake: Callable[[NodeKey], None] = lambda node: None) -> None:
        self.nodes = data_dir / "nodes"
        self.forgotten = data_dir / "forgotten"
        self.checkpoints = data_dir / "checkpoints"
        self._incarnation = data_dir / "incarnation.json"
        self._wake = wake
        self._lock = threading.Lock()
        for folder in (self.nodes, self.forgotten):
            folder.mkdir(parents=True, exist_ok=True)

    def folder(self, node: NodeKey) -> Path:
        return self.nodes / str(node)

    def accept(self, order: Order, *, room: Callable[[NodeKey], bool] = lambda node: True) -> bool:
        """Store an order; False when it was stored before. `room` says whether a new node fits.

        Raises:
            Conflict: an older fencing token or attempt than what is known, or a node that is gone.
            Unreachable: no room for another node now; offer it again.
        """
        with self._lock:
            known, highest = self.read(order.node), self._highest_incarnation()
            forgotten = (self.forgotten / str(order.node)).exists()
            if not is_new(order, known, forgotten=forgotten, highest=highest, nodes=self.known()):
                failpoint("18.executor.order_known")
                return False
            if not known and not room(order.node):
                raise Unreachable("this executor has no room for another node now", code="busy")
            if order.token.incarnation > highest:
                write_atomically(self._incarnation, {"incarnation": order.token.incarnation})
            self._store(order)
        self._wake(order.node)
        return True

    def _highest_incarnation(self) -> int:
        """A sender's database that was restored speaks with a higher incarnation; lower ones are over."""
        try:
            return int(json.loads(self._incarnation.read_text())["incarnation"])
        except (FileNotFoundError, ValueError, KeyError):
            return 0

    def _store(self, order: Order) -> None:
        folder = self.folder(order.node)
        new = not folder.exists()
        folder.mkdir(exist_ok=True)
        path = folder / "orders.jsonl"
        with path.open("a+b") as file:
            end = file.tell()
            file.seek(max(0, end - 1))
            torn = end > 0 and file.read(1) != b"\n"
            file.write((b"\n" if torn else b"") + order.model_dump_json().encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        if new:
            for directory in (folder, self.nodes):
                _sync_folder(directory)

    def read(self, node: NodeKey) -> list[Order]:
        """What was accepted for a node, in that order; a torn line was never accepted."""
        try:
            lines = (self.folder(node) / "orders.jsonl").read_bytes().splitlines()
        except FileNotFoundError:
            return []
        orders = []
        for line in lines:
            with contextlib.suppress(ValidationError):
                orders.append(Order.model_validate_json(line))
        return orders

    def known(self) -> list[NodeKey]:
        return sorted(self._keys(self.nodes), key=str)

    @staticmethod
    def _keys(folder: Path) -> Iterator[NodeKey]:
        for path in folder.iterdir():
            parts = path.name.split(".")
            if len(parts) == 3 and parts[1].isdigit() and parts[2].isdigit():
                with contextlib.suppress(ValidationError):
                    yield NodeKey(job=parts[0], attempt=int(parts[1]), rank=int(parts[2]))

    def forget(self, node: NodeKey) -> None:
        """Remove all of a node; safe to repeat, and to be killed at."""
        (self.forgotten / str(node)).touch()
        _sync_folder(self.forgotten)
        folder = self.folder(node)
        aside = self.nodes / f".gone-{node}"
        with contextlib.suppress(FileNotFoundError):
            folder.rename(aside)
        budget.discard(aside)

    def tidy(self) -> None:
        """At start: finish what a kill interrupted, drop memories that no living order could match."""
        for path in self.nodes.glob(".gone-*"):
            budget.discard(path)
        for key in self._keys(self.forgotten):
            if self.folder(key).exists():
                self.forget(key)
            elif time.time() - (self.forgotten / str(key)).stat().st_mtime > FORGOTTEN_S:
                (self.forgotten / str(key)).unlink(missing_ok=True)
        for kept in self.checkpoints.glob("*"):
            if time.time() - kept.stat().st_mtime > CHECKPOINTS_S:
                shutil.rmtree(kept, ignore_errors=True)


def _number(token: FencingToken) -> tuple[int, int]:
    return token.incarnation, token.number


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
