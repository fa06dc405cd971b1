"""What an executor is doing, read from its data directory by whoever asks; no agent need run."""

from __future__ import annotations

import fcntl
import json
import time
from pathlib import Path
from typing import Any

from trainforge.config.errors import SettingsError
from trainforge.config.messages import NodeKey, PublishOrder, RunOrder
from trainforge.config.settings import ExecutorSettings
from trainforge.executor.acceptance import waits
from trainforge.executor.capabilities import load, own_capabilities
from trainforge.executor.identity import ExecutorIdentity
from trainforge.executor.orders import OrderBook
from trainforge.executor.supervise import Supervised

CONNECTION = "connection.json"  # what became of the newest request to the sender


def local_status(settings: ExecutorSettings) -> dict[str, Any]:
    """The executor's identity, whether its agent runs, and its nodes with the phase each is in."""
    identity: ExecutorIdentity | None = None
    try:
        identity = ExecutorIdentity.load(settings.data_dir)
    except SettingsError as error:
        problem = str(error)
    else:
        problem = ""
    settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    book = OrderBook(settings.data_dir)
    return {
        "name": identity.name if identity else settings.name,
        "data_dir": str(settings.data_dir),
        "joined": identity is not None,
        "problem": problem,
        "executor": identity.executor if identity else "",
        "sender_url": identity.sender_url if identity else "",
        "running": agent_runs(settings.data_dir),
        "connection": settings.connection,
        "endpoint": _read(settings.endpoint_file or settings.data_dir / "config.json"),
        "contact": _read(settings.data_dir / CONNECTION),
        "max_jobs": settings.max_jobs,
        "nodes": [_node(book, key) for key in book.known()],
        "capabilities": own_capabilities(settings).model_dump(mode="json"),
        "load": load(settings).model_dump(mode="json"),
        "time": time.time(),
    }


def agent_runs(data_dir: Path) -> bool:
    try:
        with (data_dir / "agent.lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        pass
    return False


def _node(book: OrderBook, key: NodeKey) -> dict[str, Any]:
    orders = book.read(key)
    folder = book.folder(key)
    about: dict[str, Any] = {
        "job": key.job, "attempt": key.attempt, "rank": key.rank,
        "phase": "", "code": "", "reason": "", "waiting": "", "training": Supervised(folder / "run").alive(),
    }  # fmt: skip
    if orders and isinstance(orders[0].body, RunOrder):
        about |= {"project": orders[0].body.project, "nodes": orders[0].body.nodes}
    about["asked"] = waits(folder)
    spooled = any(isinstance(order.body, PublishOrder) for order in orders)
    for record in _records(folder / "journal.jsonl"):
        if record.get("kind") == "phase":
            about["phase"] = record["data"]["phase"]
        elif record.get("kind") == "ended":
            about |= {
                "code": record["data"]["code"],
                "reason": record["data"]["reason"],
                "ended": record["time"],
            }
        elif record.get("kind") == "publish_waiting":
            about["waiting"] = record["data"]["reason"]
        elif record.get("kind") in {"published", "finished"}:
            spooled, about["waiting"] = False, ""
    return about | {"spooled": spooled}


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _records(path: Path) -> list[dict[str, Any]]:
    """Records without streams, leniently: the journal may be growing while it is read."""
    found = []
    try:
        with path.open("rb") as file:
            for line in file:
                if b'"kind":"log"' in line[:100] or not line.endswith(b"\n"):
                    continue
                found.append(json.loads(line))
    except (OSError, ValueError):
        pass
    return found
