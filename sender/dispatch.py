"""Delivering orders: in the answer to a claim (pull), or by POST to the executor's endpoint (push).

Orders lie in the outbox until the executor has stored them; both ways repeat them until then, and an
executor takes the same order twice without harm. Each delivery is signed anew.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import secrets
import time
from collections.abc import Iterable, Sequence
from functools import partial

import httpx2

from trainforge.config.errors import Conflict, NotTrusted, TrainForgeError
from trainforge.config.failpoints import failpoint
from trainforge.config.messages import Claim, ClaimReply, Order, RunOrder
from trainforge.config.trust import sign_order, verify_request
from trainforge.sender.context import Sender
from trainforge.sender.notify import orders_key
from trainforge.sender.store_members import Member

log = logging.getLogger(__name__)

OUTBOX = "outbox"  # rung when there is something to deliver to anybody
REPEAT_S = 3.0  # an order that was handed out and not accepted is handed out again after this
MAX_ORDERS = 100
REFUSED = frozenset({400, 401, 403, 404, 409, 422})
FIRST_DELAY_S, LONGEST_DELAY_S = 0.5, 30.0


def ring_orders(sender: Sender, executors: Iterable[str]) -> None:
    keys = [orders_key(executor) for executor in executors]
    if keys:
        sender.bell.ring(OUTBOX, *keys)


def _sign(sender: Sender, executor: str, order: Order, challenge: str = "") -> str:
    now = sender.now()
    key = sender.keys.signing(executor, now)
    return sign_order(key, sender=sender.id, executor=executor, order=order, now=now, challenge=challenge)


def accept(sender: Sender, executor: str, orders: Sequence[str]) -> None:
    """The executor has stored these orders: they need no further delivery."""
    if not orders:
        return
    accepted = sender.store.accept_orders(executor, orders, sender.now(), sender.settings.lease_ttl)
    for order in orders:
        sender.delivered.pop(order, None)
    if accepted:
        sender.wake(*{job for job, _ in accepted})


async def refuse(sender: Sender, member: Member, order: str, why: str) -> None:
    """The executor will never take this order: whoever planned it decides what follows."""
    log.warning("%s refuses %s: %s", member.name, order, why)
    job = await asyncio.to_thread(sender.store.refuse_order, member.id, order, why, sender.now())
    if job:
        sender.wake(job)


def too_late(order: Order, status: int) -> bool:
    """Whether an offer came too late, to a node that is forgotten or has a newer token: nobody refuses
    the job. The offer expires, and the executor may be offered the next attempt."""
    return status == Conflict.status and isinstance(order.body, RunOrder)


# --- pull -----------------------------------------------------------------------------------------------


async def claim(sender: Sender, member: Member, said: Claim) -> ClaimReply:
    """Orders for this executor, bound to its challenge; waits for some as long as it asks to.

    Who is asked for a sign of life is answered at once, and so comes again at once.
    """
    for order, why in said.refused.items():
        await refuse(sender, member, order, why)
    deadline = time.monotonic() + said.wait_s
    accepted = said.accepted

    def look() -> list[Order]:
        accept(sender, member.id, accepted)
        return sender.store.open_orders(member.id)

    with sender.bell.listen(orders_key(member.id)) as listener:
        while True:
            orders, again_in = _due(sender, await asyncio.to_thread(look))
            accepted = []
            left = deadline - time.monotonic()
            if orders or left <= 0 or sender.stopping or member.id in sender.asked:
                break
            await listener.wait(min(left, again_in))
    return ClaimReply(orders=[_sign(sender, member.id, order, said.challenge) for order in orders])


def _due(sender: Sender, orders: Sequence[Order]) -> tuple[list[Order], float]:
    """The orders to hand out now, and in how many seconds one becomes due again: new ones ring."""
    now = time.monotonic()
    ages = {order.id: now - sender.delivered.get(order.id, -REPEAT_S) for order in orders}
    due = [order for order in orders if order.id not in sender.delivered or ages[order.id] >= REPEAT_S]
    due = due[:MAX_ORDERS]
    sender.delivered.update({order.id: now for order in due})
    return due, min((REPEAT_S - age for age in ages.values() if age < REPEAT_S), default=math.inf)


# --- push -----------------------------------------------------------------------------------------------


class Pusher:
    """Delivers to executors that have published an endpoint; each on its own, with growing pauses."""

    def __init__(self, sender: Sender, client: httpx2.AsyncClient) -> None:
        self._sender, self._client = sender, client
        self._proved: set[tuple[str, str]] = set()
        self._busy: dict[str, asyncio.Task[None]] = {}
        self._not_before: dict[str, tuple[float, float]] = {}  # executor -> (moment, pause)

    async def run(self) -> None:
        sender = self._sender
        try:
            with sender.bell.listen(OUTBOX) as listener:
                while not sender.stopping:
                    pause = await self._start_deliveries()
                    await listener.wait(pause)
        finally:
            for task in self._busy.values():
                task.cancel()

    async def _start_deliveries(self) -> float:
        now = time.monotonic()
        waits = [LONGEST_DELAY_S]
        for member in await asyncio.to_thread(self._sender.store.executors_to_push):
            moment, _ = self._not_before.get(member.id, (0.0, 0.0))
            if member.id in self._busy:
                continue
            if moment > now:
                waits.append(moment - now)
                continue
            task = asyncio.create_task(self._deliver(member), name=f"push to {member.name}")
            self._busy[member.id] = task
            task.add_done_callback(partial(self._done, member.id))
        return min(waits)

    def _done(self, executor: str, task: asyncio.Task[None]) -> None:
        del self._busy[executor]
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("delivering to %s failed unexpectedly", executor, exc_info=error)
            self._pause(executor)
        self._sender.bell.ring(OUTBOX)

    def _pause(self, executor: str) -> None:
        _, pause = self._not_before.get(executor, (0.0, 0.0))
        pause = min(max(pause * 2, FIRST_DELAY_S), LONGEST_DELAY_S)
        self._not_before[executor] = (time.monotonic() + pause, pause)

    async def _deliver(self, member: Member) -> None:
        """Prove the endpoint if need be, then deliver what is open; pauses on any failure."""
        try:
            if (member.id, member.endpoint) not in self._proved:
                await prove(self._sender, self._client, member)
                self._proved.add((member.id, member.endpoint))
            for order in await asyncio.to_thread(self._sender.store.open_orders, member.id):
                await self._post(member, order)
        except (httpx2.HTTPError, httpx2.InvalidURL, TrainForgeError) as error:
            log.info("%s is not reachable at %s: %s", member.name, member.endpoint, error)
            self._proved.discard((member.id, member.endpoint))
            self._pause(member.id)
        else:
            self._not_before.pop(member.id, None)

    async def _post(self, member: Member, order: Order) -> None:
        response = await self._client.post(
            f"{member.endpoint.rstrip('/')}/v1/orders",
            content=_sign(self._sender, member.id, order),
            headers={"Content-Type": "application/jose"},
        )
        if response.is_success:
            await asyncio.to_thread(accept, self._sender, member.id, [order.id])
        elif response.status_code in REFUSED:
            await prove(self._sender, self._client, member)  # it is not a stranger who says so
            if too_late(order, response.status_code):
                log.info("%s does not take %s any more: %s", member.name, order.id, _words(response))
                await asyncio.to_thread(
                    self._sender.store.close_order, member.id, order.id, self._sender.now()
                )
            else:
                await refuse(self._sender, member, order.id, _words(response))
        else:
            response.raise_for_status()
            raise TrainForgeError(f"{member.endpoint} answers {response.status_code}")


async def prove(sender: Sender, client: httpx2.AsyncClient, member: Member) -> None:
    """See that who answers at the endpoint holds the executor's key, before anything is sent there.

    Raises:
        NotTrusted: somebody else answers. httpx2.HTTPError: nobody does.
    """
    failpoint("21.sender.prove")
    nonce = secrets.token_urlsafe(24)
    response = await client.post(f"{member.endpoint.rstrip('/')}/v1/prove", json={"nonce": nonce})
    response.raise_for_status()
    try:
        proof = str(response.json()["proof"])
    except (ValueError, KeyError, TypeError) as error:
        raise NotTrusted("what answers there is not an executor") from error
    verify_request(
        proof,
        subject=member.id,
        keys=member.keys(sender.now()),
        audience=sender.id,
        method="PROVE",
        path=nonce,
        body=member.endpoint.encode(),
        now=None,  # the nonce is fresh
    )


def _words(response: httpx2.Response) -> str:
    try:
        problem = response.json()
        return f"{problem['detail']}"[:2000]
    except (ValueError, KeyError, TypeError, json.JSONDecodeError):
        return f"HTTP {response.status_code}"
