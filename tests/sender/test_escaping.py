"""Hostile texts on every page: no element, attribute or address comes out of any of them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser
from urllib.parse import quote

import httpx2
import pytest

from support.hostile import PAYLOADS, HostileSite
from support.web import web

ADDRESSES = ("href", "src", "action", "srcset", "formaction", "data", "poster", "data-stream")
ODD = {"img", "iframe", "base", "math", "style", "object", "embed", "video", "audio", "marquee", "plaintext"}
FORMS = (
    "/jobs", "/jobs/{job}", "/jobs/{job}/again", "/account", "/settings", "/settings/secrets",
    "/settings/people", "/executors/add", "/new", "/new?repository=nobody&ref=x",
)  # fmt: skip
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
    with httpx2.Client(base_url=site.url, headers=html | site.bearer, timeout=30) as client:
        login = _read(client.get("/login?next=%2Fjobs&link=x").text).shape
        nothing = _read(client.get("/jobs/zzz").text).shape
        for payload in PAYLOADS:
            said = quote(payload[:200].replace("\x00", ""), safe="")
            assert _read(client.get(f"/login?next={said}&link={said}").text).shape == login, payload
            page = client.get(f"/jobs/{said.replace('%2F', '')}").text
            assert _read(page).shape == nothing, payload
            page = client.get(f"/jobs?state={said}&project={said}&before={said}").text
            assert _odd(page) == [], payload
    for payload in PAYLOADS[:3]:
        wrong = httpx2.post(f"{site.url}/login", data={"name": payload, "password": payload}, headers=origin)
        assert wrong.status_code == 401
        assert payload not in wrong.text


def _odd(page: str) -> list[str]:
    """Elements that no page of ours has."""
    odd = ODD | ({"script"} if len(re.findall("<script", page)) > 2 else set())
    return [tag for tag, _ in _read(page).shape if tag in odd]


def test_every_field_of_every_form_takes_every_text(hostile: HostileSite) -> None:
    hostile.say("plain")
    with hostile.site.log_in() as browser:
        forms: dict[str, _Form] = {}
        for path in FORMS:
            for form in _forms(browser.get(path.format(job=hostile.job)).text):
                if form.texts and "password" not in form.action:
                    forms[f"{form.method} {form.action}"] = form
        assert sum(len(form.texts) for form in forms.values()) >= 20
        for name, form in forms.items():
            for start in range(0, len(PAYLOADS), STEP):
                said = form.filled(PAYLOADS[start:] + PAYLOADS)
                ask = browser.get if form.method == "get" else browser.post
                answer = ask(form.action, **{"params" if form.method == "get" else "data": said})
                assert answer.status_code < 500, (name, said)
                assert _odd(answer.text) == [], (name, said)
                assert "evil" not in answer.headers.get("set-cookie", "")
                assert re.match(r"/(?!/)", answer.headers.get("location", "/")), name


@dataclass
class _Form:
    method: str
    action: str
    kept: dict[str, str] = field(default_factory=dict)  # what it says by itself
    texts: list[str] = field(default_factory=list)  # the names of fields to type into

    def filled(self, payloads: Sequence[str]) -> dict[str, str]:
        said = self.kept | dict(zip(self.texts, payloads, strict=False))
        if self.method == "post":
            return said
        return {name: text[:500].replace("\x00", "") for name, text in said.items()}  # as an address can


def _forms(page: str) -> list[_Form]:
    reader = _Forms()
    reader.feed(page)
    return reader.forms


class _Forms(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.forms: list[_Form] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        said = {name: value or "" for name, value in attrs}
        if tag == "form":
            self.forms.append(_Form(said.get("method", "get"), said.get("action", "")))
        elif tag in {"input", "textarea"} and self.forms and "name" in said:
            kind = said.get("type", "text")
            if tag == "textarea" or kind in {"text", "search", "password", "number"}:
                self.forms[-1].texts.append(said["name"])
            elif kind == "hidden":
                self.forms[-1].kept[said["name"]] = said.get("value", "")


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
