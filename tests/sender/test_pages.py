"""The pages: whole without any script, and harmless whatever a job, a commit or a machine says."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.web import Web
from trainforge.sender import text

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>'\"{{7*7}}\x1b[31m\u202egpj"
PAGES = ("/jobs", "/executors", "/events", "/login", "/nope")


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def _tags(page: str) -> list[tuple[str, dict[str, str | None]]]:
    parser = _Tags()
    parser.feed(page)
    return parser.tags


def test_who_is_not_logged_in_is_sent_to_the_login_and_back(site: Web) -> None:
    answer = httpx2.get(f"{site.url}/jobs?state=failed", headers={"Accept": "text/html"})
    assert answer.status_code == 303
    assert answer.headers["location"] == "/login?next=%2Fjobs%3Fstate%3Dfailed"
    login = httpx2.get(site.url + answer.headers["location"])
    assert 'value="/jobs?state=failed"' in login.text


def test_hostile_text_is_text_wherever_it_comes_from(site: Web) -> None:
    executor = site.add_executor("alpha", hostname=HOSTILE, torch=HOSTILE, labels={"zone": HOSTILE})
    job = site.add_job(subject=HOSTILE, author=HOSTILE, project="digits", manifest_text=HOSTILE)
    site.add_node(job, executor, detail=HOSTILE, reason=HOSTILE, code="script_failed")
    site.log(job, HOSTILE, "</div></section><script>x</script>")
    site.metric(job, **{HOSTILE: 0.5})
    artifacts = [{"path": HOSTILE, "size": 1, "sha256": HOSTILE}]
    site.set(job, waiting={HOSTILE: HOSTILE}, reason=HOSTILE, code="script_failed", artifacts=artifacts)
    for path in ("/jobs", f"/jobs/{job}", "/executors", "/events"):
        page = site.ask("GET", path, headers={"Accept": "text/html"}).text
        tags = _tags(page)
        assert "alert(1)" not in page or "&lt;script&gt;alert(1)" in page
        assert [attrs for tag, attrs in tags if tag == "script"] == [
            {"type": "module", "src": "/static/live.js"}
        ]
        assert not [tag for tag, _ in tags if tag == "img"]
        assert not [name for _, attrs in tags for name in attrs if name.startswith("on") or name == "style"]
        assert "\x1b" not in page
        assert "\u202e" not in page
        assert "{{7*7}}" in page or path in {"/events", "/executors"}


def test_a_terminal_code_is_taken_off_and_its_text_kept(site: Web) -> None:
    job = site.add_job()
    site.log(job, "\x1b[1;32mepoch 1\x1b[0m done \x1b]0;title\x07ok")
    page = site.ask("GET", f"/jobs/{job}").text
    assert "epoch 1 done ok" in page


@pytest.mark.parametrize("path", PAGES)
def test_every_page_forbids_what_it_does_not_need(site: Web, path: str) -> None:
    answer = httpx2.get(site.url + path, headers={"Accept": "text/html"} | site.bearer)
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "<style" not in answer.text
    assert not re.search(r"<script(?![^>]*\bsrc=)", answer.text)


def test_the_job_page_tells_why_it_waits_and_why_it_failed(site: Web) -> None:
    job = site.add_job()
    site.set(job, waiting={"alpha": "has no GPUs, 1 needed"})
    page = site.ask("GET", f"/jobs/{job}").text
    assert "Why it waits" in page
    assert "has no GPUs, 1 needed" in page
    site.log(job, "ZeroDivisionError: division by zero", stream="stderr")
    site.end(job, "failed", code="script_failed", reason="exit code 1")
    page = site.ask("GET", f"/jobs/{job}").text
    assert "ZeroDivisionError: division by zero" in page
    assert "the training script ended with an error" in page
    assert "data-stream" not in page
    assert "Run again" in page


def test_a_job_page_shows_ranks_metrics_and_their_course(site: Web) -> None:
    job = site.add_job()
    for value in (0.9, 0.5, 0.25):
        site.metric(job, loss=value)
    site.log(job, "first", rank=0)
    site.log(job, "second", rank=3)
    page = site.ask("GET", f"/jobs/{job}").text
    assert "rank 3" in page
    assert "<polyline points=" in page
    assert "0.25" in page
    assert f'data-stream="/api/jobs/{job}/logs?page=1' in page


def test_a_prefix_leads_to_the_jobs_page(site: Web) -> None:
    job = site.add_job()
    answer = site.ask("GET", f"/jobs/{job[:6]}")
    assert (answer.status_code, answer.headers["location"]) == (307, f"/jobs/{job}")
    missing = site.ask("GET", "/jobs/zzzz", headers={"Accept": "text/html"})
    assert missing.status_code == 404
    assert "no job begins with zzzz" in missing.text


def test_the_stop_button_stops_without_a_script(site: Web) -> None:
    job = site.add_job()
    with site.log_in() as browser:
        page = browser.get(f"/jobs/{job}").text
        assert f'action="/jobs/{job}/stop"' in page
        answer = browser.post(f"/jobs/{job}/stop")
        assert (answer.status_code, answer.headers["location"]) == (303, f"/jobs/{job}")
        assert "stopping" in browser.get(f"/jobs/{job}").text
        site.end(job, "cancelled")
        assert browser.post(f"/jobs/{job}/stop").status_code == 303


def test_the_list_leads_to_older_jobs(site: Web) -> None:
    for _ in range(52):
        site.add_job()
    page = site.ask("GET", "/jobs").text
    older = re.search(r'href="(/jobs\?before=\w+)"', page)
    assert older is not None
    assert page.count('<a class="id"') == 50
    assert site.ask("GET", older[1]).text.count('<a class="id"') == 2


def test_static_files_are_served_and_nothing_beside_them(site: Web) -> None:
    script = httpx2.get(f"{site.url}/static/live.js")
    assert script.status_code == 200
    assert "javascript" in script.headers["content-type"]
    assert "innerHTML" not in script.text
    for path in ("/static/../app.py", "/static/%2e%2e/app.py", "/static/"):
        assert httpx2.get(site.url + path).status_code == 404


@given(st.text())
def test_plain_text_has_no_codes_and_is_stable(raw: str) -> None:
    shown = text.plain(raw)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", shown)
    assert text.plain(shown) == shown


@given(st.lists(st.floats(), max_size=500))
def test_a_course_fits_its_picture(values: list[float]) -> None:
    for point in text.polyline(values).split():
        x, y = map(float, point.split(","))
        assert 0 <= x <= 120
        assert 0 <= y <= 28


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (61, "1 min 01 s"), (3700, "1 h 01 min"), (90_000, "1 d 1 h"), (None, "")],
)
def test_durations_in_words(seconds: float | None, words: str) -> None:
    assert text.duration(seconds) == words


def test_sizes_in_words() -> None:
    assert [text.size(value) for value in (0, 1023, 1536, 16 << 30, 3 << 50)] == [
        "0 B", "1023 B", "1.5 KiB", "16 GiB", "3.0 PiB",
    ]  # fmt: skip
