"""Takes secret values out of text that is stored or shown: as they are, and in their common encodings.

The same bytes come out whether the text arrives whole or in pieces (`Stream`), so a secret that is cut by
a chunk's border is found as well. What cannot be a prefix of a secret is passed on at once.
"""

from __future__ import annotations

import base64
import json
import re
import shlex
from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import quote, quote_plus

MASK = "***"
MIN_LENGTH = 6  # shorter values would mask ordinary text
_PERCENT = re.compile(r"%[0-9A-F]{2}")


class Redactor:
    """Masks the given secrets; values under `MIN_LENGTH` characters are left alone."""

    def __init__(self, secrets: Iterable[str], mask: str = MASK) -> None:
        forms = {form for secret in secrets for form in _forms(secret)}
        self.mask = mask.encode()
        self.longest = max(map(len, forms), default=0)
        self.beginnings = {form[:length] for form in forms for length in range(1, len(form))}
        ordered = sorted(forms, key=lambda form: (-len(form), form))
        self.pattern = re.compile(b"|".join(map(re.escape, ordered))) if forms else None

    def finds(self, chunks: Iterable[bytes]) -> bool:
        """Whether there is a secret in what the chunks make together."""
        tail = b""
        for chunk in chunks if self.pattern is not None else ():
            buffer = tail + chunk
            if self.pattern is not None and self.pattern.search(buffer):
                return True
            tail = buffer[-self.longest :]
        return False

    def bytes(self, data: bytes) -> bytes:
        """`data` with every secret masked."""
        return self.pattern.sub(lambda _: self.mask, data) if self.pattern is not None else data

    def text(self, text: str) -> str:
        """`text` with every secret masked; what UTF-8 cannot hold is kept."""
        return self.bytes(text.encode("utf-8", "surrogatepass")).decode("utf-8", "surrogatepass")

    def value(self, value: Any) -> Any:
        """The same JSON value with every secret masked in its texts and keys."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            return {self.text(str(key)): self.value(item) for key, item in value.items()}
        return [self.value(item) for item in value] if isinstance(value, list) else value

    def stream(self) -> Stream:
        return Stream(self)


class Stream:
    """Redacts a text that arrives in pieces: `feed` each, then `finish`."""

    def __init__(self, redactor: Redactor) -> None:
        self._redactor = redactor
        self._held = b""

    def feed(self, chunk: bytes) -> bytes:
        """What is certain by now; the rest may be the beginning of a secret."""
        pattern = self._redactor.pattern
        if pattern is None:
            return chunk
        buffer, start, out = self._held + chunk, 0, bytearray()
        while True:
            open_at = self._first_open(buffer, start)
            match = pattern.search(buffer, start)
            if match is None or match.start() >= open_at:
                break
            out += buffer[start : match.start()] + self._redactor.mask
            start = match.end()
        self._held = buffer[open_at:]
        return bytes(out + buffer[start:open_at])

    def finish(self) -> bytes:
        """What was held back."""
        held, self._held = self._held, b""
        return self._redactor.bytes(held)

    def _first_open(self, buffer: bytes, start: int) -> int:
        """The first place from which the buffer's end may be a secret's beginning."""
        first = max(start, len(buffer) - self._redactor.longest + 1)
        places = range(first, len(buffer))
        return next((at for at in places if buffer[at:] in self._redactor.beginnings), len(buffer))


def _forms(secret: str) -> Iterator[bytes]:
    """A secret, and each line of one that has several, in the encodings that programs print."""
    for part in {secret, secret.strip(), *(line.strip() for line in secret.splitlines())}:
        if len(part) >= MIN_LENGTH:
            texts = {part, quote(part), quote(part, safe=""), quote_plus(part), repr(part)[1:-1]}
            texts |= {json.dumps(part)[1:-1], json.dumps(part, ensure_ascii=False)[1:-1]}
            texts |= {json.dumps(text)[1:-1] for text in list(texts)}  # JSON inside JSON
            texts.add(shlex.quote(part).strip("'"))
            texts |= {_PERCENT.sub(lambda code: code[0].lower(), text) for text in list(texts)}
            yield from (text.encode("utf-8", "surrogatepass") for text in texts)
            raw = part.encode("utf-8", "surrogatepass")
            yield repr(raw)[2:-1].encode()
            yield raw.hex().encode()
            yield raw.hex().upper().encode()
            yield from _base64_forms(raw)


def _base64_forms(raw: bytes) -> Iterator[bytes]:
    """The characters that stand for `raw` inside any base64 text, for each of the three alignments."""
    for shift in range(3):
        encoded = base64.b64encode(b"\0" * shift + raw).rstrip(b"=")
        begin = (0, 2, 3)[shift]
        end = len(encoded) - (1 if (shift + len(raw)) % 3 else 0)
        yield encoded[begin:end]
        yield encoded[begin:end].translate(bytes.maketrans(b"+/", b"-_"))
