"""The description of the API says of every route what is true of it, and of no other."""

from __future__ import annotations

import ast
from pathlib import Path

import httpx2
import jsonschema_rs
import pytest

from support import described
from support.web import Web
from trainforge.config import errors
from trainforge.config.problem_codes import PROBLEM_CODES
from trainforge.config.reasons import REASONS
from trainforge.sender.access import ACCESS, PUBLIC
from trainforge.sender.openapi import DESCRIBED, description
from trainforge.sender.operations import OPERATIONS

ROOT = Path(__file__).parents[2]


def test_every_route_of_the_api_is_described_and_nothing_else() -> None:
    routes = {row for row in ACCESS if row.split(" ")[1].startswith(DESCRIBED)}
    assert set(OPERATIONS) == routes
    described_ones = {
        (method, path) for path, methods in description()["paths"].items() for method in methods
    }
    assert len(described_ones) == len(routes)


def test_it_is_served_to_everybody_and_its_schemas_are_schemas(site: Web) -> None:
    answer = httpx2.get(f"{site.url}/api/openapi.json")
    assert answer.status_code == 200
    said = answer.json()
    assert said["openapi"] == "3.1.0"
    for schema in said["components"]["schemas"].values():
        jsonschema_rs.meta.validate(schema | {"$schema": said["jsonSchemaDialect"]})
    ids = [one["operationId"] for methods in said["paths"].values() for one in methods.values()]
    assert len(ids) == len(set(ids))


def test_only_public_routes_ask_for_nothing() -> None:
    for row in OPERATIONS:
        method, path = row.split(" ")
        said = description()["paths"][path.replace(":int", "").replace(":path", "")][method.lower()]
        assert bool(said["security"]) == (ACCESS[row] != PUBLIC), row


def test_an_answer_that_is_not_described_is_seen() -> None:
    for status, body in (
        (200, {"jobs": [{"id": "x"}]}),
        (200, {"jobs": [], "more": 1}),
        (418, {}),
        (422, {"code": "not_trusted"}),
    ):
        kind = "application/json" if status == 200 else "application/problem+json"
        answer = httpx2.Response(status, json=body, headers={"content-type": kind})
        with pytest.raises(AssertionError, match="GET /api/jobs"):
            described.check("GET", "/api/jobs", answer)


def _errors(kind: type[errors.TrainForgeError]) -> list[type[errors.TrainForgeError]]:
    return [kind, *(found for below in kind.__subclasses__() for found in _errors(below))]


def test_every_code_of_a_refusal_is_listed_with_its_status() -> None:
    for kind in _errors(errors.TrainForgeError):
        room = kind.__module__.split(".")[1]
        if room not in ("config", "hooks", "sender") or kind is errors.NodeFailed:
            continue  # told in a job's journal or at the command line, over no HTTP
        if kind.code in PROBLEM_CODES:
            assert kind.status in PROBLEM_CODES[kind.code].statuses, kind
        else:
            assert kind.code == "command_failed", kind  # of programs run, never over HTTP


def test_every_code_in_the_sender_and_its_hooks_is_listed() -> None:
    for path in [*ROOT.glob("sender/*.py"), *ROOT.glob("hooks/*.py"), *ROOT.glob("config/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.keyword) and node.arg == "code" and isinstance(node.value, ast.Constant):
                code = node.value.value
                assert not code or code in PROBLEM_CODES or code in REASONS, f"{path.name}: {code!r}"


def page() -> str:
    """The table in docs/troubleshooting.md."""
    rows = [
        f"| `{code}` | {'/'.join(map(str, one.statuses))} | {one.meaning} | {one.hint} |"
        for code, one in sorted(PROBLEM_CODES.items(), key=lambda item: (item[1].statuses, item[0]))
    ]
    return "\n".join(["| code | status | what it means | what to do |", "|---|---|---|---|", *rows])


def test_the_page_lists_every_code() -> None:
    text = (ROOT / "docs/troubleshooting.md").read_text()
    assert page() in text, f"docs/troubleshooting.md should have:\n{page()}"
