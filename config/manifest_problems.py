"""What pydantic found wrong, in the words of the manifest: key, what was expected, what stands there."""

from __future__ import annotations

import difflib
import json
import re
import typing
from collections.abc import Callable
from typing import Any

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from trainforge.config.document import Location, dotted, spelling
from trainforge.config.errors import Place, TrainForgeError
from trainforge.config.manifest_keys import Section
from trainforge.config.manifest_models import Manifest

MAX_PROBLEMS = 100

PlaceOf = Callable[[Location, bool], Place | None]

_TYPES = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a mapping of keys",
    "model_type": "a mapping of keys",
}
_BOUNDS = {
    "greater_than_equal": ("at least", "ge"),
    "less_than_equal": ("at most", "le"),
    "greater_than": ("more than", "gt"),
    "less_than": ("less than", "lt"),
}


def to_problems(
    error: ValidationError, place_of: PlaceOf, *, alone: bool = False
) -> list[tuple[Location, TrainForgeError]]:
    """One problem for each fault, with the key that it is about; no more than anybody would be told.

    `alone` says that the one entry of `data` stands without its list.
    """
    details = error.errors(include_url=False)
    return [_problem(detail, place_of, alone) for detail in details[: MAX_PROBLEMS + 1]]


def _problem(detail: Any, place_of: PlaceOf, alone: bool) -> tuple[Location, TrainForgeError]:
    at_key = detail["loc"][-1:] == ("[key]",)
    location: Location = tuple(detail["loc"][:-1] if at_key else detail["loc"])
    if alone and location[:2] == ("data", 0):
        location = ("data", *location[2:])
    kind, name = detail["type"], _short(dotted(location))
    if kind == "extra_forbidden":
        message, hint, at_key = f"{name}: unknown key", _nearest(location), True
    elif kind == "missing":
        message, hint, at_key = f"{name}: missing", _add(location), True
    else:
        what, hint = _expectation(detail)
        message = f"{name}: expected {what}, got {shown(detail['input'])}"
        hint = hint or _example(location)
    return location, TrainForgeError(message, hint=hint, place=place_of(location, at_key))


def _expectation(detail: Any) -> tuple[str, str]:
    """What should have stood there, and how to mend it where that is known."""
    kind, context = detail["type"], detail.get("ctx", {})
    if kind == "expected":
        return context["what"], context["hint"]
    if kind == "literal_error":
        choices = re.findall(r"'([^']*)'", context["expected"])
        near = difflib.get_close_matches(str(detail["input"])[:100], choices, n=1)
        return f"one of {', '.join(choices)}", f"did you mean {near[0]}?" if near else ""
    if kind in _BOUNDS:
        words, key = _BOUNDS[kind]
        return f"{words} {context[key]:g}", ""
    if kind == "too_short":
        return f"at least {context['min_length']} value", ""
    return _TYPES.get(kind, str(detail["msg"])), ""


def shown(value: Any) -> str:
    """A value of the document, short enough for a message and without anything that acts on a terminal."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    text = repr(value) if isinstance(value, str) else spelling(value)
    return _short(text)


def _short(text: str) -> str:
    return text if len(text) <= 100 else f"{text[:97]}..."


# --- the models, as a person sees them ----------------------------------------------------------------


def _section_in(annotation: Any) -> type[Section] | None:
    """The section in an annotation such as `Data | None` or `list[Gate]`."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    for argument in typing.get_args(annotation):
        if (found := _section_in(argument)) is not None:
            return found
    return None


def _section_at(location: Location) -> type[Section] | None:
    section: type[Section] | None = Manifest
    for part in location:
        if isinstance(part, int):
            continue
        field = section.model_fields.get(part) if section is not None else None
        section = _section_in(field.annotation) if field is not None else None
    return section


def _field_at(location: Location) -> FieldInfo | None:
    section = _section_at(location[:-1])
    return section.model_fields.get(str(location[-1])) if section is not None and location else None


def _nearest(location: Location) -> str:
    section, key = _section_at(location[:-1]), str(location[-1])[:100]
    known = list(section.model_fields) if section is not None else []
    if near := difflib.get_close_matches(key, known, n=1):
        return f"did you mean {near[0]}?"
    elsewhere = [name for name in all_keys() if name.rpartition(".")[2] == key]
    if len(elsewhere) == 1:
        return f"did you mean {elsewhere[0]}?"
    return f"known here: {', '.join(known)}"


def all_keys(section: type[Section] = Manifest, prefix: str = "") -> dict[str, FieldInfo]:
    """Every key of the manifest by its dotted name; those of a list's items as `gates[].metric`."""
    keys: dict[str, FieldInfo] = {}
    for name, field in section.model_fields.items():
        keys[prefix + name] = field
        inner = _section_in(field.annotation)
        if inner is not None:
            listed = typing.get_origin(field.annotation) is list
            keys |= all_keys(inner, f"{prefix}{name}{'[]' if listed else ''}.")
    return keys


def _add(location: Location) -> str:
    example = _yaml_example(location)
    return f"add {example}" if example else ""


def _example(location: Location) -> str:
    """A good value of the key, or of the key around it."""
    while location and (isinstance(location[-1], int) or _field_at(location) is None):
        location = location[:-1]
    example = _yaml_example(location) if location else ""
    return f"try {example}" if example else ""


def _yaml_example(location: Location) -> str:
    field = _field_at(location)
    return f"{location[-1]}: {as_yaml(field.examples[0])}" if field is not None and field.examples else ""


def as_yaml(value: Any) -> str:
    """A value in YAML's flow style, quoted only where it must be."""
    if isinstance(value, str):
        simple = re.fullmatch(r"[A-Za-z][\w./+-]*(:[\w./+-]+)*( --?[\w-]+| [\w.]+)*|\d+[A-Za-z]\w*", value)
        return value if simple and value.lower() not in {"true", "false", "null"} else json.dumps(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {as_yaml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(as_yaml(item) for item in value) + "]"
    return json.dumps(value)
