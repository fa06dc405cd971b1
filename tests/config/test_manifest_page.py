"""docs/manifest.md says of every key what the models say: form, default, effect, and whether it has one.

`python tests/config/test_manifest_page.py` writes the page's tables anew.
"""

from __future__ import annotations

import re
import types
import typing
from pathlib import Path
from typing import Any

import pytest

from trainforge.config import manifest_types as kinds
from trainforge.config.errors import ManifestError
from trainforge.config.manifest import json_schema, parse_manifest
from trainforge.config.manifest_keys import Section, is_later
from trainforge.config.manifest_models import Manifest
from trainforge.config.manifest_problems import all_keys, as_yaml

PAGE = Path(__file__).parents[2] / "docs" / "manifest.md"
TABLE = re.compile(r"<!-- keys of ([\w.\[\]]+) -->\n(.*?)<!-- end -->", re.DOTALL)
LATER = "**not yet in effect**"
WORDS = {
    "Arguments": "list of text, or text",
    "Branch": "branch name",
    "CheckpointStore": "absolute path or URL",
    "ConfigFile": "path",
    "Cron": "cron expression",
    "DataUrl": "URL",
    "Duration": "duration",
    "EnvName": "variable name",
    "Glob": "glob",
    "Gpus": "GPUs",
    "Limit": "number or `base`",
    "Module": "module name",
    "Name": "name",
    "Nodes": "count or range",
    "Pattern": "regular expression",
    "Plain": "any value",
    "PythonVersion": "Python version",
    "Ref": "branch, tag or commit",
    "RelativePath": "path",
    "SecretName": "secret name",
    "Sha256": "SHA-256",
    "Size": "size",
    "Text": "text",
    "Texts": "list of text, or text",
}
PLAIN_WORDS = {str: "text", bool: "`true` or `false`", int: "whole number", float: "number", Any: "any value"}


def form(hint: Any) -> str:
    """What a value of this type looks like, in words."""
    origin = typing.get_origin(hint)
    arguments = [part for part in typing.get_args(hint) if part is not type(None)]
    if origin is typing.Annotated:
        return named(hint.__metadata__) or form(arguments[0]) + bounds(hint.__metadata__)
    if origin in (types.UnionType, typing.Union):
        return form(arguments[0])
    words: dict[Any, Any] = {
        typing.Literal: lambda: ", ".join(f"`{value}`" for value in arguments),
        list: lambda: f"list of {several(form(arguments[0]))}",
        dict: lambda: f"{form(arguments[0])} to {form(arguments[1])}",
        None: lambda: "section" if is_section(hint) else PLAIN_WORDS[hint],
    }
    return str(words[origin]())


def several(word: str) -> str:
    return word if word == "text" or word.startswith("`") else f"{word}s"


def named(metadata: tuple[Any, ...]) -> str:
    """The word for one of the manifest's own types, by the validator that makes it."""
    given = set(map(id, metadata))
    return next(
        (word for name, word in WORDS.items() if id(getattr(kinds, name).__metadata__[0]) in given), ""
    )


def is_section(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, Section)


def bounds(metadata: tuple[Any, ...]) -> str:
    """`, 1 to 64` of a number with limits."""
    found: dict[str, Any] = {}
    for item in metadata:
        for limit in getattr(item, "metadata", ()):
            found |= {name: getattr(limit, name) for name in ("ge", "gt", "le", "lt") if hasattr(limit, name)}
    low = f"{found['ge']}" if "ge" in found else f"above {found['gt']}" if "gt" in found else ""
    high = f"{found['le']}" if "le" in found else f"{found['lt'] - 1}" if "lt" in found else ""
    return f", {low} to {high}" if low and high else f", at least {low}" if low else ""


def default(section: type[Section], key: str) -> str:
    field = section.model_fields[key]
    if field.is_required():
        return "required"
    value = field.default
    if isinstance(value, Section) or value is None or value in ([], {}, ""):
        return ""
    raw = section.model_construct().model_dump(mode="json", include={key}, warnings=False)[key]
    return f"`{as_yaml(raw)}`"


def rows(section: type[Section]) -> str:
    """The table of one section's own keys."""
    lines = ["| key | form | default | effect |", "|---|---|---|---|"]
    hints = typing.get_type_hints(section, include_extras=True)
    for key, field in section.model_fields.items():
        example = field.examples[0] if field.examples else None
        such_as = f" Such as `{key}: {as_yaml(example)}`." if example is not None else ""
        effect = f"{LATER}. {field.description}" if is_later(field) else field.description
        cells = (f"`{key}`", form(hints[key]), default(section, key), f"{effect}{such_as}")
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def sections() -> dict[str, type[Section]]:
    """Every section by its dotted name; the whole manifest as `trainforge.yaml`."""
    found: dict[str, type[Section]] = {"trainforge.yaml": Manifest}
    for name, field in all_keys().items():
        for part in (field.annotation, *typing.get_args(field.annotation)):
            if is_section(part):
                listed = typing.get_origin(field.annotation) is list
                found[f"{name}[]" if listed else name] = part  # type: ignore[assignment]
    return found


def test_every_section_has_a_table() -> None:
    assert sorted(name for name, _ in TABLE.findall(PAGE.read_text())) == sorted(sections())


@pytest.mark.parametrize("name", sections())
def test_the_table_says_what_the_models_say(name: str) -> None:
    tables = dict(TABLE.findall(PAGE.read_text()))
    assert tables[name].strip() == rows(sections()[name]).strip()


def test_every_manifest_of_the_page_is_accepted() -> None:
    examples = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(examples) >= 3
    for example in examples:
        parse_manifest(example)


def test_every_message_of_the_page_is_what_is_said() -> None:
    page = PAGE.read_text()
    ((wrong, said),) = re.findall(r"```yaml wrong\n(.*?)```.*?```text\n(.*?)```", page, re.DOTALL)
    with pytest.raises(ManifestError) as caught:
        parse_manifest(wrong)
    assert str(caught.value) == said.strip()


COMPANY = {  # what a key cannot stand without
    "data": "url: https://example.org/x",
    "metrics": "mode: max",
    "project": "name: p",
    "training": "script: t.py",
}
ALONE = {"data.url", "metrics.mode", "project.name", "training.script", "training.command", "training.module"}


@pytest.mark.parametrize("name", [name for name, field in all_keys().items() if field.examples])
def test_every_example_of_the_models_is_accepted(name: str) -> None:
    """The examples are what error messages tell people to try."""
    if "[]" in name:  # the list's own example has them
        return
    *sections, key = name.split(".")
    text = f"{key}: {as_yaml(all_keys()[name].examples[0])}"  # type: ignore[index]
    company = COMPANY.get(".".join(sections), "")
    if company and name not in ALONE:
        text = f"{company}, {text}"
    for section in reversed(sections):
        text = f"{section}: {{{text}}}"
    others = {"project": "project: {name: p}", "training": "training: {script: t.py}"}
    parse_manifest(
        "\n".join([text, *(line for part, line in others.items() if part != name.split(".", maxsplit=1)[0])])
    )


def test_the_schema_marks_what_has_no_effect_yet() -> None:
    text = str(json_schema())
    assert text.count("x-not-yet-in-effect") == sum(map(is_later, all_keys().values()))


def write() -> None:
    text = PAGE.read_text()
    for name, section in sections().items():
        mark = f"<!-- keys of {name} -->\n"
        before, after = text.split(mark)
        text = before + mark + rows(section) + after[after.index("<!-- end -->") :]
    PAGE.write_text(text)


if __name__ == "__main__":
    write()
