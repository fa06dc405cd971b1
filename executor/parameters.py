"""A job's parameters as one node's training gets them: in a file, its arguments, a config file of its own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from trainforge.config.errors import NodeFailed
from trainforge.config.messages import RunOrder
from trainforge.config.templates import fill

Params = dict[str, Any]


def of_node(order: RunOrder, rank: int, world: int) -> Params:
    """What was planned for this node, with its place among all added."""
    params = dict(order.params)
    if world > 1:
        place = {"world_size": world, "nodes": order.nodes, "node_rank": rank}
        params.setdefault("distributed", place | {"processes_per_node": world // order.nodes})
    return params


def arguments(texts: list[str], params: Mapping[str, Any]) -> list[str]:
    try:
        return [fill(text, params) for text in texts]
    except KeyError as error:
        reason = f"training.args: there is no parameter {error.args[0]}"
        raise NodeFailed(reason, code="manifest_invalid") from error


def write_config(path: Path, params: Mapping[str, Any], shown: str) -> None:
    """Lay the parameters over a JSON or YAML file; one that does not exist is made of them alone."""
    held: Any = {}
    try:
        text = path.read_text(encoding="utf-8")
        held = (json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)) or {}
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (ValueError, yaml.YAMLError) as error:
        reason = f"training.config: {shown} cannot be read: {error}"[:1000]
        raise NodeFailed(reason, code="manifest_invalid") from error
    if not isinstance(held, dict):
        raise NodeFailed(f"training.config: {shown} holds no mapping", code="manifest_invalid")
    merged = overlaid(held, params)
    if path.suffix == ".json":
        path.write_text(json.dumps(merged, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    else:
        path.write_text(yaml.safe_dump(merged, sort_keys=False, allow_unicode=True), encoding="utf-8")


def overlaid(below: Mapping[str, Any], above: Mapping[str, Any]) -> Params:
    """Mappings in mappings are laid over one another as well."""
    merged = dict(below)
    for key, value in above.items():
        under = merged.get(key)
        if isinstance(under, Mapping) and isinstance(value, Mapping):
            merged[key] = overlaid(under, value)
        else:
            merged[key] = value
    return merged
