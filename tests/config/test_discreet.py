"""What no log line of ours shows, whoever wrote it and however."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from trainforge.config import discreet
from trainforge.config.redact import MASK, Redactor

TOKEN = "a1b2" * 16

LINES = {
    f"joined with tfj_{TOKEN}_{TOKEN}": f"joined with {MASK}",
    f"tfp_{TOKEN}": MASK,
    f"password=tfg_{'x_-' * 12}!": f"password={MASK}!",
    f"{{'Authorization': 'Bearer {TOKEN}'}}": f"{{'Authorization': 'Bearer {MASK}'}}",
    "Authorization: Basic YWRhOnNlY3JldA==": f"Authorization: Basic {MASK}",
    "Authorization: TF-Proof eyJh.eyJi.c2ln": f"Authorization: TF-Proof {MASK}",
    "fatal: unable to access 'https://ada:pw@git.example/x/'": f"fatal: unable to access 'https://{MASK}@git.example/x/'",
    "https://ghp_abc@host and https://plain.example/@path": f"https://{MASK}@host and https://plain.example/@path",
    "postgresql+psycopg://me:pw@db/x": f"postgresql+psycopg://{MASK}@db/x",
    "nothing to hide, tfp_short, a@b.example": "nothing to hide, tfp_short, a@b.example",
}


@pytest.mark.parametrize(("said", "shown"), LINES.items())
def test_tokens_are_known_by_their_form(said: str, shown: str) -> None:
    assert discreet.hide_tokens(said) == shown


@pytest.fixture
def holder() -> Iterator[object]:
    holder = object()
    discreet.learn(holder, Redactor(["canary-secret"]))
    yield holder
    discreet.forget(holder)


def formatted(record: logging.LogRecord) -> str:
    return discreet.Formatter("%(levelname)s %(message)s").format(record)


def test_known_secrets_are_hidden_in_arguments_and_tracebacks_until_forgotten(holder: object) -> None:
    try:
        raise ValueError("no canary-secret here")
    except ValueError as error:
        info = (type(error), error, error.__traceback__)
    record = logging.LogRecord("x", logging.ERROR, __file__, 1, "with %s", ("canary-secret",), info)
    shown = formatted(record)
    assert shown.startswith(f"ERROR with {MASK}\nTraceback")
    assert f"ValueError: no {MASK} here" in shown
    assert "canary-secret" not in shown
    discreet.forget(holder)
    again = logging.LogRecord("x", logging.INFO, __file__, 1, "canary-secret", (), None)
    assert formatted(again) == "INFO canary-secret"
