"""The pages of jobs in a real browser: faultless for axe in every light and width, alive, and steady."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright import sync_api

from support.lively import Lively
from support.waiting import wait_for
from support.web import Web, web

AXE = Path(__file__).parents[1] / "npm" / "node_modules" / "axe-core" / "axe.min.js"
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking"]
LOOKS = [("light", 1280), ("dark", 390)]  # each light and each width once
PATIENCE_MS = 30_000  # where many tests share the machine
ABOVE = "document.getElementById('log').scrollTop"
ROWS = "document.querySelectorAll('#log > div').length"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    sync_api.expect.set_options(timeout=PATIENCE_MS)
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def lively(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lively]:
    with web(tmp_path_factory.mktemp("dashboard")) as site:
        yield Lively(site)


@contextmanager
def opened(chromium: Any, site: Web, **look: Any) -> Iterator[Any]:
    """A page of somebody who is logged in; fails where the browser's console has anything to say."""
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


def _faults(page: Any) -> list[str]:
    page.evaluate(AXE.read_text())
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [f"{one['id']}: {one['nodes'][0]['target']}" for one in found["violations"]]


def test_no_page_has_a_fault_for_axe(chromium: Any, lively: Lively) -> None:
    several = f"/compare?jobs={lively.old}&jobs={lively.other}&jobs={lively.running}"
    job = f"/jobs/{lively.running}"
    with opened(chromium, lively.site) as page:
        for path in (job, f"{job}/log?level=error", f"/jobs/{lively.old}/again", several):
            page.goto(lively.site.url + path)
            if "/log" not in path and "/again" not in path:
                page.locator("figure canvas").first.wait_for()
            page.evaluate("() => document.querySelectorAll('details').forEach(one => { one.open = true; })")
            for scheme, width in LOOKS:
                page.emulate_media(color_scheme=scheme)
                page.set_viewport_size({"width": width, "height": 900})
                assert _faults(page) == [], f"{path} {scheme} {width}"
                assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{path} {width}"


def test_charts_live_and_can_be_kept(chromium: Any, lively: Lively) -> None:
    site, job = lively.site, lively.running
    with opened(chromium, site) as page:
        page.goto(f"{site.url}/jobs/{job}")
        figure = page.locator("figure", has_text="loss")
        figure.locator("canvas").wait_for()
        site.metric(job, loss=0.0123)
        sync_api.expect(figure.locator(".num")).to_have_text("0.0123")
        page.get_by_label("Ranks").select_option("all")
        sync_api.expect(figure.locator("canvas")).to_have_attribute("aria-label", re.compile("rank 2 "))
        page.get_by_label("log scale").check()
        page.get_by_label("Smoothing").fill("0.8")
        for kind, size in (("PNG", 3000), ("CSV", 9000)):
            with page.expect_download() as kept:
                figure.get_by_role("button", name=kind).click()
            assert Path(kept.value.path()).stat().st_size > size, kind
        page.reload()  # what was chosen stays chosen
        figure.locator("canvas").wait_for()
        assert page.get_by_label("log scale").is_checked()


def test_a_long_log_is_a_window_that_follows_filters_and_pages(chromium: Any, lively: Lively) -> None:
    site, job = lively.site, lively.running
    with opened(chromium, site) as page:
        page.goto(f"{site.url}/jobs/{job}")
        log, follow = page.locator("#log"), page.get_by_label("follow")
        site.log(job, "a fresh line", rank=1)
        sync_api.expect(log.locator("div").last).to_contain_text("a fresh line")
        site.log(job, *(f"burst {number}" for number in range(5000)))
        sync_api.expect(log.locator("div").last).to_contain_text("burst 4999")
        assert page.evaluate(ROWS) <= 600
        for _ in range(6):  # back through the pages, by the keyboard as a reader would
            log.press("Home")
            wait_for("older lines above", lambda: page.evaluate(ABOVE) > 400)
        assert page.evaluate(ROWS) <= 600
        assert not follow.is_checked()
        site.log(job, "said meanwhile")
        sync_api.expect(page.get_by_role("button", name="Newest (1 more)")).to_be_visible()
        page.get_by_role("button", name="Newest").click()
        sync_api.expect(log.locator("div").last).to_contain_text("said meanwhile")
        page.get_by_label("ERROR").check()
        sync_api.expect(log.locator("div")).to_have_count(3)
        page.get_by_label("ERROR").uncheck()
        page.get_by_label("Search").fill("FRESH")
        sync_api.expect(log.locator("mark")).to_have_text("fresh")
        site.log(job, "another", "a FRESH one")
        sync_api.expect(log.locator("div")).to_have_count(2)


def test_everything_is_there_without_scripts(chromium: Any, lively: Lively) -> None:
    with opened(chromium, lively.site, java_script_enabled=False) as page:
        page.goto(f"{lively.site.url}/jobs/{lively.running}")
        assert page.locator("svg.curve").count() >= 1
        page.get_by_label("ERROR").check()
        page.locator("#log-filter").get_by_role("button", name="Show").click()
        assert page.locator(".log > div").count() == 3
        page.get_by_role("link", name="First").click()
        assert page.locator(".log > div").count() == 3
        page.goto(f"{lively.site.url}/jobs/{lively.running}/log")
        page.get_by_role("link", name="Older").click()
        assert page.locator(".log > div").count() == 200
