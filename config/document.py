"""Bounded YAML 1.2 with places: what a person writes, before it means anything.

PyYAML reads YAML 1.1, where `on` is true, `3.10` is 3.1 and `1e-4` is text. So only its event parser is
used, and values follow the core schema of YAML 1.2 (section 10.3). Anchors, aliases, tags and repeated
keys are refused, and size, depth and the number of nodes have limits: parsing costs milliseconds whatever
is fed in.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from trainforge.config.errors import Place, TrainForgeError

MAX_BYTES = 64 * 1024
MAX_DEPTH = 16
MAX_NODES = 5000

Location = tuple[str | int, ...]

_Parser: Any = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader
_UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]")
# Controls that an escape sequence can smuggle in, and those that turn the direction of shown text.
_DECEIVING = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
_INTEGER = re.compile(r"[-+]?[0-9]+")
_OCTAL_OR_HEX = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_WORDS: dict[str, Any] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_SYNTAX_HINTS = {
    "cannot start any token": "indent with spaces, and quote text that begins with a special character",
    "tab character": "indent with spaces",
    "mapping values are not allowed": "indent the line, or quote text that contains ': '",
    "could not find expected ':'": "a key needs `: ` after it",
    "did not find expected key": "check the indentation, and quote text that begins with a quote",
    "unexpected end of stream": "close the quote or bracket",
}


class SourceInt(int):
    """A whole number from a document, with its spelling, for where text is wanted."""

    source: str


class SourceFloat(float):
    """A number from a document, with its spelling: `python: 3.10` means the text 3.10."""

    source: str


def spelling(value: Any) -> str:
    """How a number was written in the document."""
    return value.source if isinstance(value, (SourceInt, SourceFloat)) else str(value)


def plain(value: Any) -> Any:
    """The same value without the documents' number types."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, SourceInt):
        return int(value)
    return float(value) if isinstance(value, SourceFloat) else value


@dataclass
class Document:
    """What was read, what is wrong with it, and whether `value` means something all the same."""

    path: str
    value: dict[str, Any] = field(default_factory=dict)
    problems: list[TrainForgeError] = field(default_factory=list)
    usable: bool = True
    _places: dict[Location, tuple[Place, Place]] = field(default_factory=dict)

    def place(self, location: Location, *, key: bool = False) -> Place:
        """Where the value at `location` stands (or its key), or else the nearest thing around it."""
        for length in range(len(location), 0, -1):
            if places := self._places.get(location[:length]):
                return places[0] if key or length < len(location) else places[1]
        return Place(self.path, 1, 1)


class _Stop(Exception):  # noqa: N818 - ends the reading; the problem is noted already
    pass


def read_document(data: str | bytes, path: str) -> Document:
    """Read one YAML document whose root is a mapping. Never raises for what is in it."""
    document = Document(path)
    try:
        _Composer(document).compose(_decoded(data, document))
    except _Stop:
        document.usable = False
    except yaml.MarkedYAMLError as error:
        _note(document, _syntax_error(error, path))
    except yaml.YAMLError as error:
        _note(document, TrainForgeError(f"not valid YAML: {error}", place=Place(path, 1, 1)))
    document.problems.sort(key=lambda problem: _order(problem.place))
    return document


def _order(place: Place | None) -> tuple[int, int]:
    return ((place.line or 0), (place.column or 0)) if place else (0, 0)


def _note(document: Document, problem: TrainForgeError) -> None:
    document.problems.append(problem)
    document.usable = False


def _decoded(data: str | bytes, document: Document) -> str:
    """The text, or a noted problem and _Stop."""
    start = Place(document.path, 1, 1)
    raw = data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data
    if len(raw) > MAX_BYTES:
        _note(
            document, TrainForgeError(f"the file has {len(raw)} bytes, the most is {MAX_BYTES}", place=start)
        )
        raise _Stop
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        good = raw[: error.start].decode("utf-8-sig", "replace")
        problem = TrainForgeError(
            "the file is not UTF-8", hint="save it as UTF-8", place=_place_in(good, len(good), document.path)
        )
        _note(document, problem)
        raise _Stop from error
    if found := _UNPRINTABLE.search(text):
        place = _place_in(text, found.start(), document.path)
        _note(document, TrainForgeError(f"the character U+{ord(found[0]):04X} is not allowed", place=place))
        raise _Stop
    return text


def _place_in(text: str, offset: int, path: str) -> Place:
    before = text[:offset]
    return Place(path, before.count("\n") + 1, offset - before.rfind("\n"))


def _syntax_error(error: yaml.MarkedYAMLError, path: str) -> TrainForgeError:
    said = error.problem or "it cannot be read"
    hint = next((hint for part, hint in _SYNTAX_HINTS.items() if part in said), "")
    context = f" {error.context}" if error.context else ""
    mark = error.problem_mark or error.context_mark
    place = Place(path, mark.line + 1, mark.column + 1) if mark else Place(path, 1, 1)
    return TrainForgeError(f"not valid YAML:{context and context + ','} {said}", hint=hint, place=place)


class _Composer:
    """Builds values from parser events, noting places and problems in the document."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.nodes = 0

    def compose(self, text: str) -> None:
        loader = _Parser(text)
        try:
            self._compose(iter(loader.get_event, None))
        finally:
            loader.dispose()

    def _compose(self, events: Iterator[Any]) -> None:
        next(events)  # the stream's start
        first = next(events)
        root: Any = None
        if isinstance(first, yaml.DocumentStartEvent):
            start = next(events)
            root = self._node(start, events, (), 1)
            next(events)  # the document's end
            if isinstance(second := next(events, None), yaml.DocumentStartEvent):
                self._problem(
                    "the file holds a second document", second, hint="keep one, and no --- after it"
                )
        if isinstance(root, dict):
            self.document.value = root
        elif root is None:
            self._problem("the file is empty", None, hint="start with project: {name: my-project}")
        else:
            kind = "a list" if isinstance(root, list) else "a single value"
            self._problem(
                f"expected a mapping of keys, got {kind}", None, hint="start with project: {name: my-project}"
            )

    def _problem(self, message: str, event: Any, *, hint: str = "", usable: bool = False) -> None:
        place = self._place(event) if event is not None else Place(self.document.path, 1, 1)
        self.document.problems.append(TrainForgeError(message, hint=hint, place=place))
        self.document.usable = self.document.usable and usable

    def _place(self, event: Any) -> Place:
        return Place(self.document.path, event.start_mark.line + 1, event.start_mark.column + 1)

    def _node(self, event: Any, events: Iterator[Any], location: Location, depth: int) -> Any:
        self.nodes += 1
        if self.nodes > MAX_NODES:
            self._problem(f"more than {MAX_NODES} values", event)
            raise _Stop
        if isinstance(event, yaml.AliasEvent):
            self._problem(f"the alias *{event.anchor} is not allowed", event, hint="write the value out")
            return None
        if event.anchor is not None:
            self._problem(f"the anchor &{event.anchor} is not allowed", event, hint="write the value out")
        if event.tag is not None:
            tag = event.tag.replace("tag:yaml.org,2002:", "!!")
            self._problem(f"the tag {tag} is not allowed", event, hint="leave it away")
        if isinstance(event, yaml.ScalarEvent):
            return self._scalar(event)
        if depth > MAX_DEPTH:
            self._problem(f"nested deeper than {MAX_DEPTH} levels", event)
            raise _Stop
        if isinstance(event, yaml.SequenceStartEvent):
            return self._sequence(events, location, depth)
        return self._mapping(events, location, depth)

    def _sequence(self, events: Iterator[Any], location: Location, depth: int) -> list[Any]:
        items: list[Any] = []
        while not isinstance(event := next(events), yaml.SequenceEndEvent):
            here = (*location, len(items))
            self.document._places[here] = (self._place(event), self._place(event))
            items.append(self._node(event, events, here, depth + 1))
        return items

    def _mapping(self, events: Iterator[Any], location: Location, depth: int) -> dict[str, Any]:
        items: dict[str, Any] = {}
        while not isinstance(key_event := next(events), yaml.MappingEndEvent):
            key = self._key(key_event, events, location, depth)
            value_event = next(events)
            repeated = key in items
            here = (*location, key) if not repeated else (*location, key, "")
            places = self.document._places
            places.setdefault(here, (self._place(key_event), self._place(value_event)))
            value = self._node(value_event, events, here, depth + 1)
            if repeated:
                first = places[(*location, key)][0].line
                hint = f"it stands on line {first} already"
                name = dotted((*location, key))[:100]
                self._problem(f"{name}: repeated", key_event, hint=hint, usable=True)
            else:
                items[key] = value
        return items

    def _key(self, event: Any, events: Iterator[Any], location: Location, depth: int) -> str:
        value = self._node(event, events, (*location, ""), depth + 1)
        if isinstance(event, yaml.ScalarEvent) and not (value is None and event.value == ""):
            return str(event.value)
        if not isinstance(event, yaml.AliasEvent):
            self._problem("expected text as a key", event, hint="quote text that begins with [ or {")
        return ""

    def _scalar(self, event: Any) -> Any:
        text = event.value
        if found := _DECEIVING.search(text):
            self._problem(f"the character U+{ord(found[0]):04X} is not allowed", event)
            return None
        if not event.implicit[0]:
            return text
        if text in _WORDS:
            return _WORDS[text]
        if _NOT_FINITE.fullmatch(text):
            self._problem(f"expected a finite number, got {text}", event, hint="quote it to mean the text")
            return None
        return self._number(text, event)

    def _number(self, text: str, event: Any) -> Any:
        if not (_INTEGER.fullmatch(text) or _OCTAL_OR_HEX.fullmatch(text) or _FLOAT.fullmatch(text)):
            return text
        if len(text) > 40:
            self._problem("the number is longer than 40 characters", event, hint="quote it to mean the text")
            return None
        if _INTEGER.fullmatch(text) or _OCTAL_OR_HEX.fullmatch(text):
            whole = SourceInt(int(text) if _INTEGER.fullmatch(text) else int(text, 0))
            whole.source = text
            return whole
        number = SourceFloat(text)
        number.source = text
        if number in (float("inf"), float("-inf")):
            self._problem(f"the number {text} is too large", event, hint="quote it to mean the text")
        return number


def dotted(location: Location) -> str:
    """`("training", "args", 2)` as a person writes it: `training.args[2]`."""
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f"{'.' if text else ''}{part}"
    return text
