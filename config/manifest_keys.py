"""What the manifest's sections have in common: how they are read, how their keys are described."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.fields import FieldInfo

_LATER = {"x-not-yet-in-effect": True}


class Section(BaseModel):
    """A mapping of the manifest. An empty one (`retry:`) means its defaults."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    @model_validator(mode="before")
    @classmethod
    def _empty_is_default(cls, value: Any) -> Any:
        return {} if value is None else value


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
