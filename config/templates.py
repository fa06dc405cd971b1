"""`{{ params.x }}` in texts: which parameters are named, and their values in place. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

_FIELD = re.compile(r"\{\{\s*params\.([A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*)\s*\}\}")


def tight(text: str) -> str:
    """The fields without spaces, so that a shell's rules keep each in one word."""
    return _FIELD.sub(r"{{params.\1}}", text)


def names(text: str) -> list[str]:
    """The parameters that a text names, dotted where they lie deeper."""
    return _FIELD.findall(text)


def find(params: Mapping[str, Any], name: str) -> Any:
    """Raises KeyError when there is no such parameter."""
    value: Any = params
    for part in name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            raise KeyError(name)
        value = value[part]
    return value


def fill(text: str, params: Mapping[str, Any]) -> str:
    """Raises KeyError when a parameter is missing. A text stands as it is, all else as JSON."""

    def replaced(match: re.Match[str]) -> str:
        value = find(params, match[1])
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

    return _FIELD.sub(replaced, text)
