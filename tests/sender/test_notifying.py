"""Outgoing notifications, to a real receiver over HTTP: once each, and none lost."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from support.servers import serving
from support.web import Web, web
from trainforge.config.settings import SenderSettings
from trainforge.sender.notifying import Teller

# Apprise looks for Python's imghdr, which warns of its end when it is imported.
pytestmark = pytest.mark.filterwarnings("ignore:'imghdr' is deprecated")
PASSWORD = "hush-hush-0123"
MANIFEST = "project: {name: digits}\ntraining: {script: train.py}\nnotify: [{to: team, on: [%s]}]\n"


class Receiver:
    """What came in; answers 500 while it is `down`."""

    def __init__(self) -> None:
        self.got: list[dict[str, Any]] = []
        self.tried = 0
        self.down = False
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                receiver.tried += 1
                if not receiver.down:
                    receiver.got.append(body)
                self.send_response(500 if receiver.down else 200)
                self.end_headers()

        self.handler = Handler
        self.url = ""

    @property
    def titles(self) -> list[str]:
        return [one["title"] for one in self.got]


@contextmanager
def _receiver() -> Iterator[Receiver]:
    made = Receiver()
    with serving(made.handler) as url:
        made.url = f"{url.replace('http://', f'json://bot:{PASSWORD}@')}/told"
        yield made


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with _receiver() as made:
        yield made


@pytest.fixture
def told(tmp_path: Path, receiver: Receiver) -> Iterator[Web]:
    """A sender that knows the receiver as `team`."""
    with web(tmp_path, notify={"team": {"url": receiver.url}}, notify_waiting_after=60) as site:
        Teller(site.sender).begin()
        yield site


def _job(site: Web, on: str = "completed, failed", **fields: Any) -> str:
    return site.add_job(manifest_text=MANIFEST % on, **fields)


def _look(site: Web, later: float = 0.0) -> None:
    """As the loop does, in a sender that was just started."""
    clock = site.sender.clock
    site.sender.clock = lambda: clock() + later
    try:
        Teller(site.sender).look()
    finally:
        site.sender.clock = clock


def test_each_end_is_told_once_with_what_happened_and_where(told: Web, receiver: Receiver) -> None:
    job = _job(told, subject="Try more", author="ada")
    told.end(job, "failed", code="script_failed", reason="exit code 1\x1b[31m")
    other = _job(told, "completed")
    told.end(other, "failed")
    for _ in range(3):
        _look(told)
    (one,) = receiver.got
    assert one["title"] == "digits failed"
    assert "script_failed: exit code 1" in one["message"]
    assert "\x1b" not in one["message"]
    assert f"{told.url}/jobs/{job}" in one["message"]
    assert "Try more by ada" in one["message"]


def test_a_job_that_works_again_is_told_as_recovered_and_only_so(told: Web, receiver: Receiver) -> None:
    told.end(_job(told, "recovered"), "completed")
    _look(told)
    told.end(_job(told, "recovered"), "failed")
    told.end(_job(told, "recovered", ref="refs/heads/other"), "completed")
    told.end(_job(told, "completed, recovered"), "completed")
    told.end(_job(told, "recovered"), "completed")
    _look(told)
    assert receiver.titles == ["digits works again"]


def test_who_waits_too_long_is_told_of_once(told: Web, receiver: Receiver) -> None:
    job = _job(told, "waiting, completed")
    told.set(job, queued=told.sender.now(), state="planning")
    _look(told)
    assert receiver.got == []
    _look(told, later=61)
    _look(told, later=300)
    assert receiver.titles == ["digits still waits for machines"]
    told.end(job)
    _look(told)
    assert receiver.titles[1:] == ["digits completed"]


def test_a_receiver_that_is_down_is_told_when_it_is_back(
    told: Web, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    receiver.down = True
    told.end(_job(told))
    _look(told)
    assert (receiver.tried, receiver.got) == (1, [])
    receiver.down = False
    _look(told)
    assert receiver.tried == 1, "it rests before the next try"
    _look(told, later=20)
    _look(told, later=2000)
    assert receiver.titles == ["digits completed"]
    assert PASSWORD not in caplog.text


def test_what_was_not_sent_is_listed_and_sent_again(told: Web, receiver: Receiver) -> None:
    receiver.down = True
    job = _job(told)
    told.end(job)
    _look(told)
    (one,) = told.get("/api/notices")["notices"]
    assert (one["job"], one["target"], one["tries"]) == (job, "team", 1)
    said = {name: one[name] for name in ("job", "occasion", "target")}
    receiver.down = False
    with told.log_in() as browser:
        assert "Send again to team" in browser.get("/settings/notifications").text
        assert "It is sent to team again" in browser.post("/settings/notifications", data=said).text
    _look(told)
    assert receiver.titles == ["digits completed"]
    assert told.get("/api/notices")["notices"] == []
    assert told.ask("POST", "/api/notices/again", json=said).status_code == 404
    assert told.ask("POST", "/api/notices/again", json=said | {"target": "nobody"}).status_code == 409


def test_what_cannot_be_sent_is_given_up_after_a_day(told: Web, receiver: Receiver) -> None:
    receiver.down = True
    told.end(_job(told))
    for hours in (0, 1, 25, 27):
        _look(told, later=3600.0 * hours)
    assert receiver.tried == 3
    assert "could not be reached" in _problems(told)[0]


def test_a_manifest_reaches_only_what_the_settings_name(told: Web, receiver: Receiver) -> None:
    url = receiver.url.replace("team", "x")
    told.end(told.add_job(manifest_text=(MANIFEST % "completed").replace("to: team", f"to: '{url}'")))
    _look(told)
    assert receiver.tried == 0
    assert _problems(told) == ["this sender's settings have no such target under notify"]


def test_an_admin_can_be_told_of_all_jobs_and_of_none_from_before(tmp_path: Path, receiver: Receiver) -> None:
    always = {"ops": {"url": receiver.url, "always": True, "on": ["failed"]}}
    with web(tmp_path, notify=always) as site:
        site.end(site.add_job(), "failed", created=1.0)
        with site.sender.store.write() as c:
            c.exec_driver_sql("UPDATE jobs SET ended = 100")
        Teller(site.sender).begin()
        site.end(site.add_job(), "completed")
        site.end(site.add_job(), "failed")
        _look(site)
    assert receiver.titles == ["digits failed"]


def test_the_address_of_a_target_is_no_ones_to_see() -> None:
    settings = SenderSettings(notify={"team": f"json://bot:{PASSWORD}@example.org"})
    assert PASSWORD not in f"{settings!r} {settings} {settings.model_dump()} {settings.model_dump_json()}"


def _problems(site: Web) -> list[str]:
    with site.sender.store.read() as c:
        return list(c.exec_driver_sql("SELECT problem FROM notices WHERE problem <> ''").scalars())
