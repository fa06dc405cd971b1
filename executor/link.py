"""The executor's side of the sender's HTTP interface: every request signed, every answer checked."""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import httpx2
from pydantic import BaseModel, ValidationError

from trainforge.config.errors import (
    Conflict,
    Forbidden,
    MessageInvalid,
    NotFound,
    NotTrusted,
    TooLarge,
    TrainForgeError,
    Unreachable,
)
from trainforge.config.messages import (
    Claim,
    ClaimReply,
    FencingToken,
    GitCredential,
    Heartbeat,
    HeartbeatReply,
    JournalAck,
    JournalBatch,
    KeyChange,
    KeyChanged,
    Left,
    NodeKey,
    PushTurn,
    Record,
    SealedSecrets,
    SecretsAsk,
)
from trainforge.config.result import JobRecord
from trainforge.config.sealing import SealingKey, purpose
from trainforge.config.trust import SECRETS_TYPE, SigningKey, sign_request, verify
from trainforge.executor.identity import ExecutorIdentity
from trainforge.executor.mailbox import ADDRESS

TIMEOUT_S = 20.0
CLAIM_WAIT_S = 20.0
MARGIN_S = 15.0
_KINDS: dict[int, type[TrainForgeError]] = {
    401: NotTrusted, 403: Forbidden, 404: NotFound, 409: Conflict, 413: TooLarge, 422: MessageInvalid,
}  # fmt: skip

Reply = TypeVar("Reply", bound=BaseModel)


def trust_ends(asked: float, lease_ttl: float) -> float:
    """A lease counts from before the request was sent; the margin is for what cannot be known."""
    return asked + lease_ttl - min(MARGIN_S, lease_ttl / 4)


class SenderLink:
    """Requests to the one sender that this executor has joined; safe to use from several threads.

    `noticed` is told once when the sender answers, and once with the reason when it does not any more.
    """

    def __init__(
        self,
        identity: ExecutorIdentity,
        key: SigningKey,
        noticed: Callable[[TrainForgeError | None], None] = lambda problem: None,
        mailbox: httpx2.BaseTransport | None = None,
    ) -> None:
        """`mailbox` carries the requests where the sender has no address."""
        self.identity = identity
        self.key = key
        self.sender = f"the sender at {identity.sender_url}" if identity.sender_url else "a one-shot sender"
        self.client = httpx2.Client(
            base_url=identity.sender_url or ADDRESS, timeout=TIMEOUT_S, trust_env=False, transport=mailbox
        )
        self.noticed = noticed
        self._lock = threading.Lock()
        self._state: type[TrainForgeError] | str = ""
        self._closed = False
        self._nonce = ""  # what the sender gave out because the clocks differ
        self._trusted_until = 0.0

    def close(self) -> None:
        self._closed = True
        self.client.close()

    # --- the lease -------------------------------------------------------------------------------------

    @property
    def trusted(self) -> bool:
        """Whether the lease certainly still holds, by this machine's own steady clock."""
        with self._lock:
            return time.monotonic() < self._trusted_until

    def _renewed(self, asked: float, lease_ttl: float) -> None:
        with self._lock:
            self._trusted_until = max(self._trusted_until, trust_ends(asked, lease_ttl))

    # --- requests --------------------------------------------------------------------------------------

    def heartbeat(self, message: Heartbeat) -> HeartbeatReply:
        asked = time.monotonic()
        reply = self._send("POST", "/v1/heartbeat", message, HeartbeatReply)
        self._renewed(asked, reply.lease_ttl)
        return reply

    def claim(
        self, accepted: Sequence[str], wait_s: float = CLAIM_WAIT_S, refused: Mapping[str, str] | None = None
    ) -> tuple[str, ClaimReply]:
        """The challenge that the orders must answer, and the orders."""
        challenge = secrets.token_urlsafe(24)
        message = Claim(
            challenge=challenge, wait_s=wait_s, accepted=list(accepted), refused=dict(refused or {})
        )
        return challenge, self._send("POST", "/v1/claims", message, ClaimReply, timeout=wait_s + TIMEOUT_S)

    def journal(self, node: NodeKey, token: FencingToken, after: int, records: list[Record]) -> int:
        """Hand over records; returns up to where the sender has them."""
        message = JournalBatch(token=token, after=after, records=records)
        return self._send("POST", f"{_path(node)}/journal", message, JournalAck).acknowledged

    def credential(self, node: NodeKey) -> GitCredential:
        return self._send("POST", f"{_path(node)}/credential", None, GitCredential)

    def push_turn(self, node: NodeKey) -> float:
        """Seconds until this executor may push results to the node's repository; 0 takes the turn."""
        try:
            return self._send("POST", f"{_path(node)}/turn", None, PushTurn).wait_s
        except NotFound:  # a sender of before there were turns
            return 0.0

    def secrets(self, node: NodeKey, token: FencingToken, names: Sequence[str]) -> dict[str, str]:
        """The values of a node's secrets, as the sender itself says.

        Raises:
            TrainForgeError: `secret_missing`, `secret_refused`, or as any request.
        """
        key = SealingKey()
        ask = SecretsAsk(token=token, names=list(names), key=key.public)
        reply = self._send("POST", f"{_path(node)}/secrets", ask, SealedSecrets)
        claims = verify(
            key.open(reply.sealed, purpose(node, token)),
            typ=SECRETS_TYPE,
            keys=self.identity.sender_keys,
            issuer=self.identity.sender,
            audience=self.identity.executor,
            now=None,  # sealed to a key made a moment ago
        )
        values = claims.payload.get("secrets")
        if (
            claims.payload.get("sub") != str(node)
            or not isinstance(values, dict)
            or set(values) != set(names)
        ):
            raise NotTrusted("the sender answered with the secrets of another node")
        return {name: str(value) for name, value in values.items()}

    def change_key(self, message: KeyChange) -> KeyChanged:
        return self._send("POST", "/v1/executors/me/key", message, KeyChanged)

    def leave(self) -> None:
        """Have the sender refuse this executor from now on."""
        self._send("DELETE", "/v1/executors/me", None, Left)

    def record(self, node: NodeKey) -> JobRecord:
        return self._send("GET", f"{_path(node)}/record", None, JobRecord, timeout=60)

    def _send(
        self,
        method: str,
        path: str,
        message: BaseModel | None,
        reply: type[Reply],
        timeout: float = TIMEOUT_S,
    ) -> Reply:
        body = b"" if method == "GET" else (message.model_dump_json().encode() if message else b"{}")
        try:
            answer = self._ask(method, path, body, timeout)
            if (nonce := answer.headers.get("TF-Nonce", "")) and answer.status_code == 401:
                self._nonce = nonce[:200]
                answer = self._ask(method, path, body, timeout)
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            lost = Unreachable(f"{self.sender} cannot be reached: {error}")
            self._notice(lost)
            raise lost from error
        try:
            message_back = parse(answer, reply)
        except (Unreachable, NotTrusted) as error:
            self._notice(error)
            raise
        self._notice(None)
        return message_back

    def _ask(self, method: str, path: str, body: bytes, timeout: float) -> httpx2.Response:
        proof = sign_request(
            self.key,
            subject=self.identity.executor,
            audience=self.identity.sender,
            method=method,
            path=path,
            body=body,
            now=time.time(),
            nonce=self._nonce,
        )
        headers = {"Authorization": proof, "Content-Type": "application/json"}
        return self.client.request(method, path, content=body, headers=headers, timeout=timeout)

    def _notice(self, problem: TrainForgeError | None) -> None:
        state = type(problem) if problem else "well"
        with self._lock:
            new, self._state = state != self._state and not self._closed, state
        if new:
            self.noticed(problem)


def parse(answer: httpx2.Response, reply: type[Reply]) -> Reply:
    """The answer as a message.

    Raises:
        TrainForgeError: the kind that the status stands for, in the sender's words.
    """
    if answer.status_code >= 300:
        raise problem(answer)
    try:
        return reply.model_validate_json(answer.content)
    except ValidationError as error:
        raise MessageInvalid(f"the sender's answer is not a {reply.__name__}") from error


def problem(answer: httpx2.Response) -> TrainForgeError:
    """An RFC 9457 problem document as the error that it was."""
    data: dict[str, Any] = {}
    try:
        said = json.loads(answer.content)
        data = said if isinstance(said, dict) else {}
    except ValueError:
        pass
    words = str(data.get("detail") or data.get("title") or f"the sender answered {answer.status_code}")[:2000]
    kind = _KINDS.get(answer.status_code)
    if kind is None:
        kind = Unreachable if answer.status_code >= 500 or answer.status_code == 429 else TrainForgeError
    return kind(words, hint=str(data.get("hint") or "")[:500], code=str(data.get("code") or kind.code)[:100])


def _path(node: NodeKey) -> str:
    return f"/v1/nodes/{node.job}/{node.attempt}/{node.rank}"
