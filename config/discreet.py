"""Keeps what opens doors out of log lines, whoever wrote them: known secrets, our tokens, URLs' passwords.

A process that learns a secret says so here (`learn`); the formatter of every log of ours masks it from then
on, in messages, arguments and tracebacks alike.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator

from trainforge.config.redact import MASK, Redactor

# tfp_ people, tfj_ joining, tfg_ git; GitHub's; a proof or password in a header; user and password in a URL.
_TOKENS = re.compile(
    r"\btf[pjg]_[A-Za-z0-9_-]{16,}|\b(?:gh[opusr]|github_pat)_[A-Za-z0-9_]{16,}"
    r"|(?<=Bearer )[A-Za-z0-9._~+/=-]{8,}|(?<=Basic )[A-Za-z0-9+/=]{8,}|(?<=TF-Proof )[A-Za-z0-9._-]{8,}"
    r"|(?<=://)[^\s/@'\"<>]{1,512}(?=@)"
)
_known: dict[int, Redactor] = {}


def learn(holder: object, redactor: Redactor) -> None:
    """Mask these in every log line of this process, until the holder forgets them."""
    _known[id(holder)] = redactor


def forget(holder: object) -> None:
    _known.pop(id(holder), None)


def hide_tokens(text: str) -> str:
    """The text without tokens of ours, proofs and passwords, by their form."""
    return _TOKENS.sub(MASK, text)


def hide(text: str) -> str:
    """The text without tokens, and without any secret that this process knows."""
    for redactor in list(_known.values()):
        text = redactor.text(text)
    return hide_tokens(text)


class Formatter(logging.Formatter):
    """A formatter whose every line has been through `hide`."""

    def format(self, record: logging.LogRecord) -> str:
        return hide(super().format(record))


def log_discreetly() -> None:
    """Give the handlers that were just made for this process a formatter that hides."""
    for handler in _handlers():
        plain = handler.formatter
        if plain is not None and not isinstance(plain, Formatter):
            handler.setFormatter(Formatter(plain._fmt, plain.datefmt))


def _handlers() -> Iterator[logging.Handler]:
    yield from logging.getLogger().handlers
