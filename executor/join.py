"""Pairing with a sender: the one-time token says which key the sender must have, the reply is held to it."""

from __future__ import annotations

import time

import httpx2

from trainforge.config.errors import NotTrusted, Unreachable
from trainforge.config.messages import JoinReply, JoinRequest
from trainforge.config.settings import ExecutorSettings
from trainforge.config.trust import (
    SigningKey,
    executor_id,
    parse_join_token,
    public_jwk,
    sign_request,
    thumbprint,
)
from trainforge.executor.capabilities import own_capabilities
from trainforge.executor.identity import ExecutorIdentity, load_key
from trainforge.executor.link import TIMEOUT_S, parse

PATH = "/v1/join"


def join(
    sender_url: str, token: str, settings: ExecutorSettings, key: SigningKey | None = None
) -> ExecutorIdentity:
    """Introduce this machine to a sender and remember the two identities.

    With a `key` of the caller's nothing is written down: it lasts as long as the process.

    Raises:
        NotTrusted: the token is not one, was used before or has expired, or the sender has another key.
        Unreachable: no sender there.
    """
    invitation = parse_join_token(token)
    sender_url = sender_url.rstrip("/")
    settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    ephemeral = key is not None
    key = key or load_key(settings.data_dir)
    request = JoinRequest(
        token=invitation.text,
        name=settings.name,
        public_key=key.public,
        capabilities=own_capabilities(settings),
    )
    body = request.model_dump_json().encode()
    proof = sign_request(
        key,
        subject=executor_id(key.public),
        audience=invitation.sender_key_id,
        method="POST",
        path=PATH,
        body=body,
        now=time.time(),
    )
    headers = {"Authorization": proof, "Content-Type": "application/json"}
    try:
        answer = httpx2.post(
            sender_url + PATH, content=body, headers=headers, timeout=TIMEOUT_S, trust_env=False
        )
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise Unreachable(f"no sender answers at {sender_url}: {error}", hint="check the URL") from error
    reply = parse(answer, JoinReply)
    if thumbprint(public_jwk(reply.sender_key)) != invitation.sender_key_id:
        raise NotTrusted(
            "the sender that answers does not have the key that the join token names",
            hint="make sure that the URL is the sender's own",
        )
    if reply.executor != executor_id(key.public):
        raise NotTrusted("the sender answered for another executor")
    identity = ExecutorIdentity(
        executor=reply.executor,
        name=settings.name,
        sender=reply.sender,
        sender_url=sender_url,
        sender_key=public_jwk(reply.sender_key),
        lease_ttl=reply.lease_ttl,
        pending=reply.pending,
        ephemeral=ephemeral,
    )
    identity.save(settings.data_dir)
    return identity
