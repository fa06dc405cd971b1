"""The manifest: from a file's bytes to typed sections, or to every problem that it has.

The sections are in `manifest_models`, the values in `manifest_types`, the rules between keys in
`manifest_relations`, the words of the problems in `manifest_problems`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from trainforge.config.document import Document, Location, read_document
from trainforge.config.errors import ManifestError, Place, TrainForgeError
from trainforge.config.manifest_models import RESULTS_BRANCH, Manifest
from trainforge.config.manifest_problems import MAX_PROBLEMS, PlaceOf, to_problems
from trainforge.config.manifest_relations import faults
from trainforge.config.manifest_types import GpuRequest, NodeRange

__all__ = [
    "RESULTS_BRANCH",
    "GpuRequest",
    "Manifest",
    "NodeRange",
    "apply_overrides",
    "json_schema",
    "parse_manifest",
]

# Below these, a dotted override names one key, whatever dots it contains.
_OPEN_MAPPINGS = (
    "training.params",
    "training.env",
    "resources.labels",
    "metrics.patterns",
    "strategy.matrix",
)


def parse_manifest(text: str | bytes, path: str = "trainforge.yaml") -> Manifest:
    """Read a manifest. `path` is what the problems' places call the file.

    Raises:
        ManifestError: with every problem of the file, in the file's order.
    """
    document = read_document(text, path)
    if not document.usable:
        raise _refusal(document.problems)
    manifest, problems = _validate(document.value, lambda location, key: document.place(location, key=key))
    problems = _in_order(document, problems)
    if problems or manifest is None:
        raise _refusal(problems)
    return manifest


def apply_overrides(manifest: Manifest, overrides: Mapping[str, Any]) -> Manifest:
    """The manifest with some keys set anew, such as `{"resources.nodes": 2}`; values as in the file.

    Raises:
        ManifestError: an unknown key, or a value or combination that the file could not have either.
    """
    if not overrides:
        return manifest
    raw = manifest.model_dump(mode="json", exclude_unset=True)
    if len(raw.get("data") or ()) == 1:  # whose keys then have names
        raw["data"] = raw["data"][0]
    problems: list[TrainForgeError] = []
    for name, value in overrides.items():
        if fault := _set(raw, _split(name), copy.deepcopy(value)):
            problems.append(TrainForgeError(f"{name}: {fault}", place=Place("override")))
    changed, found = _validate(raw, lambda _location, _key: Place("override"))
    problems.extend(found)
    if problems or changed is None:
        raise _refusal(problems)
    return changed


def json_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of the manifest, for editors and other tools."""
    schema = Manifest.model_json_schema(mode="validation")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "trainforge.yaml",
    }


def _validate(raw: dict[str, Any], place_of: PlaceOf) -> tuple[Manifest | None, list[TrainForgeError]]:
    manifest: Manifest | None = None
    found: list[tuple[Location, TrainForgeError]] = []
    try:
        manifest = Manifest.model_validate(raw)
    except ValidationError as error:
        found = to_problems(error, place_of, alone=isinstance(raw.get("data"), dict))
    problems = [problem for _, problem in found]
    for fault in faults(raw, {location[:2] for location, _ in found}):
        place = place_of(fault.place, len(fault.place) == 1)
        problems.append(TrainForgeError(fault.message, hint=fault.hint, place=place))
    return manifest, problems


def _refusal(problems: list[TrainForgeError]) -> ManifestError:
    """An error that a person can read and a result can hold, whatever the file was."""
    if len(problems) <= MAX_PROBLEMS:
        return ManifestError(problems)
    kept = problems[:MAX_PROBLEMS]
    return ManifestError([*kept, TrainForgeError("there are more problems than these", place=kept[-1].place)])


def _in_order(document: Document, problems: list[TrainForgeError]) -> list[TrainForgeError]:
    def order(problem: TrainForgeError) -> tuple[int, int]:
        place = problem.place
        return (place.line or 0, place.column or 0) if place is not None else (0, 0)

    return sorted([*document.problems, *problems], key=order)


def _split(name: str) -> Location:
    for prefix in _OPEN_MAPPINGS:
        if name.startswith(f"{prefix}."):
            return (*prefix.split("."), name[len(prefix) + 1 :])
    return tuple(name.split("."))


def _set(raw: dict[str, Any], location: Location, value: Any) -> str:
    """Set one key in place; returns what stands in the way."""
    here = raw
    for part in location[:-1]:
        below = here.setdefault(str(part), {})
        if not isinstance(below, dict):
            return f"{part} is not a mapping"
        here = below
    here[str(location[-1])] = value
    return ""
