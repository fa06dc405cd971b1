"""Hostile texts on every page: no element, attribute or address comes out of any of them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from urllib.parse import quote

import httpx2
import pytest

from support.hostile import PAYLOADS, HostileSite
from support.web import web

ADDRESSES = ("href", "src", "action", "srcset", "formaction", "data", "poster", "data-stream")
STEP = 4  # so that every payload meets every fourth field; with 1, all of them
Shape = list[tuple[str, tuple[str, ...]]]


class _Shape(HTMLParser):
    """The elements of a page with the names of their attributes, and where they lead."""

    def __init__(self) -> None:
        super().__init__()
        self.shape: Shape = []
        self.addresses: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.shape.append((tag, tuple(name for name, _ in attrs)))
        self.addresses |= {value or "" for name, value in attrs if name in ADDRESSES}

    def handle_endtag(self, tag: str) -> None:
        self.shape.append((f"/{tag}", ()))

    def handle_comment(self, data: str) -> None:
        self.shape.append(("comment", ()))

    def handle_decl(self, decl: str) -> None:
        self.shape.append((decl, ()))


def _read(page: str) -> _Shape:
    reader = _Shape()
    reader.feed(page)
    reader.close()
    return reader


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostileSite]:
    with web(tmp_path_factory.mktemp("hostile")) as site:
        yield HostileSite(site)


def _render(hostile: HostileSite) -> dict[str, str]:
    return {
        path: hostile.site.ask("GET", path, headers={"Accept": "text/html"}).text for path in hostile.pages()
    }


def test_no_text_changes_what_a_page_is_made_of(hostile: HostileSite) -> None:
    hostile.say("plain")
    plain = {path: _read(page) for path, page in _render(hostile).items()}
    assert all(len(page.shape) > 30 for page in plain.values())
    for start in range(0, len(PAYLOADS), STEP):
        hostile.say(*PAYLOADS[start:], *PAYLOADS[:start])
        for path, page in _render(hostile).items():
            read = _read(page)
            assert read.shape == plain[path].shape, f"{path}: {start}"
            for address in read.addresses:
                assert re.match(r"/[a-z]|$", address), f"{path}: {address!r}"
            assert not re.search("[\x00\x1b\u202e]", page), path


def test_every_field_reaches_a_page(hostile: HostileSite) -> None:
    hostile.say("<needle>")
    counts = {path: page.count("x&lt;needle&gt;") for path, page in _render(hostile).items()}
    assert counts.pop(f"/jobs/{hostile.job}") > 25
    assert all(count >= 1 for count in counts.values()), counts


def test_what_a_request_says_is_shown_as_text(hostile: HostileSite) -> None:
    hostile.say("plain")
    site = hostile.site
    html, origin = {"Accept": "text/html"}, {"Origin": site.url, "Accept": "text/html"}
    login = _read(httpx2.get(f"{site.url}/login?next=%2Fjobs&link=x", headers=html).text).shape
    nothing = _read(site.ask("GET", "/jobs/zzz", headers=html).text).shape
    for payload in PAYLOADS:
        said = quote(payload.replace("\x00", ""), safe="")
        page = httpx2.get(f"{site.url}/login?next={said}&link={said}", headers=html).text
        assert _read(page).shape == login, payload
        page = site.ask("GET", f"/jobs/{said.replace('%2F', '')}", headers=html).text
        assert _read(page).shape == nothing, payload
        page = site.ask("GET", f"/jobs?state={said}&project={said}&before={said}", headers=html).text
        assert len(re.findall("<script", page)) == 1
        assert not [tag for tag, _ in _read(page).shape if tag in {"img", "iframe", "base", "math", "style"}]
    for payload in PAYLOADS[:3]:
        wrong = httpx2.post(f"{site.url}/login", data={"name": payload, "password": payload}, headers=origin)
        assert wrong.status_code == 401
        assert payload not in wrong.text


def test_data_is_not_a_page_wherever_it_is_opened(hostile: HostileSite) -> None:
    for path in (
        "/api/jobs",
        f"/api/jobs/{hostile.job}",
        f"/api/jobs/{hostile.job}/logs",
        "/api/jobs/zzz",
        "/health",
    ):
        answer = hostile.site.ask("GET", path)
        assert answer.headers["content-type"].split(";")[0] in {
            "application/json",
            "application/problem+json",
        }
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "sandbox" in answer.headers["content-security-policy"]
