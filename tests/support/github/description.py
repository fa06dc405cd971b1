"""GitHub's official description of its REST API (npm `@octokit/openapi`), and what is held against it."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from openapi_core import Config, OpenAPI
from openapi_core.datatypes import RequestParameters
from openapi_core.exceptions import OpenAPIError
from werkzeug.datastructures import Headers, ImmutableMultiDict

NPM = Path(__file__).parents[2] / "npm" / "node_modules" / "@octokit"
HOST = "https://api.github.com"
MISSING = "{path} is missing: run `npm ci --prefix tests/npm`, or `make test`, which does"


@cache
def description() -> dict[str, Any]:
    path = NPM / "openapi" / "generated" / "api.github.com.json"
    assert path.is_file(), MISSING.format(path=path)
    found: dict[str, Any] = json.loads(path.read_bytes())
    _allow_null(found)
    # An array has no `type` to tell a folder from a file by.
    answers = found["paths"]["/repos/{owner}/{repo}/contents/{path}"]["get"]["responses"]["200"]
    del answers["content"]["application/json"]["schema"]["discriminator"]
    # Of a user and an enterprise, an account is one, not both: so it says at a single installation.
    listed = found["paths"]["/app/installations"]["get"]["responses"]["200"]["content"]["application/json"]
    account = found["components"]["schemas"]["installation"]["properties"]["account"]
    listed["schema"]["items"]["properties"]["account"] = account
    return found


def _allow_null(node: Any) -> None:
    """An `enum` that is `nullable` has to list null as well in OpenAPI 3.0; GitHub's do not."""
    if isinstance(node, dict):
        if node.get("nullable") is True and isinstance(node.get("enum"), list) and None not in node["enum"]:
            node["enum"].append(None)
        for key, value in node.items():
            if key not in ("examples", "description"):
                _allow_null(value)
    elif isinstance(node, list):
        for value in node:
            _allow_null(value)


@cache
def _api() -> OpenAPI:
    return OpenAPI.from_dict(description(), config=Config(spec_validator_cls=None))


@cache
def webhook_examples() -> dict[str, list[dict[str, Any]]]:
    """GitHub's community's published payloads, by event."""
    path = NPM / "webhooks-examples" / "api.github.com" / "index.json"
    assert path.is_file(), MISSING.format(path=path)
    return {entry["name"]: entry["examples"] for entry in json.loads(path.read_bytes())}


@cache
def hook_events(kind: str) -> frozenset[str]:
    """The events that a hook of a `repository` or an `app` may ask for."""
    described = (one["post"]["x-github"] for one in description()["x-webhooks"].values())
    return frozenset(str(one["subcategory"]) for one in described if kind in one["supported-webhook-types"])


@cache
def _example(method: str, path: str, status: str) -> str:
    operation = description()["paths"][path][method.lower()]
    content = _resolved(operation["responses"][status])["content"]["application/json"]
    value = _resolved(_resolved(next(iter(content["examples"].values())))["value"])
    return json.dumps(value["value"] if isinstance(value, dict) and "value" in value else value)


def example(method: str, path: str, base: str, status: str = "200") -> Any:
    """The first example of an answer in the description, its addresses below `base`."""
    return json.loads(_example(method, path, status).replace(HOST, base))


def _resolved(node: Any) -> Any:
    while isinstance(node, dict) and "$ref" in node:
        found: Any = description()
        for part in node["$ref"].removeprefix("#/").split("/"):
            found = found[part.replace("~1", "/").replace("~0", "~")]
        node = found
    return node


def overlaid(shape: Any, /, **changes: Any) -> Any:
    """A copy of an example with our own values."""
    made = copy.deepcopy(shape)
    made.update(changes)
    return made


class Asked:
    """A request as openapi-core wants it."""

    def __init__(
        self, method: str, path: str, query: list[tuple[str, str]], headers: Mapping[str, str], body: bytes
    ) -> None:
        self.method = method.lower()
        self.path = path
        self.host_url = HOST
        self.body = body or None
        self.content_type = headers.get("content-type", "").partition(";")[0]
        self.parameters = RequestParameters(
            query=ImmutableMultiDict(query), header=Headers(list(headers.items()))
        )


class Answered:
    def __init__(self, status: int, body: bytes) -> None:
        self.status_code = status
        self.data = body or None
        self.content_type = "application/json"
        self.headers = Headers({"Content-Type": "application/json"})


def request_faults(asked: Asked) -> list[str]:
    """What GitHub would say about a request; nothing if it is as described."""
    return _faults(lambda: _api().validate_request(asked))


def answer_faults(asked: Asked, answered: Answered) -> list[str]:
    return _faults(lambda: _api().validate_response(asked, answered))


def _faults(check: Any) -> list[str]:
    try:
        check()
    except OpenAPIError as error:
        return list(_words(error))
    return []


def _words(error: BaseException | None) -> Iterator[str]:
    """From the cause that lies deepest: those above repeat the whole body."""
    while error is not None and error.__cause__ is not None:
        error = error.__cause__
    details = getattr(error, "schema_errors", ())
    for detail in details:
        yield f"at {'/'.join(map(str, detail.absolute_path)) or 'the top'}: {detail.message[:300]}"
    if not details:
        yield f"{type(error).__name__}: {str(error)[:300]}"
