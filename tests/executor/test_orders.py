"""Orders: only the paired sender's, only fresh ones, each once, and never lost once accepted."""

from __future__ import annotations

import time
from pathlib import Path

import httpx2
import pytest

from support.executors import Project, ended, joined, running
from support.sender_double import SenderDouble
from support.waiting import wait_for
from trainforge.config import messages as m
from trainforge.config.errors import Conflict, NotTrusted, SettingsError, Unreachable
from trainforge.config.settings import ExecutorSettings
from trainforge.config.trust import (
    SigningKey,
    executor_id,
    sign_order,
    sign_request,
    thumbprint,
    verify_request,
)
from trainforge.executor.agent import Agent, local_status
from trainforge.executor.join import join
from trainforge.executor.orders import OrderBook

JOB = "a" * 26


def order(
    kind: str = "run", *, attempt: int = 1, number: int = 1, incarnation: int = 1, name: str = ""
) -> m.Order:
    bodies: dict[str, m.RunOrder | m.StopOrder | m.ForgetOrder] = {
        "run": m.RunOrder(
            repository=m.Repository(id="git:x", name="x", url="https://x/x"), ref="refs/heads/main",
            commit="0" * 40, manifest_path="trainforge.yaml", manifest_blob="0" * 40, project="t", nodes=1,
            processes_per_node=1, results_branch="r", lease_ttl=9,
        ),
        "stop": m.StopOrder(code="stopped", reason="r"),
        "forget": m.ForgetOrder(),
    }  # fmt: skip
    node = m.NodeKey(job=JOB, attempt=attempt, rank=0)
    token = m.FencingToken(incarnation=incarnation, number=number)
    return m.Order(id=name or f"{node}.{kind}.{number}", node=node, token=token, body=bodies[kind])


def test_accepted_once_and_kept(tmp_path: Path) -> None:
    woken: list[m.NodeKey] = []
    book = OrderBook(tmp_path, woken.append)
    assert book.accept(order())
    assert not book.accept(order())
    assert book.accept(order("stop"))
    again = OrderBook(tmp_path)
    assert [each.body.kind for each in again.read(order().node)] == ["run", "stop"]
    assert len(woken) == 2


def test_a_torn_line_was_never_accepted(tmp_path: Path) -> None:
    book = OrderBook(tmp_path)
    book.accept(order())
    path = book.folder(order().node) / "orders.jsonl"
    path.write_bytes(path.read_bytes() + b'{"id": "half')
    assert book.accept(order("stop"))
    assert [each.body.kind for each in book.read(order().node)] == ["run", "stop"]


def test_what_is_stale_is_refused(tmp_path: Path) -> None:
    book = OrderBook(tmp_path)
    book.accept(order(attempt=2, number=5))
    with pytest.raises(Conflict, match="older fencing token"):
        book.accept(order("stop", attempt=2, number=4))
    with pytest.raises(Conflict, match="attempt 2"):
        book.accept(order(attempt=1, number=9))
    book.accept(order("stop", attempt=2, number=6, incarnation=3))
    with pytest.raises(Conflict, match="incarnation 2"):
        OrderBook(tmp_path).accept(order(attempt=3, number=99, incarnation=2))
    with pytest.raises(Conflict, match="not known"):
        book.accept(order("stop", attempt=7, number=7, incarnation=3))


def test_a_forgotten_node_does_not_begin_again(tmp_path: Path) -> None:
    book = OrderBook(tmp_path)
    book.accept(order())
    book.forget(order().node)
    assert not book.folder(order().node).exists()
    with pytest.raises(Conflict, match="forgotten"):
        OrderBook(tmp_path).accept(order())
    assert not book.accept(order("forget"))
    book.tidy()
    assert book.known() == []


def test_no_room(tmp_path: Path) -> None:
    book = OrderBook(tmp_path)
    with pytest.raises(Unreachable):
        book.accept(order(), room=lambda node: False)
    assert book.known() == []


# --- joining and the door of push mode --------------------------------------------------------------------


def test_joining_checks_the_senders_key(double: SenderDouble, tmp_path: Path) -> None:
    other = SenderDouble()
    settings = ExecutorSettings(data_dir=tmp_path, name="laptop")
    token = other.join_token()
    double.open_tokens.add(token)
    with pytest.raises((NotTrusted,)):
        join(double.url, token, settings)
    with pytest.raises(NotTrusted):
        join(double.url, "tfj_wrong", settings)
    with pytest.raises(SettingsError, match="not joined"):
        Agent(settings)
    other.close()


def test_the_door_takes_only_what_the_sender_signed(double: SenderDouble, tmp_path: Path) -> None:
    project = Project(tmp_path, {"trainforge.yaml": "project: {name: t}\ntraining: {command: echo hi}\n"})
    chosen, executor = joined(double, tmp_path / "laptop", connection="push", advertise=["127.0.0.1"])
    with running(chosen) as agent:
        wait_for("endpoint", lambda: any(beat.endpoint for beat in double.heartbeats))
        url = double.heartbeats[-1].endpoint
        assert double.heartbeats[-1].endpoint_seq == 1
        body = project.order()
        key = m.NodeKey(job=project.job(), attempt=1, rank=0)
        wanted = m.Order(id="o1", node=key, token=m.FencingToken(incarnation=1, number=10), body=body)
        good = double.sign(executor, wanted)
        now = time.time()
        stranger = SigningKey.generate()
        forged = sign_order(stranger, sender=double.key.id, executor=executor, order=wanted, now=now)
        others = double.sign("x" + "b" * 16, wanted)
        stale = double.sign(executor, wanted, now=now - 4000)
        answered = double.sign(executor, wanted, challenge="c" * 22)
        for bad in (forged, others, stale, answered, good[:-4] + "AAAA", "", "x.y.z", "a" * 70_000):
            answer = httpx2.post(f"{url}/v1/orders", content=bad)
            assert answer.status_code in (401, 413), answer.text
            assert answer.json()["code"] in ("not_trusted", "clock_skew", "too_large")
        assert not agent.nodes
        node = double.run(project.job(), [executor], body)[0]
        double.nodes[key].outbox.clear()
        for _ in range(3):
            assert httpx2.post(f"{url}/v1/orders", content=good).status_code == 202
        assert ended(node)["code"] == ""
        assert "hi" in node.text(0)
        assert len(node.data("started")) == 1
        check_door(double, executor, url, key)
        status = local_status(chosen)
        assert status["nodes"][0]["job"] == key.job
        assert not status["running"]  # this agent runs inside the test and holds no lock


def check_door(double: SenderDouble, executor: str, url: str, key: m.NodeKey) -> None:
    """The other routes: proof of the key, the journal for the sender alone, health for all."""
    proof = httpx2.post(f"{url}/v1/prove", json={"nonce": "n" * 32}).json()["proof"]
    public = double.executors[executor]
    verify_request(
        proof, subject=executor, keys={thumbprint(public): public}, audience=double.key.id,
        method="PROVE", path="n" * 32, body=url.encode(), now=time.time(),
    )  # fmt: skip
    assert executor_id(public) == executor
    assert httpx2.post(f"{url}/v1/prove", json={"nonce": "x"}).status_code == 422
    path = f"/v1/nodes/{key.job}/1/0/journal?after=1"
    authorization = sign_request(
        double.key,
        subject=double.key.id,
        audience=executor,
        method="GET",
        path=path,
        body=b"",
        now=time.time(),
    )
    answer = httpx2.get(url + path, headers={"Authorization": authorization})
    batch = m.JournalBatch.model_validate_json(answer.content)
    assert batch.after == 1
    assert batch.records[0].n == 2
    assert httpx2.get(url + path, headers={"Authorization": authorization}).status_code == 401  # a replay
    assert httpx2.get(url + path).status_code == 401
    assert httpx2.get(f"{url}/health").json()["status"] == "ok"


def test_who_stops_says_so(double: SenderDouble, tmp_path: Path) -> None:
    chosen, _ = joined(double, tmp_path / "laptop", heartbeat_every=60)
    with running(chosen):
        wait_for("a heartbeat", lambda: bool(double.heartbeats))
        assert not double.heartbeats[-1].draining
    assert double.heartbeats[-1].draining
