"""Holds answers of the API to its own description: status, media type, problem code, and every key."""

from __future__ import annotations

import copy
import functools
import json
import re
from typing import Any

import httpx2
import jsonschema_rs

from trainforge.sender.openapi import DESCRIBED, description

STREAM = "text/event-stream"


def check(method: str, path: str, answer: httpx2.Response) -> None:
    """Fails where an answer is none of those that the description has for this address."""
    path = path.partition("?")[0]
    if not path.startswith(DESCRIBED):
        return
    found = template(path, method)
    if found is None:
        assert answer.status_code in (404, 405), f"{method} {path}: not described, yet {answer.status_code}"
        return
    where = f"{method} {path}: {answer.status_code} {answer.text[:300]}"
    said = _closed()["paths"][found][method.lower()]["responses"].get(str(answer.status_code))
    assert said is not None, f"this status is not described: {where}"
    if "$ref" in said:
        said = _closed()["components"]["responses"][str(answer.status_code)]
    if answer.status_code == 304:
        assert not answer.content, where
        return
    media = answer.headers.get("content-type", "").partition(";")[0]
    assert media in said["content"], f"{media} is not described: {where}"
    if media.endswith("json"):
        problems = [
            f"{'/'.join(map(str, error.instance_path))}: {error.message}"
            for error in _validator(found, method.lower(), str(answer.status_code), media).iter_errors(
                json.loads(answer.text)
            )
        ]
        assert not problems, f"{problems[:3]} in {where}"


def template(path: str, method: str) -> str | None:
    """The described path that this one is of; one without parameters goes first, as in the sender."""
    fitting = [
        (known.count("{"), known)
        for known, pattern in _patterns()
        if pattern.fullmatch(path) and method.lower() in description()["paths"][known]
    ]
    return min(fitting)[1] if fitting else None


@functools.cache
def _patterns() -> list[tuple[str, re.Pattern[str]]]:
    whole = {"key": ".+", "token": r"\d+"}
    return [
        (path, re.compile(re.sub(r"\\{(\w+)\\}", lambda m: whole.get(m[1], "[^/]+"), re.escape(path))))
        for path in description()["paths"]
    ]


@functools.cache
def _closed() -> dict[str, Any]:
    """The description, but with no key that it does not name, so that nothing is added unsaid."""
    made = copy.deepcopy(description())
    for schema in made["components"]["schemas"].values():
        if "properties" in schema:
            schema.setdefault("additionalProperties", False)
    return made


@functools.cache
def _validator(path: str, method: str, status: str, media: str) -> Any:
    said = _closed()["paths"][path][method]["responses"][status]
    said = _closed()["components"]["responses"][status] if "$ref" in said else said
    schema = said["content"][media]["schema"]
    return jsonschema_rs.validator_for({"allOf": [schema], "components": _closed()["components"]})
