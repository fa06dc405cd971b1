"""What whoever watches the executor's terminal is told: short lines, and the same name for the same job."""

from __future__ import annotations

import logging

from trainforge.config.discreet import log_discreetly
from trainforge.config.messages import NodeKey, RunOrder


def told(key: NodeKey) -> str:
    """A node as the log names it."""
    return f"job {key.job[:8]}" + (f" rank {key.rank}" if key.rank else "")


def work(node: NodeKey, order: RunOrder) -> str:
    """What a node is about to do, or to go on with."""
    rank = f", rank {node.rank} of {order.nodes}" if order.nodes > 1 else ""
    return f"{told(node)}: takes {order.project} at {order.commit[:7]}{rank}"


def tell_the_terminal(*, debug: bool = False) -> None:
    """Log to the terminal, briefly or in detail, unless whoever embeds the executor arranged otherwise."""
    if not logging.getLogger().handlers:
        form = "%(asctime)s  %(levelname)s %(name)s  %(message)s" if debug else "%(asctime)s  %(message)s"
        logging.basicConfig(level=logging.DEBUG if debug else logging.INFO, format=form, datefmt="%H:%M:%S")
        log_discreetly()
        for chatty in ("httpx2", "httpcore2", "httpx", "uvicorn.error", "pyngrok"):
            logging.getLogger(chatty).setLevel(logging.INFO if debug else logging.WARNING)
