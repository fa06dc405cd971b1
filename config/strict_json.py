"""JSON from elsewhere, read so that no two readers can understand it differently."""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn

from trainforge.config.errors import MessageInvalid

MAX_DEPTH = 64
MAX_DIGITS = 400
_NO_TEXT = re.compile("[\x00\ud800-\udfff]")


def read_json(data: bytes) -> Any:
    """The value that these bytes are.

    Raises:
        MessageInvalid: not JSON in UTF-8; a repeated key; NaN, an infinity or a number out of range; text
        that a database cannot hold (NUL, half a surrogate pair); nested too deeply.
    """
    try:
        value = json.loads(
            data.decode(),
            object_pairs_hook=_unique,
            parse_constant=_refuse,
            parse_float=_finite,
            parse_int=_whole,
        )
    except RecursionError as error:
        raise MessageInvalid("the JSON is nested too deeply") from error
    except ValueError as error:
        where = f": {error.msg} at line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise MessageInvalid(f"this is not JSON in UTF-8{where}") from error
    _check(value, MAX_DEPTH)
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise MessageInvalid("the JSON repeats a key")
    return found


def _refuse(name: str) -> NoReturn:
    raise MessageInvalid(f"the JSON contains {name}, which is no number")


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise MessageInvalid("the JSON contains a number out of range")
    return value


def _whole(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise MessageInvalid("the JSON contains a number out of range")
    return int(text)


def _check(value: Any, depth: int) -> None:
    if isinstance(value, str):
        if _NO_TEXT.search(value):
            raise MessageInvalid("the JSON contains text that is no text: NUL or half a surrogate pair")
    elif isinstance(value, (dict, list)):
        if depth == 0:
            raise MessageInvalid("the JSON is nested too deeply")
        for part in (*value, *value.values()) if isinstance(value, dict) else value:
            _check(part, depth - 1)
