"""How the keys of the manifest's sections are described, and which have no effect yet."""

from __future__ import annotations

from typing import Any

from pydantic import Field
from pydantic.fields import FieldInfo

_LATER = {"x-not-yet-in-effect": True}


def now(description: str, example: Any = None) -> Any:
    """The description of a key that is in effect."""
    return Field(description=description, examples=None if example is None else [example])


def later(description: str, example: Any = None) -> Any:
    """The description of a key that is accepted and checked, but not yet in effect."""
    examples = None if example is None else [example]
    return Field(description=description, examples=examples, json_schema_extra=dict(_LATER))


def is_later(field: FieldInfo) -> bool:
    return isinstance(field.json_schema_extra, dict) and bool(
        field.json_schema_extra.get("x-not-yet-in-effect")
    )
