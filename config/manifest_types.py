"""The kinds of value a manifest may hold: sizes, durations, ranges, names, paths.

Each parser says in one phrase what it expects; `manifest_problems` adds the key, the place and what
was found instead.
"""

from __future__ import annotations

import math
import re
import shlex
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from trainforge.config.cron import parse_cron
from trainforge.config.document import plain, spelling
from trainforge.config.templates import tight
from trainforge.config.variable_names import env_fault, secret_fault

MAX_NODES = 1024
MAX_GPUS = 64
MAX_DURATION_S = 366 * 86_400
_MAX_SIZE = 2**60

_SIZE = re.compile(r"^(\d+(?:\.\d+)?)\s*(?:([KMGTP])(i?)B?|B)?$")
_DURATION = re.compile(r"^(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s)?$")
_POWERS = {"K": 1, "M": 2, "G": 3, "T": 4, "P": 5}
_SIZE_PATTERN = r"^\d+(\.\d+)?\s*([KMGTP]i?B?|B)?$"
_DURATION_PATTERN = r"^(\d+d)?(\d+h)?(\d+m)?(\d+(\.\d+)?s)?$"
_DATA_SCHEMES = ("file", "http", "https", "s3", "gs", "hf", "git+https", "git+http", "git+ssh", "git+file")
_CRON_HINT = 'try "0 3 * * 1"'


def expected(what: str, hint: str = "") -> PydanticCustomError:
    """The error of a parser below: what should have stood there."""
    return PydanticCustomError("expected", "{what}", {"what": what, "hint": hint})


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


# --- text ---------------------------------------------------------------------------------------------


def _text(value: Any) -> Any:
    if isinstance(value, bool):
        raise expected("text", f'write "{str(value).lower()}" in quotes to mean the text')
    return spelling(value) if _is_number(value) else value


def _texts(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _arguments(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return shlex.split(tight(value))
    except ValueError as error:
        raise expected("arguments as a shell splits them", "close the quote") from error


def _matching(pattern: str, what: str, hint: str = "") -> BeforeValidator:
    """A text type: what matches all of `pattern`. A number is the text that it was written as."""
    compiled = re.compile(pattern)

    def check(value: Any) -> Any:
        value = _text(value)
        if not isinstance(value, str) or not compiled.fullmatch(value):
            raise expected(what, hint)
        return value

    schema = Annotated[str, Field(pattern=f"^(?:{pattern})$")] | float
    return BeforeValidator(check, json_schema_input_type=schema)


def _check_cron(value: str) -> str:
    try:
        parse_cron(value)
    except ValueError as error:
        raise expected(str(error), _CRON_HINT) from None
    return value


def _checked(check: Callable[[str], str | None], what: str) -> BeforeValidator:
    """A text type; `check` returns what is wrong with the text, or None."""

    def validate(value: Any) -> Any:
        if _is_number(value):
            raise expected(what, f'write "{spelling(value)}" in quotes to mean the text')
        if not isinstance(value, str) or not value:
            raise expected(what)
        if wrong := check(value):
            raise expected(what, wrong)
        return value

    return BeforeValidator(validate, json_schema_input_type=str)


def _path_fault(value: str) -> str | None:
    if "\\" in value:
        return "write / between folders"
    path = PurePosixPath(value)
    if path.is_absolute() or value.startswith("~"):
        return "paths start at the repository's folder, without a leading /"
    if ".." in path.parts:
        return "paths stay inside the repository, without .."
    if ".git" in path.parts:
        return ".git is not the job's to touch"
    return "it is longer than 1024 characters" if len(value) > 1024 else None


def _branch_fault(value: str) -> str | None:
    bad = value.startswith(("-", "/", ".")) or value.endswith(("/", ".", ".lock"))
    if bad or ".." in value or "//" in value or "@{" in value or not re.fullmatch(r"[^\s~^:?*\[\\]+", value):
        return "git would refuse this as a branch name"
    return None


def _url_fault(value: str) -> str | None:
    try:
        parts = urlsplit(value)
        has_user = "@" in parts.netloc
    except ValueError:
        return "the URL cannot be read"
    if parts.scheme not in _DATA_SCHEMES:
        return f"its scheme is one of {', '.join(_DATA_SCHEMES)}"
    if has_user and (parts.scheme != "git+ssh" or ":" in parts.netloc.partition("@")[0]):
        return "credentials do not belong into a manifest"
    if parts.scheme in {"file", "git+file"}:
        return None if not parts.netloc and parts.path else f"try {parts.scheme}:///data/train"
    return None if parts.netloc else "the host is missing"


def _ref_fault(value: str) -> str | None:
    return None if re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", value) else _branch_fault(value)


def _config_fault(value: str) -> str | None:
    fits = value.endswith((".json", ".yaml", ".yml"))
    return _path_fault(value) if fits else "its name ends in .json, .yaml or .yml"


def _store_fault(value: str) -> str | None:
    if value.startswith("/"):
        return None
    try:
        parts = urlsplit(value)
    except ValueError:
        return "the URL cannot be read"
    if "@" in parts.netloc:
        return "credentials do not belong into a manifest"
    return None if "://" in value and parts.scheme not in {"", "memory"} else "try s3://bucket/checkpoints"


def _pattern_fault(value: str) -> str | None:
    if len(value) > 500:
        return "it is longer than 500 characters"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # "possible nested set" is not ours to judge
            compiled = re.compile(value)
    except (re.error, OverflowError, RecursionError) as error:
        return f"the expression is not valid: {error}"
    if compiled.groups < 1:
        return r"put the number in parentheses, such as loss=([0-9.]+)"
    return None


Text = Annotated[str, BeforeValidator(_text, json_schema_input_type=str | float)]
Texts = Annotated[list[Text], BeforeValidator(_texts, json_schema_input_type=str | list[str | float])]
Arguments = Annotated[list[Text], BeforeValidator(_arguments, json_schema_input_type=str | list[str | float])]
Name = Annotated[
    str,
    _matching(
        r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}",
        "a name of up to 63 letters, digits, '.', '_' and '-'",
        "start it with a letter or digit",
    ),
]
Module = Annotated[
    str, _matching(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", "a module such as package.train", "leave .py and - away")
]


def is_conda(path: str) -> bool:
    """Whether a file of that name is one for conda: environment.yml, or an explicit conda-….lock."""
    return path.endswith((".yml", ".yaml")) or path.rpartition("/")[2].startswith("conda-")


TorchBackend = Annotated[
    str,
    _matching(
        r"auto|cpu|xpu|(cu|rocm)[0-9]{1,3}(\.[0-9]{1,2}){0,2}", "a build of torch such as cu128, or auto"
    ),
]
PythonVersion = Annotated[
    str,
    _matching(
        r"(3(\.\d+){1,2}|(==|~=|[<>]=?)\s*3[0-9.]*(\s*,\s*(==|!=|~=|[<>]=?)\s*3[0-9.]*)*)",
        "a Python version such as 3.12 or >=3.11",
    ),
]
Cron = Annotated[
    str, _matching(r"\S+(\s+\S+){4}", "five cron fields", _CRON_HINT), AfterValidator(_check_cron)
]
Sha256 = Annotated[
    str, _matching(r"[0-9a-f]{64}", "64 lower-case hexadecimal digits", "`sha256sum` prints them")
]
RelativePath = Annotated[str, _checked(_path_fault, "a path inside the repository")]
Glob = Annotated[str, _checked(_path_fault, "a glob inside the working directory")]
Branch = Annotated[str, _checked(_branch_fault, "a branch name")]
CheckpointStore = Annotated[str, _checked(_store_fault, "an absolute path or a URL")]
ConfigFile = Annotated[str, _checked(_config_fault, "a JSON or YAML file inside the repository")]
Ref = Annotated[str, _checked(_ref_fault, "a branch, a tag or a full commit id")]
DataUrl = Annotated[str, _checked(_url_fault, "a URL")]
Pattern = Annotated[str, _checked(_pattern_fault, "a regular expression")]
EnvName = Annotated[str, _checked(env_fault, "a variable's name")]
SecretName = Annotated[str, _checked(secret_fault, "a secret's name")]


# --- quantities ---------------------------------------------------------------------------------------


def parse_size(value: Any) -> int:
    """Bytes of a size such as `16Gi`, `500MB` or 1024; `Gi` and `GiB` are 2^30, `G` and `GB` 10^9."""
    wanted = expected("a size such as 16Gi, 500MB or a number of bytes")
    if isinstance(value, bool):
        raise wanted
    match = _SIZE.fullmatch(spelling(value).strip()) if isinstance(value, (int, float, str)) else None
    if match is None:
        raise wanted
    number, unit, binary = match.groups()
    size = (
        int(float(number) * (1024 if binary else 1000) ** _POWERS.get(unit, 0))
        if unit
        else int(float(number))
    )
    if not 0 < size <= _MAX_SIZE:
        raise expected("a size from 1 byte to 1024Pi")
    return size


def parse_duration(value: Any) -> float:
    """Seconds of a duration such as `30m`, `1h30m`, `90s`, `2d` or 90."""
    wanted = expected("a duration such as 30m, 1h30m or a number of seconds")
    if _is_number(value):
        seconds = float(value)
    else:
        match = _DURATION.fullmatch(value.strip()) if isinstance(value, str) and value.strip() else None
        if match is None:
            raise wanted
        days, hours, minutes, rest = (float(part or 0) for part in match.groups())
        seconds = days * 86_400 + hours * 3600 + minutes * 60 + rest
    if not 0 < seconds <= MAX_DURATION_S:
        raise expected("a duration from above 0 to 366d")
    return seconds


@dataclass(frozen=True)
class NodeRange:
    """How many nodes a job may have: at least `min`, at most `max`."""

    min: int = 1
    max: int = 1

    def __str__(self) -> str:
        return str(self.min) if self.min == self.max else f"{self.min}:{self.max}"

    def __contains__(self, count: int) -> bool:
        return self.min <= count <= self.max


@dataclass(frozen=True)
class GpuRequest:
    """GPUs per node: a count, and the memory each must have in bytes. A count of 0 trains on CPU."""

    min: int = 0
    max: int = 0
    memory_min: int = 0
    memory_max: int | None = None

    def __str__(self) -> str:
        count = str(self.min) if self.min == self.max else f"{self.min}..{self.max}"
        if not self.memory_min and self.memory_max is None:
            return count
        upper = "" if self.memory_max is None else f"{self.memory_max}B"
        return f"{f'{self.memory_min}B' if self.memory_min else ''}..{upper}:{count}"


def parse_nodes(value: Any) -> NodeRange:
    """`2`, or `1:4` for one to four."""
    wanted = expected("a count such as 2, or a range such as 1:4")
    if isinstance(value, NodeRange):
        return value
    match = re.fullmatch(r"(\d{1,5})(?::(\d{1,5}))?", spelling(value)) if _countable(value) else None
    if match is None:
        raise wanted
    low, high = int(match[1]), int(match[2] or match[1])
    if not 1 <= low <= high <= MAX_NODES:
        raise expected(f"a count from 1 to {MAX_NODES}, the smaller one first")
    return NodeRange(low, high)


def parse_gpu(value: Any) -> GpuRequest:
    """`1`, `1..8`, `24GB..:1..8` (memory of each, then count) or `24GB` (one of at least that)."""
    hint = "" if isinstance(value, str) else "try gpu: 1, or gpu: 0 for none"
    wanted = expected("a count such as 1, or memory and count such as 24GB..:1..8", hint)
    if isinstance(value, GpuRequest):
        return value
    if not _countable(value):
        raise wanted
    memory, colon, count = spelling(value).strip().rpartition(":")
    if not colon and re.search(r"[A-Za-z]", count):
        memory, count = count, "1"
    if colon and not memory:
        raise wanted
    counts = re.fullmatch(r"(\d{1,4})(?:\.\.(\d{1,4}))?", count)
    if counts is None:
        raise wanted
    low, high = int(counts[1]), int(counts[2] or counts[1])
    if not 0 <= low <= high <= MAX_GPUS:
        raise expected(f"a count from 0 to {MAX_GPUS}, the smaller one first")
    try:
        memory_min, memory_max = _memory_range(memory) if memory else (0, None)
    except PydanticCustomError:
        raise wanted from None
    return GpuRequest(low, high, memory_min, memory_max)


def _memory_range(text: str) -> tuple[int, int | None]:
    low, dots, high = text.partition("..")
    least = parse_size(low) if low else 0
    most = parse_size(high) if high else None
    if (not low and not high) or (dots and most is not None and most < least):
        raise expected("memory such as 24GB.. or 16GB..80GB")
    return least, most


def parse_limit(value: Any) -> float | str:
    """A number, or `base` for whatever the base's result has."""
    if value == "base":
        return "base"
    if not _is_number(value) or not math.isfinite(value):
        raise expected("a number or base")
    return float(value)


def _countable(value: Any) -> bool:
    return isinstance(value, (int, str)) and not isinstance(value, bool)


def _number_or_text(value: NodeRange | GpuRequest) -> int | str:
    text = str(value)
    return int(text) if text.isdigit() else text


Size = Annotated[
    int,
    PlainValidator(parse_size),
    WithJsonSchema(
        {"anyOf": [{"type": "integer", "minimum": 1}, {"type": "string", "pattern": _SIZE_PATTERN}]}
    ),
]
Duration = Annotated[
    float,
    PlainValidator(parse_duration),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "number", "exclusiveMinimum": 0},
                {"type": "string", "pattern": _DURATION_PATTERN},
            ]
        }
    ),
]
Nodes = Annotated[
    NodeRange,
    PlainValidator(parse_nodes),
    PlainSerializer(_number_or_text, return_type=int | str),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": 1, "maximum": MAX_NODES},
                {"type": "string", "pattern": r"^\d+(:\d+)?$"},
            ]
        }
    ),
]
Gpus = Annotated[
    GpuRequest,
    PlainValidator(parse_gpu),
    PlainSerializer(_number_or_text, return_type=int | str),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 0, "maximum": MAX_GPUS}, {"type": "string"}]}),
]
Limit = Annotated[
    float | Literal["base"],
    PlainValidator(parse_limit),
    WithJsonSchema({"anyOf": [{"type": "number"}, {"const": "base"}]}),
]
Plain = Annotated[Any, BeforeValidator(plain)]
RetryCode = Literal[
    "checkout_failed",
    "rendezvous_unreachable",
    "connection_lost",
    "script_failed",
    "out_of_memory",
    "memory_limit",
    "timeout_setup",
    "lost",
    "disk_full",
    "container_failed",
    "internal",
]
