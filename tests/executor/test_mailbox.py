"""Requests to a sender without an address: fetched, answered, and one run's at a time."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest

from trainforge.config.errors import Conflict
from trainforge.executor.mailbox import FORSAKEN_S, SILENT_S, Answer, Mailbox, Taking

ONE, OTHER = "session-of-one-run", "session-of-another"


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def _box() -> tuple[Mailbox, Clock, list[None], httpx2.Client]:
    clock, entered = Clock(), list[None]()
    box = Mailbox(lambda: entered.append(None), clock)
    return box, clock, entered, httpx2.Client(transport=box, base_url="http://sender", timeout=10)


def _ask(client: httpx2.Client) -> httpx2.Response:
    headers = {"Authorization": "proof", "Content-Type": "application/json", "Cookie": "no"}
    return client.post("/v1/heartbeat?x=1", content=b'{"a": 1}', headers=headers)


def _take_one(box: Mailbox, session: str = ONE) -> dict[str, Any]:
    while True:
        if found := box.take(Taking(session=session)):
            (letter,) = found
            return letter


def test_a_request_is_fetched_once_and_gets_its_answer() -> None:
    box, _, entered, client = _box()
    with client, ThreadPoolExecutor() as pool:
        with pytest.raises(httpx2.ConnectError, match="none is here"):
            _ask(client)
        assert box.take(Taking(session=ONE)) == []
        asked = pool.submit(_ask, client)
        letter = _take_one(box)
        assert {key: letter[key] for key in ("method", "path", "body", "headers")} == {
            "method": "POST",
            "path": "/v1/heartbeat?x=1",
            "body": '{"a": 1}',
            "headers": {"authorization": "proof", "content-type": "application/json"},
        }
        assert box.take(Taking(session=ONE)) == []
        with pytest.raises(Conflict):
            box.answer(Answer(session=OTHER, id=letter["id"], status=200, body="theirs"))
        box.answer(Answer(session=ONE, id="of nobody", status=200))
        box.answer(Answer(session=ONE, id=letter["id"], status=409, body="no", headers={"tf-nonce": "n"}))
        answer = asked.result(10)
    assert (answer.status_code, answer.text, answer.headers["tf-nonce"]) == (409, "no", "n")
    assert len(entered) == 1


def test_a_run_has_it_until_it_leaves_or_falls_silent() -> None:
    box, clock, entered, client = _box()
    with client:
        box.take(Taking(session=ONE))
        with pytest.raises(Conflict, match="another run"):
            box.take(Taking(session=OTHER))
        box.leave(Taking(session=OTHER))
        with pytest.raises(Conflict):
            box.take(Taking(session=OTHER))
        box.leave(Taking(session=ONE))
        box.take(Taking(session=OTHER))
        clock.now += SILENT_S + 1
        with pytest.raises(httpx2.ConnectError):
            _ask(client)
        box.take(Taking(session=ONE))
        assert len(entered) == 3
        assert not box.forsaken()
        clock.now += FORSAKEN_S + 1
        assert box.forsaken()


def test_what_was_asked_of_a_run_that_has_gone_is_not_for_the_next() -> None:
    box, _, _, client = _box()
    with client, ThreadPoolExecutor() as pool:
        box.take(Taking(session=ONE))
        asked = pool.submit(_ask, client)
        letter = _take_one(box)
        box.leave(Taking(session=ONE))
        with pytest.raises(httpx2.ReadTimeout):
            asked.result(10)
        box.take(Taking(session=OTHER))
        box.answer(Answer(session=OTHER, id=letter["id"], status=200))
        assert box.take(Taking(session=OTHER)) == []


def test_a_fetch_waits_for_the_first_request_and_no_longer_than_the_box_is_open() -> None:
    box = Mailbox(lambda: None)
    begun = threading.Event()

    def take() -> list[dict[str, Any]]:
        begun.set()
        return box.take(Taking(session=ONE, wait_s=20))

    with ThreadPoolExecutor() as pool:
        taken = pool.submit(take)
        assert begun.wait(60)
        box.close()
        assert taken.result(10) == []
