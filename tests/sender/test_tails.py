"""What an open page of a job is told: the newest lines, read once for all, and that some were skipped."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager

import httpx2
import pytest
import sqlalchemy as sa

from support.web import Web
from trainforge.config.messages import Load
from trainforge.sender import schema, streams, tails

Told = tuple[str, str]  # the event's name, `line` for a line, and its data or text


@contextmanager
def _page(site: Web, job: str, after: int = 0) -> Iterator[Iterator[Told]]:
    headers = site.bearer | {"Accept": "text/event-stream"}
    path = f"{site.url}/api/jobs/{job}/logs?page=1&after={after}"
    with httpx2.stream("GET", path, headers=headers, timeout=30) as answer:
        yield _told(answer)


def _told(answer: httpx2.Response) -> Iterator[Told]:
    event = {}
    for line in answer.iter_lines():
        name, _, value = line.partition(": ")
        if name in ("event", "data"):
            event[name] = value
        elif not line and event:
            data = json.loads(event["data"])
            yield (event["event"], str(data)) if "event" in event else ("line", data["text"])
            event = {}


def test_a_page_that_falls_behind_gets_the_newest_lines_and_word_of_a_gap(site: Web) -> None:
    job = site.add_job()
    site.log(job, "first")
    with _page(site, job) as one, _page(site, job) as other:
        for told in (one, other):
            assert next(told) == ("line", "first")
            assert next(told)[0] == "version"
        site.log(job, *(f"burst {number}" for number in range(3000)))
        for told in (one, other):
            assert next(told) == ("skipped", "{}")
            shown = [next(told) for _ in range(tails.KEPT)]
            assert shown[-1] == ("line", "burst 2999")
        site.log(job, "one more")
        site.end(job)
        for told in (one, other):
            rest = list(told)
            assert rest[0] == ("line", "one more")
            assert [name for name, _ in rest[-2:]] == ["version", "end"]


def test_a_page_that_comes_back_misses_nothing_of_a_little(site: Web) -> None:
    job = site.add_job()
    site.log(job, *(f"line {number}" for number in range(800)))
    lines = site.get(f"/api/jobs/{job}/logs?limit=800")["lines"]
    site.end(job)
    for after, expected in (
        (lines[499]["cursor"], 300),
        (lines[299]["cursor"], 500),
        (lines[799]["cursor"], 0),
    ):
        with _page(site, job, after) as told:
            heard = list(told)
        texts = [text for name, text in heard if name == "line"]
        if expected <= tails.KEPT:
            assert len(texts) == expected
            assert ("skipped", "{}") not in heard
        assert texts[-1:] == ["line 799"][: len(texts)]
        assert heard[-1][0] == "end"


def test_the_load_of_its_machines_makes_another_version_of_a_page(
    site: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "LOOK_AGAIN_S", 0.2)
    job, executor = site.add_job(), site.add_executor("alpha")
    site.add_node(job, executor)
    page = site.ask("GET", f"/jobs/{job}", headers={"Accept": "text/html"}).text
    version = re.search(r'data-version="(\w+)"', page)
    assert version is not None
    with _page(site, job) as told:
        assert next(told) == ("version", version[1])
        load = Load(cpu_percent=93.0).model_dump()
        with site.sender.store.write() as c:
            c.execute(sa.update(schema.executors).values(load=load))
        name, another = next(told)  # by the passing of time: no heartbeat rings for a job
        assert (name, another != version[1]) == ("version", True)
