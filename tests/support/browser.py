"""A real browser on a site: a page of somebody who is logged in, and what axe says of it."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright import sync_api

from support.web import Web

AXE = Path(__file__).parents[1] / "npm" / "node_modules" / "axe-core" / "axe.min.js"
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking"]
PATIENCE_MS = 30_000  # where many tests share the machine
WIDE, NARROW = 1280, 390
LOOKS = [(scheme, width) for scheme in ("light", "dark") for width in (WIDE, NARROW)]
PICTURES = "TRAINFORGE_SCREENSHOTS"  # the variable with a folder for pictures of every page
_OPEN_ALL = "() => document.querySelectorAll('details').forEach(one => { one.open = true; })"
_AXE_RUN = "axe.run(document, {resultTypes: ['violations']})"


@contextmanager
def launched() -> Iterator[Any]:
    """A chromium of one's own."""
    sync_api.expect.set_options(timeout=PATIENCE_MS)
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=ARGUMENTS)
        yield browser
        browser.close()


@contextmanager
def opened(chromium: Any, site: Web, name: str = "ada", **look: Any) -> Iterator[Any]:
    """Fails where the browser's console has anything to say."""
    context = chromium.new_context(**look)
    page, said = context.new_page(), []
    page.set_default_timeout(PATIENCE_MS)
    with site.log_in(name) as client:
        context.add_cookies(
            [{"name": one.name, "value": one.value, "url": site.url} for one in client.cookies.jar]
        )
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    yield page
    context.close()
    assert said == []


def check_looks(page: Any, name: str) -> None:
    """In every light and width: axe finds no fault, nothing is wider than the screen, a picture is kept."""
    page.evaluate(_OPEN_ALL)
    for scheme, width in LOOKS:
        page.emulate_media(color_scheme=scheme)
        page.set_viewport_size({"width": width, "height": 900})
        _keep(page, f"{name}-{scheme}-{width}")
        assert _faults(page) == [], f"{name} {scheme} {width}"
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{name} {width}"


def _keep(page: Any, name: str) -> None:
    if folder := os.environ.get(PICTURES):
        file = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
        page.screenshot(path=Path(folder) / f"{file}.png", full_page=True)


def _faults(page: Any) -> list[str]:
    if not page.evaluate("'axe' in window"):
        page.evaluate(AXE.read_text())
    found = page.evaluate(_AXE_RUN)
    return [f"{one['id']}: {one['nodes'][0]['target']}" for one in found["violations"]]
