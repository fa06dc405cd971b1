"""What a real browser does: another origin's page cannot act, hostile texts stay texts, logging in works."""

from __future__ import annotations

from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from support.hostile import PAYLOADS, HostileSite
from support.servers import serving
from support.web import Web, web

WORDS = "four quite unrelated words"
ATTACK = """<!doctype html><title>evil</title>
<form id=f method=post action="{url}{path}"{enctype}>{fields}</form>
<script>document.getElementById("f").submit()</script>"""
FETCH = """async ([url, mode]) => {
  const init = {method: "POST", credentials: "include", mode, body: "{}"};
  if (mode === "cors") init.headers = {"Content-Type": "application/json", "X-CSRF-Token": "x"};
  try { const answer = await fetch(url, init); return answer.status; } catch { return -1; }
}"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    with web(tmp_path_factory.mktemp("browser")) as made:
        yield made


@pytest.fixture
def evil(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder, and the other origin that serves it: another port, which cookies do not tell apart."""
    with serving(SimpleHTTPRequestHandler, directory=str(tmp_path)) as url:
        yield tmp_path, url


def _log_in(chromium: Any, site: Web, name: str = "ada") -> Any:
    context = chromium.new_context()
    page = context.new_page()
    page.goto(f"{site.url}/login?link={site.sender.people.new_link(site.sender.now(), name)}")
    page.get_by_role("button", name="Log in").click()
    page.wait_for_url(f"{site.url}/jobs")
    return page


def test_a_person_is_invited_sets_a_password_and_acts(chromium: Any, site: Web) -> None:
    job = site.add_job()
    link = site.ask("POST", "/api/users", json={"name": "otto", "role": "operator"}).json()["url"]
    context = chromium.new_context()
    page = context.new_page()
    page.goto(link)
    assert page.locator("input[autocomplete=username]").input_value() == "otto"  # for password managers
    page.get_by_label("New password").fill(WORDS)
    page.get_by_role("button", name="Log in").click()
    page.wait_for_url(f"{site.url}/jobs")
    (cookie,) = context.cookies()
    assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Lax")
    page.goto(f"{site.url}/jobs/{job}")
    page.get_by_role("button", name="Stop").click()
    page.wait_for_url(f"{site.url}/jobs/{job}")
    assert site.get(f"/api/jobs/{job}")["stopping"] is True
    page.get_by_role("button", name="Log out").click()
    page.wait_for_url(f"{site.url}/login")
    page.get_by_label("Name").fill("otto")
    page.get_by_label("Password").fill("not the right words")
    page.get_by_role("button", name="Log in").first.click()
    assert "not the name and password" in page.get_by_role("alert").inner_text()
    page.get_by_label("Password").fill(WORDS)
    page.get_by_role("button", name="Log in").first.click()
    page.wait_for_url(f"{site.url}/jobs")
    context.close()


def test_another_origins_page_changes_nothing(chromium: Any, site: Web, evil: tuple[Path, str]) -> None:
    folder, origin = evil
    page = _log_in(chromium, site)
    job = site.add_job()
    before = site.sender.store.audit_rows()
    forms = [
        (f"/jobs/{job}/stop", "csrf=guessed"),
        ("/account/tokens", "name=evil"),
        ("/account/logout", ""),
        ("/logout", ""),
    ]
    forms += [("/api/join-tokens", "{}"), (f"/api/jobs/{job}/stop", "{}"), ("/api/me/logout", "{}")]
    for number, (path, said) in enumerate(forms):
        name, _, value = said.partition("=")
        fields = f'<input name="{name}" value="{value}">' if said else ""
        for enctype in ("", " enctype=text/plain"):
            shown = ATTACK.format(url=site.url, path=path, enctype=enctype, fields=fields)
            (folder / f"{number}.html").write_text(shown)
            with page.expect_response(lambda answer, path=path: answer.url == site.url + path) as answered:
                page.goto(f"{origin}/{number}.html")
            assert answered.value.status == 403, path
    page = page.context.new_page()
    page.goto(f"{origin}/")  # a folder's list, a page of that origin
    for path, _ in forms:
        for mode in ("no-cors", "cors"):
            assert page.evaluate(FETCH, [site.url + path, mode]) in (-1, 0), path
    assert site.get(f"/api/jobs/{job}")["stopping"] is False
    assert site.sender.store.audit_rows() == before
    page.goto(f"{site.url}/account")
    assert page.get_by_role("heading", name="ada").is_visible()  # and is still logged in
    page.context.close()


def test_no_page_can_be_framed_or_read_by_another_origin(
    chromium: Any, site: Web, evil: tuple[Path, str]
) -> None:
    folder, origin = evil
    page = _log_in(chromium, site)
    (folder / "frame.html").write_text(f'<!doctype html><iframe src="{site.url}/account"></iframe>')
    page.goto(f"{origin}/frame.html")
    page.wait_for_load_state("networkidle")
    assert "Access tokens" not in "".join(frame.content() for frame in page.frames)
    read = "url => fetch(url, {credentials: 'include'}).then(a => a.text(), () => 'refused')"
    assert page.evaluate(read, f"{site.url}/api/tokens") == "refused"
    page.context.close()


def test_hostile_texts_do_nothing_in_a_browser(chromium: Any, tmp_path: Path) -> None:
    with web(tmp_path) as site:
        hostile = HostileSite(site)
        page = _log_in(chromium, site)
        asked: list[str] = []
        spoken: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.on("dialog", lambda dialog: (spoken.append(dialog.message), dialog.dismiss()))
        for start in range(0, len(PAYLOADS), 31):
            hostile.say(*PAYLOADS[start:], *PAYLOADS[:start])
            for path in hostile.pages():
                page.goto(site.url + path)
                page.evaluate(
                    "() => document.querySelectorAll('details').forEach(one => { one.open = true; })"
                )
                page.mouse.move(200, 300)
        assert spoken == []
        assert {url for url in asked if not url.startswith(site.url + "/")} == set()
        page.context.close()
