"""The pages beside those of one job in a real browser: faultless for axe, alive, and telling of ends."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright import sync_api

from support.browser import check_looks, opened
from support.compat import PLUGIN, add_plugin, gpu_machine
from support.waiting import wait_for
from support.web import Web, web

RECORDER = """window.told = [];
window.Notification = class { constructor(title, more) { window.told.push(title); }
  static permission = "default"; static requestPermission() { this.permission = "granted"; } };"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    """Jobs in every state, machines of every kind, and a repository that can be trained."""
    folder = tmp_path_factory.mktemp("pages")
    with web(folder) as made:
        add_plugin(made, folder)
        alpha = gpu_machine(made, "alpha")
        made.add_executor("beta", labels={"zone": "east"})
        with made.sender.store.write() as c:
            c.exec_driver_sql("UPDATE executors SET pending = 1 WHERE name = 'beta'")
        running = made.add_job(subject="Try a larger batch", author="ada")
        made.add_node(running, alpha)
        made.set(running, progress=0.4, metrics={"loss": 0.25})
        waiting = made.add_job(subject="Wait for machines", author="bo", priority=3)
        made.set(waiting, waiting={"alpha": "has 0 of 1 slots free", "beta": "waits for approval"})
        made.end(made.add_job(subject="Break"), "failed", code="script_failed", reason="exit code 1")
        secret = {"name": "HF_TOKEN", "repository": "demo", "value": "hf_0123456789"}
        assert made.ask("POST", "/api/secrets", json=secret).status_code == 200
        yield made


def test_no_page_has_a_fault_for_axe(chromium: Any, site: Web) -> None:
    alpha = site.sender.queries.executor("alpha", 0).id
    paths = {name: f"/{name}" for name in ("jobs", "queue", "events", "settings", "account")}
    parts = ("secrets", "notifications", "people", "audit?verify=1")
    paths |= {f"settings-{part.partition('?')[0]}": f"/settings/{part}" for part in parts}
    paths |= {"executors-table": "/executors?view=table", "executors-grid": "/executors?view=grid"}
    paths |= {"executor": f"/executors/{alpha}", "executor-add": "/executors/add"}
    paths |= {"new": f"/new?repository={PLUGIN}&ref=refs/heads/main"}
    with opened(chromium, site) as page:
        for name, path in paths.items():
            page.goto(site.url + path)
            check_looks(page, name)
        page.goto(f"{site.url}/new?repository={PLUGIN}&ref=refs/heads/main")
        page.get_by_role("slider", name="gpu slider").fill("2")
        sync_api.expect(page.get_by_label("GPUs per machine")).to_have_value("2")
        page.get_by_label("GPUs per machine").fill("8")
        page.get_by_role("button", name="Show the plan").click()
        page.wait_for_url(f"{site.url}/new/*")
        check_looks(page, "plan")
        page.goto(f"{site.url}/executors/add")
        page.get_by_label("Name").fill("axe")
        page.get_by_role("button", name="Show the line").click()
        page.get_by_text("Paste this on axe").wait_for()
        check_looks(page, "line")


def test_a_machine_is_greeted_and_a_job_appears_without_loading_again(chromium: Any, site: Web) -> None:
    with opened(chromium, site) as page:
        page.goto(f"{site.url}/executors/add")
        page.get_by_label("Name").fill("gamma")
        page.get_by_role("button", name="Show the line").click()
        page.get_by_text("for gamma").wait_for()
        site.add_executor("gamma")
        page.get_by_text("Welcome, gamma!").wait_for()
        assert "trainforge executor join" in page.locator(".paste").inner_text()
        page.goto(f"{site.url}/jobs")
        chosen = page.get_by_role("checkbox").first
        chosen.check()
        value = chosen.get_attribute("value")
        site.add_job(subject="A fresh one")
        page.get_by_text("A fresh one").wait_for()
        assert page.locator(f"input[value='{value}']").is_checked()


def test_every_page_and_action_works_without_scripts(chromium: Any, tmp_path: Path) -> None:
    with web(tmp_path) as site:
        add_plugin(site, tmp_path)
        alpha, beta = gpu_machine(site, "alpha"), site.add_executor("beta")
        with site.sender.store.write() as c:
            c.exec_driver_sql("UPDATE executors SET pending = 1 WHERE name = 'beta'")
        with opened(chromium, site, java_script_enabled=False) as page:
            _look_everywhere(page, site, alpha)
            _act_on_jobs(page, site)
            _act_on_machines(page, site, beta)
            _act_on_settings(page, site)


def _click(page: Any, name: str, sees: str | re.Pattern[str]) -> None:
    page.get_by_role("button", name=name, exact=True).first.click()
    page.get_by_text(sees).first.wait_for()


def _look_everywhere(page: Any, site: Web, executor: str) -> None:
    lists = ("jobs", "queue", "executors", "events", "settings", "account", "new", "executors/add", "compare")
    parts = ("settings/secrets", "settings/people", "settings/audit", f"executors/{executor}")
    for path in (*lists, *parts):
        page.goto(f"{site.url}/{path}")
        assert page.locator("h1").is_visible(), path


def _act_on_jobs(page: Any, site: Web) -> None:
    page.goto(f"{site.url}/jobs")
    page.get_by_role("link", name="New job").click()
    page.get_by_label("Repository").first.select_option(PLUGIN)
    _click(page, "Choose", "Branch")
    _click(page, "Read the manifest", "Parameters")
    page.get_by_label("learning_rate").fill("0.5")
    _click(page, "Show the plan", "Nothing is queued before this")
    _click(page, "Train", "Asked for")
    job = page.url.rsplit("/", 1)[1]
    _click(page, "Stop", "stopping")
    site.end(job, "failed", code="script_failed")
    page.reload()
    page.get_by_role("link", name="Run again with changes").click()
    page.get_by_label("Keys of the manifest").fill("training.params.learning_rate=0.25")
    _click(page, "Run again", "Runs again")
    page.goto(f"{site.url}/jobs")
    for box in page.get_by_role("checkbox").all():
        box.check()
    _click(page, "Compare the chosen jobs", "Parameters that differ")


def _act_on_machines(page: Any, site: Web, executor: str) -> None:
    page.goto(f"{site.url}/executors/{executor}")
    _click(page, "Approve", "online")
    _click(page, "Drain", "draining")
    _click(page, "Take jobs again", "online")
    page.goto(f"{site.url}/executors/add")
    page.get_by_label("Name").fill("delta")
    _click(page, "Show the line", "Paste this on delta")
    page.get_by_role("link", name="Is it here?").click()
    page.goto(f"{site.url}/executors/{executor}")
    page.get_by_text("Remove this executor").click()
    _click(page, "Remove beta", "revoked")


def _act_on_settings(page: Any, site: Web) -> None:
    page.goto(f"{site.url}/settings/secrets")
    page.get_by_label("Name").fill("HF_TOKEN")
    page.get_by_label("Value").fill("hf_0123456789")
    _click(page, "Keep it", "HF_TOKEN is kept")
    _click(page, "Remove HF_TOKEN", "None yet")
    page.goto(f"{site.url}/settings/people")
    page.get_by_label("Name").fill("mia")
    _click(page, "Invite", "/login?link=")
    _click(page, "Make a token", "executor join")
    page.goto(f"{site.url}/account")
    page.get_by_label("Name").fill("laptop")
    _click(page, "Make a token", "tfp_")
    _click(page, "Revoke laptop", "Access tokens")
    page.goto(f"{site.url}/events")
    _click(page, f"Look again at {PLUGIN}", re.compile("Nothing new|TrainForge: "))  # what has just happened
    _click(page, "Log out", "Access token")


def test_a_page_goes_on_after_its_sender_was_restarted(chromium: Any, tmp_path: Path) -> None:
    with web(tmp_path) as before:
        job = before.add_job()
        before.log(job, "said before")
        port = int(before.url.rpartition(":")[2])
        page = chromium.new_context().new_page()
        page.goto(f"{before.url}/login?link={before.sender.people.new_link(before.sender.now())}")
        page.get_by_role("button", name="Log in").click()
        page.goto(f"{before.url}/jobs/{job}")
        page.evaluate("window.same = true")
    page.get_by_text("The sender does not answer").wait_for()
    with web(tmp_path, port=port) as after:
        after.log(job, "said after")
        after.set(job, progress=0.25)
        page.get_by_role("button", name="Try now").click()
        page.get_by_text("said after").wait_for()
        page.get_by_role("progressbar", name="Progress").wait_for()
        sync_api.expect(page.locator("#trouble")).to_be_hidden()
        assert page.get_by_text("said before").is_visible()
        assert page.evaluate("window.same")  # the page was never loaded again
        page.context.close()


def test_what_one_browser_does_another_sees(chromium: Any, site: Web) -> None:
    site.sender.people.add_user("vera", "viewer", site.sender.now())
    job = site.add_job(subject="Seen by both")
    with opened(chromium, site) as mine, opened(chromium, site, "vera") as other:
        mine.goto(f"{site.url}/jobs/{job}")
        other.goto(f"{site.url}/jobs/{job}")
        assert other.get_by_role("button", name="Stop").count() == 0
        mine.get_by_role("button", name="Stop").click()
        other.get_by_text("stopping").wait_for()
        site.end(job, "cancelled")
        for page in (mine, other):
            page.locator("h1 .state.cancelled").wait_for()
        mine.get_by_role("button", name="Run again", exact=True).wait_for()
        assert other.get_by_role("button", name="Run again").count() == 0


def test_the_end_of_a_job_is_told_once_and_only_after_a_click(chromium: Any, site: Web) -> None:
    job = site.add_job(project="told")
    with opened(chromium, site) as page:
        page.add_init_script(RECORDER)
        page.clock.install()
        page.goto(f"{site.url}/jobs")
        page.clock.run_for(11_000)
        with page.expect_response("**/api/jobs?limit=50"):
            page.get_by_role("button", name="Tell me").click()
        sync_api.expect(page.get_by_role("button", name="Tell me")).to_be_hidden()
        wait_for("first look", lambda: page.evaluate("localStorage.getItem('trainforge-told')"), 20)
        site.end(job)
        page.clock.run_for(11_000)
        wait_for("notification", lambda: page.evaluate("told.length"), 20)
        with page.expect_response("**/api/jobs?limit=50"):
            page.clock.run_for(11_000)
        assert page.evaluate("told") == ["told completed"]
