"""Who the executors are: join tokens, joining, and the proof that each request carries."""

from __future__ import annotations

from collections.abc import Sequence

from trainforge.config.errors import Forbidden, NotFound, NotTrusted
from trainforge.config.failpoints import failpoint
from trainforge.config.messages import Heartbeat, HeartbeatReply, JoinReply, JoinRequest
from trainforge.config.trust import (
    LEEWAY_S,
    MAX_LIFE_S,
    JoinToken,
    executor_id,
    new_join_token,
    parse_join_token,
    proof_issuer,
    public_jwk,
    thumbprint,
    verify_request,
)
from trainforge.sender.context import Sender
from trainforge.sender.notify import EXECUTORS, seen_key
from trainforge.sender.store_executors import Member

JOIN_TOKEN_LIFE_S = 15 * 60


def create_join_token(sender: Sender) -> tuple[JoinToken, float]:
    """A token that lets one executor join, and until when; the database keeps its digest alone."""
    token = new_join_token(sender.id)
    now = sender.now()
    expires = now + JOIN_TOKEN_LIFE_S
    sender.store.add_join_token(token.digest, now, expires)
    return token, expires


def join(sender: Sender, request: JoinRequest, *, authorization: str, path: str, body: bytes) -> JoinReply:
    """Take an executor in: it holds the key that it introduces, and a token that is spent by this.

    Raises:
        NotTrusted: either does not hold. Conflict: its name is another's.
    """
    key = public_jwk(request.public_key)
    executor = executor_id(key)
    token = parse_join_token(request.token)
    if token.sender_key_id != sender.id:
        raise NotTrusted("this join token is another sender's", hint="ask this sender for one")
    verify_request(
        authorization,
        subject=executor,
        keys={thumbprint(key): key},
        audience=sender.id,
        method="POST",
        path=path,
        body=body,
        now=sender.now(),
    )
    sender.store.join(token.digest, executor, request, sender.now())
    sender.bell.ring(EXECUTORS)
    return JoinReply(
        executor=executor,
        sender=sender.id,
        sender_key=sender.key.public,
        lease_ttl=sender.settings.lease_ttl,
    )


def authenticate(sender: Sender, *, authorization: str, method: str, path: str, body: bytes) -> Member:
    """The executor that makes this request, proved by its key, once.

    Raises:
        NotTrusted: unknown, not proved, or a proof that was used before. Forbidden: removed.
    """
    member = sender.store.member(proof_issuer(authorization))
    if member is None:
        raise NotTrusted("no such executor has joined this sender", hint="join this sender first")
    claims = verify_request(
        authorization,
        subject=member.id,
        keys={thumbprint(member.public_key): member.public_key},
        audience=sender.id,
        method=method,
        path=path,
        body=body,
        now=sender.now(),
    )
    if member.revoked:
        raise Forbidden("this executor was removed from the sender", hint="join again with a new token")
    now = sender.now()
    if not sender.store.use_proof(member.id, claims.jti, now + MAX_LIFE_S + 2 * LEEWAY_S, now):
        raise NotTrusted("this proof was used before")
    sender.bell.ring(seen_key(member.id))
    return member


def heartbeat(sender: Sender, member: Member, beat: Heartbeat) -> HeartbeatReply:
    ttl = sender.settings.lease_ttl
    if beat.endpoint and beat.endpoint != member.endpoint:
        failpoint("20.sender.endpoint_moved")
    unknown, changed = sender.store.heartbeat(member.id, beat, sender.now(), ttl)
    if changed:
        sender.bell.ring(EXECUTORS)
        sender.wake()  # somebody may be waiting for a machine like this
    return HeartbeatReply(unknown=unknown, lease_ttl=ttl)


def remove_executor(sender: Sender, executor: str) -> None:
    """Refuse all that this executor says from now on; its nodes count as lost.

    Raises:
        NotFound: no such executor, or removed already.
    """
    if not sender.store.revoke(executor, sender.now()):
        raise NotFound(
            f"no executor {executor} is known here", hint="`trainforge executor status` lists them"
        )
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
            raise NotFound(
                f"no executor {bare} is known here", hint="`trainforge executor status` lists them"
            )
        chosen.append("!" * left_out + known.get(bare, bare))
    return chosen


def drain_executor(sender: Sender, executor: str, drained: bool) -> None:
    """Have it finish what it trains and get no new jobs, or get them again.

    Raises:
        NotFound: no such executor, or removed already.
    """
    if not sender.store.drain(executor, drained):
        raise NotFound(f"no executor {executor} is known here", hint="`trainforge executor list` lists them")
    _changed(sender)


def _changed(sender: Sender) -> None:
    sender.bell.ring(EXECUTORS)
    sender.wake()
