"""The pages of jobs in a real browser: faultless for axe in every light and width, alive, and steady."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright import sync_api

from support.browser import check_looks, opened
from support.lively import Lively
from support.waiting import wait_for
from support.web import web

ROWS = "document.querySelectorAll('#log > div').length"


@pytest.fixture(scope="module")
def lively(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lively]:
    with web(tmp_path_factory.mktemp("dashboard")) as site:
        yield Lively(site)


def test_no_page_has_a_fault_for_axe(chromium: Any, lively: Lively) -> None:
    several = f"/compare?jobs={lively.old}&jobs={lively.other}&jobs={lively.running}"
    job = f"/jobs/{lively.running}"
    with opened(chromium, lively.site) as page:
        again = f"/jobs/{lively.old}/again"
        for name, path in {
            "job": job, "log": f"{job}/log?level=error", "again": again, "compare": several,
        }.items():  # fmt: skip
            page.goto(lively.site.url + path)
            if "/log" not in path and "/again" not in path:
                page.locator("figure canvas").first.wait_for()
            check_looks(page, name)


def test_charts_live_and_can_be_kept(chromium: Any, lively: Lively) -> None:
    site, job = lively.site, lively.running
    with opened(chromium, site) as page:
        page.goto(f"{site.url}/jobs/{job}")
        figure = page.locator("figure", has_text="loss")
        figure.locator("canvas").wait_for()
        site.metric(job, loss=0.0123)
        sync_api.expect(figure.locator(".num")).to_have_text("0.0123")
        assert page.evaluate("Object.values(Chart.instances).every((one) => one.scales.y.min >= 0)")
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
        older: list[str] = []
        page.on("response", lambda answer: "before=" in answer.url and older.append(answer.url))

        def pages_back(count: int) -> bool:  # by the keyboard as a reader would, again where it was too early
            log.press("Home")
            return len(set(older)) >= count

        wait_for("older lines above", lambda: pages_back(6))
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
