"""Journals beyond their storing: who is woken by them, and fetching those that do not come by themselves."""

from __future__ import annotations

import asyncio
import logging
import time

import httpx2
from pydantic import ValidationError

from trainforge.config.errors import MessageInvalid, TrainForgeError
from trainforge.config.messages import JournalBatch, NodeKey
from trainforge.config.trust import sign_request
from trainforge.sender.context import Sender
from trainforge.sender.dispatch import prove
from trainforge.sender.intake import Intake
from trainforge.sender.notify import JOBS, RECONCILE, job_key
from trainforge.sender.store_executors import SilentNode

log = logging.getLogger(__name__)
MAX_BATCH = 8 * 1024 * 1024


def announce(sender: Sender, key: NodeKey, intake: Intake, *, first: bool) -> None:
    """Wake those whom new journal records concern."""
    sender.bell.ring(job_key(key.job))
    if intake.steers or first:
        sender.wake(key.job)
    if "outcome" in intake.node:
        sender.replan()  # its machine is free for others
    if intake.steers or intake.metrics:
        sender.bell.ring(JOBS)


class Fetcher:
    """Reads the journals of executors that can be reached but have not spoken for two heartbeats."""

    def __init__(self, sender: Sender, client: httpx2.AsyncClient) -> None:
        self._sender, self._client = sender, client

    async def run(self) -> None:
        sender = self._sender
        pause = sender.settings.heartbeat_every
        due = time.monotonic() + pause
        with sender.bell.listen(RECONCILE) as listener:  # closing the bell ends the wait
            while not sender.stopping:
                await listener.wait(max(due - time.monotonic(), 0))
                if time.monotonic() >= due:
                    due = time.monotonic() + pause
                    await self.fetch_silent()

    async def fetch_silent(self) -> None:
        sender = self._sender
        before = sender.now() - 2 * sender.settings.heartbeat_every
        nodes = await asyncio.to_thread(sender.store.silent_nodes, before, sender.settings.lease_ttl)
        await asyncio.gather(*(self._fetch(node) for node in nodes))

    async def _fetch(self, node: SilentNode) -> None:
        try:
            await prove(self._sender, self._client, node.member)
            await self._read(node)
        except (httpx2.HTTPError, httpx2.InvalidURL, TrainForgeError) as error:
            log.info("the journal of %s cannot be fetched: %s", node.key, error)

    async def _read(self, node: SilentNode) -> None:
        """Fetch until nothing new comes."""
        sender, key, after = self._sender, node.key, node.acknowledged
        while True:
            batch = await self._get(node, after)
            ttl = sender.settings.lease_ttl
            stored = await asyncio.to_thread(
                sender.store.append_journal, node.member.id, key, batch, sender.now(), ttl
            )
            if stored.intake is None or stored.acknowledged <= after:
                return
            announce(sender, key, stored.intake, first=after == 0)
            after = stored.acknowledged

    async def _get(self, node: SilentNode, after: int) -> JournalBatch:
        sender, key = self._sender, node.key
        path = f"/v1/nodes/{key.job}/{key.attempt}/{key.rank}/journal?after={after}"
        proof = sign_request(
            sender.keys.signing(node.member.id, sender.now()),
            subject=sender.id,
            audience=node.member.id,
            method="GET",
            path=path,
            body=b"",
            now=sender.now(),
        )
        response = await self._client.get(
            f"{node.member.endpoint.rstrip('/')}{path}", headers={"Authorization": proof}
        )
        response.raise_for_status()
        if len(response.content) > MAX_BATCH:
            raise MessageInvalid("the journal batch is too large")
        try:
            return JournalBatch.model_validate_json(response.content)
        except ValidationError as error:
            raise MessageInvalid("what was fetched is not a journal batch") from error
