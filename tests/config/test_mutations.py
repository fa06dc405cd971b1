"""Signed orders and proofs, changed at random: none is believed.

`python tests/config/test_mutations.py N [SEED]` tries as many as one likes.
"""

from __future__ import annotations

import base64
import json
import random
import string
import sys
from collections.abc import Callable
from typing import Any

import pytest

from trainforge.config.errors import NotTrusted
from trainforge.config.messages import FencingToken, NodeKey, Order, StopOrder
from trainforge.config.trust import (
    SigningKey,
    executor_id,
    sign_order,
    sign_request,
    verify_order,
    verify_request,
)

NOW = 1_800_000_000
SENDER, EXECUTOR = SigningKey.generate(), SigningKey.generate()
ME = executor_id(EXECUTOR.public)
JOB = "a" * 26
ORDER = Order(
    id=f"{JOB}.1.0.stop",
    node=NodeKey(job=JOB, attempt=1, rank=0),
    token=FencingToken(incarnation=1, number=2),
    body=StopOrder(code="stopped", reason="somebody asked"),
)
TOKENS = (
    sign_order(SENDER, sender=SENDER.id, executor=ME, order=ORDER, now=NOW),
    sign_request(
        EXECUTOR, subject=ME, audience=SENDER.id, method="POST", path="/v1/heartbeat", body=b"{}", now=NOW
    ).removeprefix("TF-Proof "),
)
LETTERS = string.ascii_letters + string.digits + "-_.=+/ \n\0é"
KEYS = {SENDER.id: SENDER.public, EXECUTOR.id: EXECUTOR.public}


def believed(token: str) -> bool:
    """By either of the two who read such tokens."""
    try:
        verify_order(token, sender=SENDER.id, keys=KEYS, executor=ME, now=NOW)
    except NotTrusted:
        pass
    else:
        return True
    try:
        verify_request(
            f"TF-Proof {token}", subject=ME, keys=KEYS, audience=SENDER.id, method="POST",
            path="/v1/heartbeat", body=b"{}", now=NOW,
        )  # fmt: skip
    except NotTrusted:
        return False
    return True


# --- ways to change one ---------------------------------------------------------------------------------


def _characters(token: str, chance: random.Random) -> str:
    letters = list(token)
    for _ in range(chance.choice((1, 1, 1, 2, 5))):
        at = chance.randrange(len(letters))
        change = chance.randrange(3)
        letters[at : at + (change != 0)] = "" if change == 2 else chance.choice(LETTERS)
    return "".join(letters)


def _bits(token: str, chance: random.Random) -> str:
    parts = token.split(".")
    which = chance.randrange(3)
    raw = bytearray(_raw(parts[which]))
    raw[chance.randrange(len(raw))] ^= 1 << chance.randrange(8)
    parts[which] = _text(bytes(raw))
    return ".".join(parts)


def _members(token: str, chance: random.Random) -> str:
    """Another value of a member of the header or the claims, one more, or one less."""
    parts = token.split(".")
    which = chance.randrange(2)
    said: dict[str, Any] = json.loads(_raw(parts[which]))
    name = chance.choice([*said, "alg", "jwk", "crit", "b64", "x5u", "nbf", "nonce"])
    values = (
        "none",
        "HS256",
        "Ed25519",
        "",
        0,
        -1,
        2**63,
        1e30,
        None,
        True,
        [],
        {},
        [ME],
        ME,
        SENDER.id,
        KEYS,
    )
    value = chance.choice(values)
    if name in said and chance.random() < 0.3:
        del said[name]
    else:
        said[name] = value
    parts[which] = _text(json.dumps(said).encode())
    return ".".join(parts)


def _parts(token: str, chance: random.Random) -> str:
    """Parts of both tokens mixed, repeated, left out or cut."""
    mixed = [part for one in TOKENS for part in one.split(".")] + ["", "e30", _text(b"null")]
    chosen = [chance.choice(mixed) for _ in range(chance.choice((1, 2, 3, 3, 3, 4)))]
    return ".".join(chosen)[: chance.choice((None, None, len(token) - 1, len(token) // 2))]


WAYS: tuple[Callable[[str, random.Random], str], ...] = (_characters, _bits, _members, _parts)


def _raw(part: str) -> bytes:
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))


def _text(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def believed_of(count: int, seed: int) -> list[str]:
    """Of so many changed tokens, those that were believed."""
    chance = random.Random(seed)  # noqa: S311 - to be repeated
    wrong = []
    for _ in range(count):
        token = chance.choice(TOKENS)
        changed = chance.choice(WAYS)(token, chance)
        if changed not in TOKENS and believed(changed):
            wrong.append(changed)
    return wrong


@pytest.mark.parametrize("seed", [7, 8])
def test_of_a_hundred_thousand_changed_tokens_none_is_believed(seed: int) -> None:
    assert all(map(believed, TOKENS))
    assert believed_of(50_000, seed) == []


if __name__ == "__main__":
    count, seed = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    found = believed_of(count, seed)
    print(f"{len(found)} of {count} changed tokens were believed (seed {seed})", *found[:10], sep="\n")
    sys.exit(bool(found))
