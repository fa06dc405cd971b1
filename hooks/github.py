"""GitHub's webhooks without I/O: signature over the raw bytes, a strict reading, one hint to look.

Of a push's payload only the repository and the ref are believed, and those only as a hint: its lists of
commits and files are cut off by GitHub and never used.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trainforge.config.errors import MessageInvalid, NotTrusted
from trainforge.config.strict_json import read_json
from trainforge.hooks.addresses import AddressRefused, repository_id, validate_commit, validate_ref

MAX_BODY_BYTES = 25 * 1024 * 1024
_SIGNATURE = re.compile(r"sha256=([0-9a-f]{64})\Z")
_NO_COMMIT = re.compile(r"0+\Z")


class WebhookInvalid(MessageInvalid):
    """A delivery that is signed but is not what GitHub sends."""

    status = 400


@dataclass(frozen=True)
class PushHint:
    """Somebody says that this ref of this repository moved. `before`/`after` None: it was not, or is not.

    `repository_ids` are the ids that the repository may be registered under, `number` GitHub's own id,
    which survives renames.
    """

    delivery: str
    repository_ids: tuple[str, ...]
    name: str
    ref: str
    before: str | None
    after: str | None
    forced: bool = False
    number: int | None = None


def sign(secret: str, body: bytes) -> str:
    """The value of `X-Hub-Signature-256` for a body."""
    return "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


def verify_signature(secrets: Sequence[str], body: bytes, header: str | None) -> None:
    """Check `X-Hub-Signature-256` against the secrets in use (two, while one is replaced by another).

    Raises:
        NotTrusted: none of them signed exactly these bytes; also when there is no secret at all.
    """
    match = _SIGNATURE.match(header or "")
    if match is None:
        raise NotTrusted(
            "the delivery carries no usable X-Hub-Signature-256", hint="set a secret at the webhook"
        )
    said = bytes.fromhex(match[1])
    holds = False
    for secret in secrets:
        expected = hmac.new(secret.encode(), body, hashlib.sha256).digest()
        holds |= bool(secret) and hmac.compare_digest(expected, said)
    if not holds:
        raise NotTrusted("the delivery's signature does not hold", hint="compare the secrets on both sides")


def push_hint(delivery: str, payload: dict[str, Any]) -> PushHint:
    """The hint in a push.

    Raises:
        WebhookInvalid: not a well-formed push. AddressRefused: a ref or a commit that cannot be one.
    """
    repository = payload.get("repository")
    if not isinstance(repository, dict):
        raise WebhookInvalid("the push names no repository")
    number = repository.get("id")
    return PushHint(
        delivery=delivery,
        repository_ids=_ids(repository),
        name=_text(repository, "full_name"),
        ref=validate_ref(_text(payload, "ref")),
        before=_commit(_text(payload, "before")),
        after=_commit(_text(payload, "after")),
        forced=payload.get("forced") is True,
        number=number if type(number) is int else None,
    )


def strict_json(body: bytes) -> dict[str, Any]:
    """A JSON object without repeated keys, NaN or infinities.

    Raises:
        WebhookInvalid: anything else.
    """
    try:
        value = read_json(body)
    except MessageInvalid as error:
        raise WebhookInvalid(f"the delivery cannot be read: {error.message}") from error
    if not isinstance(value, dict):
        raise WebhookInvalid("the delivery is not a JSON object")
    return value


def _ids(repository: dict[str, Any]) -> tuple[str, ...]:
    found = []
    for key in ("clone_url", "ssh_url", "git_url", "html_url"):
        url = repository.get(key)
        if isinstance(url, str):
            try:
                found.append(repository_id(url))
            except AddressRefused:
                continue
    if not found:
        raise WebhookInvalid("the push names no usable repository URL")
    return tuple(dict.fromkeys(found))


def _commit(text: str) -> str | None:
    return None if _NO_COMMIT.match(text) else validate_commit(text)


def _text(source: dict[str, Any], key: str) -> str:
    value = source.get(key)
    if not isinstance(value, str) or not 0 < len(value) <= 1024:
        raise WebhookInvalid(f"the push lacks {key}")
    return value
