"""docs/api-compatibility.md lists every compatibility route, each with a test that exists."""

from __future__ import annotations

import re
from pathlib import Path

from starlette.routing import Route

from trainforge.sender import api, compat

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "api-compatibility.md").read_text()
ROW = re.compile(r"^\| `(GET|POST|PUT|DELETE) (/\S+)` \|.*\| `(\S+)::(\w+)` \|$", re.MULTILINE)
ROWS = ROW.findall(PAGE)
OWN = {("GET", "/health"), ("GET", "/api/jobs/{job}"), ("POST", "/api/jobs")}


def _served(routes: list[Route]) -> set[tuple[str, str]]:
    return {
        (method, "/api" + re.sub(r":\w+}", "}", route.path))
        for route in routes
        for method in route.methods or ()
        if method != "HEAD"
    }


def test_the_table_has_every_route_and_no_other() -> None:
    listed = [(method, path) for method, path, _, _ in ROWS]
    assert len(listed) == len(set(listed)) == len(re.findall(r"^\| `", PAGE, re.MULTILINE))
    assert set(listed) == _served(compat.routes) | OWN
    assert ("GET", "/api/jobs/{job}") in _served(api.routes)


def test_every_test_of_the_table_exists() -> None:
    for _, path, file, name in ROWS:
        assert f"def {name}(" in (ROOT / "tests" / file).read_text(), path
