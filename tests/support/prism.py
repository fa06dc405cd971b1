"""Prism, which plays GitHub by nothing but GitHub's own description: it refuses what that does not allow, and
answers with its examples. It remembers nothing; `support.github` does.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from support.github.calls import ROUTES
from support.github.description import MISSING, NPM, description
from support.waiting import wait_for

PROGRAM = NPM.parent / ".bin" / "prism"
NOWHERE = "http://127.0.0.1:9"


class Prism:
    def __init__(self, log: Path) -> None:
        self._log = log

    @property
    def url(self) -> str:
        """Empty until it listens."""
        found = re.search(r"Prism is listening on (\S+)", self._log.read_text())
        return found[1] if found else ""

    def refused(self) -> list[str]:
        """What was wrong with requests so far. That an example breaks its own schema is not our doing."""
        said = re.findall(r"✖ +error +(.*)", self._log.read_text())
        return [one for one in said if not one.startswith("Violation: response")]


@contextmanager
def serving_prism(root: Path) -> Iterator[Prism]:
    """Prism on a port of its own."""
    assert PROGRAM.is_file(), MISSING.format(path=PROGRAM)
    document, log = root / "github.json", root / "prism.log"
    document.write_text(json.dumps(reduced()).replace("https://github.com", NOWHERE))
    command = ["node", str(PROGRAM), "mock", "--host", "127.0.0.1", "--port", "0", str(document)]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    prism = Prism(log)
    try:
        wait_for("Prism", lambda: prism.url or process.poll() is not None, explain=log.read_text)
        assert prism.url, log.read_text()
        yield prism
    finally:
        process.terminate()
        process.wait(20)


def reduced() -> dict[str, Any]:
    """What the description says of the calls that `support.github` knows, with what that refers to.

    Prism takes 13 seconds and 400 MB to read it all.
    """
    whole = description()
    paths: dict[str, Any] = {}
    for route in ROUTES:
        method = route.method.lower()
        paths.setdefault(route.path, {})[method] = whole["paths"][route.path][method]
    components: dict[str, Any] = {}
    waiting = list(_references(paths))
    while waiting:
        _, _, kind, name = waiting.pop().split("/")
        if name not in components.setdefault(kind, {}):
            components[kind][name] = whole["components"][kind][name]
            waiting += _references(components[kind][name])
    components["headers"]["link"] = {"schema": {"type": "string"}, "example": ""}  # else no list has an end
    return {key: whole[key] for key in ("openapi", "info")} | {"paths": paths, "components": components}


def _references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        node = list(node.values())
    if isinstance(node, list):
        for value in node:
            yield from _references(value)
