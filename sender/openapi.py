"""The description of the API at `/api/openapi.json` (OpenAPI 3.1), made of the models the routes use."""

from __future__ import annotations

import functools
import re
from http import HTTPStatus
from typing import Any, Literal

from pydantic import BaseModel, TypeAdapter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from trainforge import __version__
from trainforge.config.problem_codes import codes_of
from trainforge.config.views import ROLES
from trainforge.sender.access import ACCESS, PUBLIC, SIGNED, WORKFLOW
from trainforge.sender.answers import Problem
from trainforge.sender.operations import JSON, OPERATIONS, Operation
from trainforge.sender.problems import MEDIA_TYPE
from trainforge.sender.uploads import FILE, MEDIA

DESCRIBED = ("/api/", "/health", "/webhooks/", "/hooks/")
_NUMBER = {"type": "integer", "minimum": 0, "maximum": 2**63 - 1}
_NAME = {"type": "string", "minLength": 1}
_PARAMETER = re.compile(r"\{(\w+)(?::(\w+))?\}")
_WHERE = "#/components/schemas/{model}"
_SCHEMES: dict[str, Any] = {
    "token": {"type": "http", "scheme": "bearer", "description": "an access token, `tfp_...`"},
    "password": {"type": "http", "scheme": "basic", "description": "an access token as the password"},
    "session": {
        "type": "apiKey",
        "in": "cookie",
        "name": "trainforge_session",
        "description": "a page's; a change needs its `X-CSRF-Token` and `Origin` as well",
    },
    "workflow": {
        "type": "http",
        "scheme": "bearer",
        "description": "the token that GitHub Actions has given to a run, for this sender as audience",
    },
    "signature": {
        "type": "apiKey",
        "in": "header",
        "name": "X-Hub-Signature-256",
        "description": "HMAC-SHA256 of the body with the hook's secret",
    },
}


async def show(_request: Request) -> Response:
    return JSONResponse(description())


@functools.cache
def description() -> dict[str, Any]:
    """The whole document."""
    wanted: list[tuple[Any, Literal["validation", "serialization"], TypeAdapter[Any]]] = []
    for row, one in OPERATIONS.items():
        wanted += [((row, "answer"), "serialization", TypeAdapter(one.answer))]
        if one.ask is not None:
            wanted += [((row, "ask"), "validation", TypeAdapter(one.ask))]
    wanted += [(("", "problem"), "serialization", TypeAdapter(Problem))]
    found, shared = TypeAdapter.json_schemas(wanted, ref_template=_WHERE)
    schemas = {key[0]: schema for key, schema in found.items()}
    used = {status for row in OPERATIONS for status in refusals(row)}
    paths: dict[str, Any] = {}
    for row, one in OPERATIONS.items():
        method, _, path = row.partition(" ")
        entry = _operation(row, one, schemas)
        paths.setdefault(_PARAMETER.sub(r"{\1}", path), {})[method.lower()] = entry
    return {
        "openapi": "3.1.0",
        "jsonSchemaDialect": "https://json-schema.org/draft/2020-12/schema",
        "info": {
            "title": "TrainForge",
            "version": __version__,
            "description": "The JSON API of a sender. Times are unix seconds, sizes bytes.",
        },
        "paths": paths,
        "components": {
            "schemas": shared.get("$defs", {}),
            "responses": {str(status): _problem(status, schemas["", "problem"]) for status in sorted(used)},
            "securitySchemes": _SCHEMES,
        },
    }


def _operation(row: str, one: Operation, schemas: dict[tuple[str, str], Any]) -> dict[str, Any]:
    role = ACCESS[row]
    made: dict[str, Any] = {
        "operationId": re.sub(r"\W+", "_", row).strip("_"),
        "summary": one.summary,
        "description": f"Takes the role {role}." if role in ROLES else f"Open to: {role}.",
        "x-role": role,
        "security": _security(role),
        "parameters": [*_path_parameters(row), *_query_parameters(one.query)],
        "responses": _responses(row, one, schemas),
    }
    if one.ask is not None:
        made["requestBody"] = {"required": True, "content": {JSON: {"schema": schemas[row, "ask"]}}}
        if one.form is not None:
            made["requestBody"]["content"][MEDIA] = {"schema": _with_file(one.form)}
    elif role == SIGNED:
        made["requestBody"] = {"required": True, "content": {JSON: {"schema": {"type": "object"}}}}
    return made


def _with_file(form: type[BaseModel]) -> dict[str, Any]:
    schema = form.model_json_schema()
    about = {"type": "string", "format": "binary", "description": "the ZIP"}
    return {**schema, "properties": {**schema["properties"], FILE: about}, "required": [FILE]}


def _security(role: str) -> list[dict[str, list[str]]]:
    if role in ROLES:
        return [{"token": []}, {"password": []}, {"session": []}]
    return [{"workflow": []}] if role == WORKFLOW else [{"signature": []}] if role == SIGNED else []


def _path_parameters(row: str) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "in": "path",
            "required": True,
            "schema": _NUMBER if kind == "int" else _NAME,
        }
        for name, kind in _PARAMETER.findall(row)
    ]


def _query_parameters(model: type[BaseModel] | None) -> list[dict[str, Any]]:
    if model is None:
        return []
    schema = model.model_json_schema()
    needed = schema.get("required", ())
    found = []
    for name, said in schema.get("properties", {}).items():
        about = {key: value for key, value in said.items() if key != "title"}
        entry = {"name": name, "in": "query", "required": name in needed, "schema": about}
        found.append(entry | ({"description": said["description"]} if "description" in said else {}))
    return found


def _responses(row: str, one: Operation, schemas: dict[tuple[str, str], Any]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for media in one.media:
        content[media] = {"schema": schemas[row, "answer"] if media == JSON else {"type": "string"}}
    made: dict[str, Any] = {str(one.status): {"description": one.summary, "content": content}}
    if row.startswith("GET /api/") and JSON in one.media and ACCESS[row] in ROLES:
        made["304"] = {"description": "Nothing has changed since the ETag that If-None-Match names"}
    return made | {str(status): {"$ref": f"#/components/responses/{status}"} for status in refusals(row)}


def _problem(status: int, schema: dict[str, Any]) -> dict[str, Any]:
    """A refusal of this status, with the codes that it may have."""
    narrowed = {"properties": {"code": {"enum": codes_of(status)}, "status": {"const": status}}}
    content = {MEDIA_TYPE: {"schema": {"allOf": [schema, narrowed]}}}
    return {"description": HTTPStatus(status).phrase, "content": content}


def refusals(row: str) -> list[int]:
    """The statuses of problems that this address may answer."""
    one, role = OPERATIONS[row], ACCESS[row]
    found = {405, *one.refusals}
    if role != PUBLIC:
        found |= {401} if role == SIGNED else {401, 403}
    if one.ask is not None:
        found |= {413, 422}
    if one.query is not None:
        found |= {422}
    if "{" in row:
        found |= {404}
    if not row.startswith("GET "):
        found |= {503}
    return sorted(found)


routes = [Route("/openapi.json", show)]
