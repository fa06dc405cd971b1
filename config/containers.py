"""Names of container images, and folders of a machine that are shown in a container. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Annotated, Any

from pydantic import BeforeValidator

from trainforge.config.manifest_types import expected

_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,62})"
_HOST = rf"(?:localhost|{_LABEL}(?:\.{_LABEL})+|{_LABEL}(?:\.{_LABEL})*:\d{{1,5}})/"
_PART = r"[a-z0-9]+(?:(?:\.|__?|-+)[a-z0-9]+)*"
_TAG = r":[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}"
_IMAGE = re.compile(rf"(?:{_HOST})?{_PART}(?:/{_PART})*(?:{_TAG})?(?:@sha256:[0-9a-f]{{64}})?")
# What a job's own folders, its devices and its programs hang on.
_TAKEN = ("/", "/proc", "/sys", "/dev", "/tmp", "/run", "/etc", "/usr", "/bin", "/sbin", "/lib", "/lib64")  # noqa: S108


def _image(value: Any) -> Any:
    if not isinstance(value, str) or len(value) > 500 or not _IMAGE.fullmatch(value):
        raise expected("an image's name", "try python:3.12, or ghcr.io/ours/train@sha256:…")
    return value


ImageName = Annotated[str, BeforeValidator(_image, json_schema_input_type=str)]


@dataclass(frozen=True)
class Mount:
    """`source` is a folder of the machine, `target` where a container has it."""

    source: PurePosixPath
    target: PurePosixPath
    write: bool = False


def parse_volume(text: str) -> Mount:
    """Of `/data`, `/data:/inside` or `/data:/inside:rw`; it is read-only unless it says `rw`.

    Raises:
        ValueError: it has another form, or its place is not a volume's to take.
    """
    source, _, rest = text.partition(":")
    target, _, how = rest.partition(":")
    if how not in ("", "ro", "rw"):
        raise ValueError(f"it ends in ro or rw, not {how}")
    mount = Mount(PurePosixPath(source), PurePosixPath(target or source), how == "rw")
    for path in (mount.source, mount.target):
        if not path.is_absolute() or ".." in path.parts or "," in str(path) or not str(path).isprintable():
            raise ValueError("both are absolute paths without .. or commas")
    if str(mount.target) in _TAKEN or mount.target.parts[1:2] in (("proc",), ("sys",), ("dev",)):
        raise ValueError(f"{mount.target} is the container's own")
    return mount


def _volume(value: Any) -> Any:
    if not isinstance(value, str) or len(value) > 2000:
        raise expected("a folder of the machine", "try /data:/data:ro")
    try:
        parse_volume(value)
    except ValueError as error:
        raise expected("a folder of the machine", str(error)) from error
    return value


Volume = Annotated[str, BeforeValidator(_volume, json_schema_input_type=str)]


def allows(rules: list[str] | None, mount: Mount) -> bool:
    """Whether a rule names the folder or one above it: `/data` to read, `/scratch:rw` to write as well."""
    for rule in rules or []:
        folder, _, how = rule.partition(":")
        if mount.source.is_relative_to(folder) and (how == "rw" or not mount.write):
            return True
    return False
