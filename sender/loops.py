"""The loops behind the doors: deciding, pushing orders, fetching journals; `app.py` runs them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx2

from trainforge.hooks.outward import guarded_client
from trainforge.sender.context import Sender
from trainforge.sender.dispatch import OUTBOX, Pusher
from trainforge.sender.journals import Fetcher
from trainforge.sender.notify import RECONCILE
from trainforge.sender.reconciler import Reconciler

PUSH_TIMEOUT_S = 10.0


@asynccontextmanager
async def core_loops(sender: Sender) -> AsyncIterator[None]:
    """Run the loops until the block ends; a loop that fails ends the block with its error."""
    reconciler = Reconciler(sender)
    timeout = httpx2.Timeout(PUSH_TIMEOUT_S)
    async with (
        guarded_client(allow_private=sender.settings.allow_private_endpoints, timeout=timeout) as client,
        asyncio.TaskGroup() as group,
    ):
        loops = [
            group.create_task(reconciler.run(), name="reconciler"),
            group.create_task(Pusher(sender, client).run(), name="pusher"),
            group.create_task(Fetcher(sender, client).run(), name="fetcher"),
        ]
        try:
            yield
        finally:
            for loop in loops:
                loop.cancel()
            sender.bell.ring(RECONCILE, OUTBOX)
