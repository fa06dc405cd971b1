"""What whoever watches the executor's terminal is told: short lines, and the same name for the same job."""

from __future__ import annotations

import logging

from trainforge.config.messages import NodeKey, RunOrder


def told(key: NodeKey) -> str:
    """A node as the log names it."""
    return f"job {key.job[:8]}" + (f" rank {key.rank}" if key.rank else "")


def work(node: NodeKey, order: RunOrder) -> str:
    """What a node is about to do, or to go on with."""
    rank = f", rank {node.rank} of {order.nodes}" if order.nodes > 1 else ""
    return f"{told(node)}: takes {order.project} at {order.commit[:7]}{rank}"


def tell_the_terminal() -> None:
    """Log briefly to the terminal, unless whoever embeds the executor has arranged something else."""
    if not logging.getLogger().handlers:
        logging.basicConfig(level=logging.INFO, format="%(asctime)s  %(message)s", datefmt="%H:%M:%S")
        for chatty in ("httpx2", "httpcore2", "httpx", "uvicorn.error", "pyngrok"):
            logging.getLogger(chatty).setLevel(logging.WARNING)
