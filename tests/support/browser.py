"""A real browser on a site: a page of somebody who is logged in, and what axe says of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from support.web import Web

AXE = Path(__file__).parents[1] / "npm" / "node_modules" / "axe-core" / "axe.min.js"
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking"]
PATIENCE_MS = 30_000  # where many tests share the machine


@contextmanager
def opened(chromium: Any, site: Web, **look: Any) -> Iterator[Any]:
    """Fails where the browser's console has anything to say."""
    context = chromium.new_context(**look)
    page, said = context.new_page(), []
    page.set_default_timeout(PATIENCE_MS)
    with site.log_in() as client:
        context.add_cookies(
            [{"name": one.name, "value": one.value, "url": site.url} for one in client.cookies.jar]
        )
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    yield page
    context.close()
    assert said == []


def faults(page: Any) -> list[str]:
    """What axe finds wrong with the page as it is now."""
    page.evaluate(AXE.read_text())
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [f"{one['id']}: {one['nodes'][0]['target']}" for one in found["violations"]]
