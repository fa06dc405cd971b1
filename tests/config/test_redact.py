"""The redactor: no secret in any common encoding gets through, in whatever pieces it arrives."""

from __future__ import annotations

import base64
import json
from itertools import pairwise
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from trainforge.config.redact import MASK, Redactor

SECRET = 'hunter2/+ü"x&y=z'


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


ENCODINGS: dict[str, Any] = {
    "raw": lambda secret: secret,
    "json": lambda secret: json.dumps({"k": secret}),
    "json in unicode": lambda secret: json.dumps([secret], ensure_ascii=False),
    "json in json": lambda secret: json.dumps(json.dumps(secret)),
    "url": lambda secret: f"https://x/?t={quote(secret)}&u=1",
    "url without safe": lambda secret: quote(secret, safe=""),
    "form": lambda secret: f"t={quote_plus(secret)}",
    "hex": lambda secret: secret.encode().hex(),
    "HEX": lambda secret: secret.encode().hex().upper(),
    "python": lambda secret: repr({"k": secret}),
    **{f"base64 after {n}": lambda secret, n=n: base64_of(b"u" * n + secret.encode()) for n in range(4)},
    **{f"base64 before {n}": lambda secret, n=n: base64_of(secret.encode() + b"u" * n) for n in range(4)},
    "urlsafe base64": lambda secret: base64.urlsafe_b64encode(secret.encode()).decode(),
}  # fmt: skip


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("secret", ["ghp_abcDEF0123456789xyz", "p@ss wörd/+==", "sechs6", SECRET])
def test_a_secret_is_masked_in_each_encoding(secret: str, encoding: str) -> None:
    encoded = ENCODINGS[encoding](secret)
    masked = Redactor([secret]).text(f"before {encoded} after")
    assert MASK in masked
    assert encoded not in masked
    assert masked.startswith("before ") and masked.endswith(" after")


def test_each_line_of_a_key_is_a_secret() -> None:
    key = "-----BEGIN KEY-----\nMIIBVAIBADANBg\nkqhkiG9w0BAQEF\n-----END KEY-----\n"
    masked = Redactor([key]).text(f"line: kqhkiG9w0BAQEF\n{key}")
    assert "kqhkiG9w0BAQEF" not in masked
    assert "MIIB" not in masked


def test_short_values_and_no_secrets_change_nothing() -> None:
    assert Redactor(["", "ab", "12345"]).text("ab 12345") == "ab 12345"
    stream = Redactor([]).stream()
    assert stream.feed(b"abc") + stream.finish() == b"abc"


def test_values_of_json_are_masked_through_and_through() -> None:
    redactor = Redactor(["topsecret"])
    found = redactor.value({"a": ["x topsecret", 1, None, True], "topsecret": {"b": 2.5}})
    assert found == {"a": [f"x {MASK}", 1, None, True], MASK: {"b": 2.5}}


def test_what_cannot_be_a_secret_passes_at_once() -> None:
    stream = Redactor(["topsecret"]).stream()
    assert stream.feed(b"epoch 1\n") == b"epoch 1\n"
    assert stream.feed(b"a top") == b"a "
    assert stream.feed(b"ping\n") == b"topping\n"
    assert stream.feed(b"topsec") == b""
    assert stream.feed(b"ret!") == b"***!"
    assert stream.finish() == b""


def test_the_longer_of_two_secrets_is_masked_whole() -> None:
    stream = Redactor(["abcdef", "abcdefghij"]).stream()
    assert stream.feed(b"abcdef") == b""
    assert stream.feed(b"ghij.abcdefg!") == b"***.***g!"


def pieces(text: bytes, cuts: list[int]) -> list[bytes]:
    borders = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    return [text[start:end] for start, end in pairwise(borders)]


SECRETS = st.lists(st.text("ab/", min_size=6, max_size=9), max_size=3)


@given(SECRETS, st.text("ab/=YW", max_size=80), st.lists(st.integers(0, 200), max_size=8))
@example(["ababab", "bababa"], "abababababab", [3, 5])
def test_pieces_give_the_same_as_the_whole(secrets: list[str], text: str, cuts: list[int]) -> None:
    redactor, data = Redactor(secrets), text.encode()
    stream = redactor.stream()
    streamed = b"".join(map(stream.feed, pieces(data, cuts))) + stream.finish()
    assert streamed == redactor.bytes(data)


@given(st.text(min_size=6, max_size=40), st.text(max_size=20), st.text(max_size=20))
def test_no_secret_survives(secret: str, before: str, after: str) -> None:
    if not secret.isascii() or MASK in before + after + secret or "*" in secret:
        return
    masked = Redactor([secret]).text(before + secret + after)
    assert secret not in masked


@given(st.text())
def test_any_text_can_be_redacted(text: str) -> None:
    assert Redactor(["a secret value"]).text(text) == text.replace("a secret value", MASK)
