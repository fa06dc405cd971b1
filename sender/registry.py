"""Who the executors are: join tokens, joining, and the proof that each request carries."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trainforge.config.errors import ClockSkew, Forbidden, NotFound, NotTrusted
from trainforge.config.failpoints import failpoint
from trainforge.config.messages import (
    Heartbeat,
    HeartbeatReply,
    JoinReply,
    JoinRequest,
    KeyChange,
    KeyChanged,
)
from trainforge.config.trust import (
    LEEWAY_S,
    MAX_LIFE_S,
    JoinToken,
    executor_id,
    new_join_token,
    parse_join_token,
    public_jwk,
    thumbprint,
    verify_request,
)
from trainforge.hooks.addresses import AddressRefused
from trainforge.hooks.outward import check_url
from trainforge.sender.context import Sender
from trainforge.sender.notify import EXECUTORS, seen_key
from trainforge.sender.problems import parse
from trainforge.sender.store_audit import SENDER
from trainforge.sender.store_members import Member
from trainforge.sender.store_visits import Admitted, Visit

JOIN_TOKEN_LIFE_S = 15 * 60
KEY_OVERLAP_S = 3600.0
LOOK_FOR_VISITORS_S = 60.0


@dataclass(frozen=True)
class Said:
    """A request of an executor, as it came; `beats`: it is a heartbeat."""

    authorization: str
    method: str
    path: str
    body: bytes
    beats: bool = False


@dataclass(frozen=True)
class Heard:
    """Who made a request that was let in, and the answer to a heartbeat."""

    member: Member
    reply: HeartbeatReply | None = None


def create_join_token(sender: Sender, actor: str = SENDER, **kind: Any) -> tuple[JoinToken, float]:
    """A token that lets one executor join, and until when; the database keeps its digest alone.

    `kind`: with `approval`, for a visitor (`ephemeral`), for `max_jobs` jobs.
    """
    token = new_join_token(sender.key.id)
    now = sender.now()
    expires = now + JOIN_TOKEN_LIFE_S
    sender.store.add_join_token(token.digest, now, expires, actor=actor, **kind)
    return token, expires


def join(sender: Sender, request: JoinRequest, *, authorization: str, path: str, body: bytes) -> JoinReply:
    """Take an executor in: it holds the key that it introduces, and a token that is spent by this.

    Raises:
        NotTrusted: either does not hold. Conflict: its name is another's.
    """
    key = public_jwk(request.public_key)
    executor = executor_id(key)
    token = parse_join_token(request.token)
    if token.sender_key_id != sender.key.id:
        raise NotTrusted("this join token is another sender's", hint="ask this sender for one")
    verify_request(
        authorization,
        subject=executor,
        keys={thumbprint(key): key},
        audience=sender.key.id,
        method="POST",
        path=path,
        body=body,
        now=None,  # the token that is spent by this is fresh
    )
    pending = sender.store.join(token.digest, executor, request, sender.now())
    sender.keys.pinned[executor] = sender.key.id
    sender.bell.ring(EXECUTORS)
    return JoinReply(
        executor=executor,
        sender=sender.id,
        sender_key=sender.key.public,
        lease_ttl=sender.settings.lease_ttl,
        pending=pending,
    )


def prove(sender: Sender, member: Member, said: Said, now: float) -> Visit:
    """That an executor makes this request, by its key; whether it makes it once, the store tells.

    Raises:
        NotTrusted: not proved. Forbidden: removed. MessageInvalid: a heartbeat that is none.
        ClockSkew: its time is off; with a nonce that it may use instead of it.
    """
    try:
        claims = verify_request(
            said.authorization,
            subject=member.id,
            keys=member.keys(now),
            audience=sender.id,
            method=said.method,
            path=said.path,
            body=said.body,
            now=now,
            fresh=sender.nonces.fresh,
        )
    except ClockSkew as error:
        error.nonce = sender.nonces.new()
        raise
    if member.revoked:
        raise Forbidden(
            "this executor was removed from the sender",
            hint="join again with a new token",
            code="executor_removed",
        )
    beat = parse(Heartbeat, said.body) if said.beats else None
    if beat is not None and beat.endpoint and beat.endpoint != member.endpoint:
        failpoint("20.sender.endpoint_moved")
    return Visit(member.id, claims.jti, now + MAX_LIFE_S + 2 * LEEWAY_S, beat)


def heard(sender: Sender, member: Member, beat: Heartbeat | None, led_to: Admitted) -> Heard:
    """What follows from a request that was let in, and what a heartbeat is answered."""
    sender.bell.ring(seen_key(member.id))
    if beat is None:
        return Heard(member)
    if led_to.changed:
        sender.bell.ring(EXECUTORS)
        sender.replan()  # somebody may be waiting for a machine like this
    if beat.sender_key:
        sender.keys.pinned[member.id] = beat.sender_key
    reply = HeartbeatReply(
        unknown=list(led_to.unknown),
        missing=sender.store.missing_results(member.id),
        lease_ttl=sender.settings.lease_ttl,
        notices=_notices(sender, beat),
        pending=member.pending,
        sender_key=sender.key.id,
        introduction=sender.keys.introduction(member.id, beat.sender_key, sender.now()),
    )
    return Heard(member, reply)


def _notices(sender: Sender, beat: Heartbeat) -> list[str]:
    """What only the machine's owner can mend."""
    if not beat.endpoint:
        return []
    try:
        check_url(beat.endpoint, allow_private=sender.settings.allow_private_endpoints)
    except AddressRefused as error:
        return [f"the sender does not use the address {beat.endpoint[:200]}: {error}"]
    return []


def change_key(sender: Sender, member: Member, said: KeyChange) -> KeyChanged:
    """The executor signs with another key from now on; the old one is good for a while, too.

    Raises:
        NotTrusted: it does not hold the new key. Conflict: that is another executor's.
    """
    key = public_jwk(said.public_key)
    verify_request(
        said.proof,
        subject=member.id,
        keys={thumbprint(key): key},
        audience=sender.id,
        method="KEY",
        path=member.id,
        body=b"",
        now=None,  # it came in a request that is fresh
    )
    until = sender.now() + KEY_OVERLAP_S
    return KeyChanged(until=sender.store.change_key(member.id, key, sender.now(), until))


def approve_executor(sender: Sender, executor: str, actor: str) -> None:
    """Let an executor have work. Approving one that has it already changes nothing."""
    if sender.store.approve(executor, sender.now(), actor):
        _changed(sender)


async def send_visitors_off(sender: Sender) -> None:
    """Forget the executors that came for a while and were not heard of for too long."""
    patience = sender.settings.lease_ttl + sender.settings.lost_after
    while not sender.stopping:
        gone = await asyncio.to_thread(sender.store.gone_visitors, sender.now() - patience)
        for executor in gone:
            await asyncio.to_thread(sender.store.revoke, executor, sender.now(), SENDER, "executor.expired")
        if gone:
            _changed(sender)
        await sender.bell.wait("visitors", min(patience / 4, LOOK_FOR_VISITORS_S))


def remove_executor(sender: Sender, executor: str, actor: str = SENDER) -> None:
    """Refuse all that this executor says from now on; its nodes count as lost.

    Raises:
        NotFound: no such executor, or removed already.
    """
    if not sender.store.revoke(executor, sender.now(), actor):
        raise NotFound(f"no executor {executor} is known here", hint="`trainforge executor list` shows them")
    failpoint("46.sender.revoked")
    _changed(sender)


def choose_executors(sender: Sender, names: Sequence[str]) -> list[str]:
    """The ids of executors picked by id or name; `!` before one leaves it out.

    Raises:
        NotFound: there is no such executor.
    """
    known = sender.store.executor_ids()
    chosen = []
    for name in names:
        left_out, bare = name.startswith("!"), name.removeprefix("!")
        if bare not in known and bare not in known.values():
            raise NotFound(f"no executor {bare} is known here", hint="`trainforge executor list` shows them")
        chosen.append("!" * left_out + known.get(bare, bare))
    return chosen


def drain_executor(sender: Sender, executor: str, drained: bool, actor: str = SENDER) -> None:
    """Have it finish what it trains and get no new jobs, or get them again.

    Raises:
        NotFound: no such executor, or removed already.
    """
    if not sender.store.drain(executor, drained, sender.now(), actor):
        raise NotFound(f"no executor {executor} is known here", hint="`trainforge executor list` lists them")
    _changed(sender)


def _changed(sender: Sender) -> None:
    sender.bell.ring(EXECUTORS)
    sender.wake()
