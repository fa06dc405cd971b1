"""The executors' door: who may say what, and that repeating or lying changes nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.core import MACHINE, Core, PlayedExecutor, journal_batch, serving
from trainforge.config.messages import Claim, FencingToken, Heartbeat, JoinRequest, Load, NodeKey
from trainforge.config.trust import SigningKey, executor_id, new_join_token, sign_request
from trainforge.sender import registry


@pytest.fixture
def core(tmp_path: Path) -> Iterator[Core]:
    with serving(tmp_path) as core:
        yield core


def beat() -> bytes:
    return Heartbeat(capabilities=MACHINE, load=Load()).model_dump_json().encode()


def test_an_unsigned_request_is_refused_and_changes_nothing(core: Core) -> None:
    executor = core.executor("alpha")
    before = core.dump()
    response = executor.client.post("/v1/heartbeat", content=beat())
    assert response.status_code == 401
    assert response.headers["content-type"] == "application/problem+json"
    assert core.dump() == before


def test_an_unknown_executor_is_refused_and_changes_nothing(core: Core) -> None:
    core.executor("alpha")
    stranger = PlayedExecutor(core, "stranger", MACHINE)
    before = core.dump()
    for path, body in (
        ("/v1/heartbeat", beat()),
        ("/v1/claims", Claim(challenge="c" * 24).model_dump_json().encode()),
    ):
        response = stranger.request("POST", path, body)
        assert (response.status_code, response.json()["code"]) == (401, "executor_unknown")
    assert core.dump() == before


@pytest.mark.parametrize("lie", [{"path": "/v1/claims"}, {"method": "PUT"}, {"body": b"{}"}])
def test_a_proof_of_another_request_is_refused(core: Core, lie: dict[str, Any]) -> None:
    executor = core.executor("alpha")
    before = core.dump()
    said = {"method": "POST", "path": "/v1/heartbeat", "body": beat()} | lie
    proof = sign_request(
        executor.key, subject=executor.id, audience=core.sender.id, now=core.sender.now(), **said
    )
    response = executor.client.post("/v1/heartbeat", content=beat(), headers={"Authorization": proof})
    assert response.status_code == 401
    assert core.dump() == before


def test_a_proof_by_another_key_is_refused(core: Core) -> None:
    alpha, beta = core.executor("alpha"), core.executor("beta")
    alpha.key = beta.key
    before = core.dump()
    assert alpha.request("POST", "/v1/heartbeat", beat()).status_code == 401
    assert core.dump() == before


def test_a_replayed_request_is_refused_and_changes_nothing(core: Core) -> None:
    executor = core.executor("alpha")
    proof = sign_request(
        executor.key,
        subject=executor.id,
        audience=core.sender.id,
        now=core.sender.now(),
        method="POST",
        path="/v1/heartbeat",
        body=beat(),
    )
    headers = {"Authorization": proof}
    assert executor.client.post("/v1/heartbeat", content=beat(), headers=headers).status_code == 200
    before = core.dump()
    again = executor.client.post("/v1/heartbeat", content=beat(), headers=headers)
    assert (again.status_code, again.json()["detail"]) == (401, "this proof was used before")
    assert core.dump() == before


def test_a_removed_executor_is_refused_and_its_node_is_lost(core: Core, tmp_path: Path) -> None:
    executor = core.executor("alpha")
    job = core.push_job(tmp_path)
    executor.take("run")
    registry.remove_executor(core.sender, executor.id)
    assert executor.request("POST", "/v1/heartbeat", beat()).status_code == 403
    # Lost may be tried again: the job waits for another machine.
    row = core.wait_state(job, "dispatching")
    assert row["attempt"] == 1


# --- joining --------------------------------------------------------------------------------------------


def test_a_join_token_works_once(core: Core) -> None:
    token, _ = registry.create_join_token(core.sender)
    PlayedExecutor(core, "alpha", MACHINE).join(token.text)
    before = core.dump()
    late = PlayedExecutor(core, "beta", MACHINE)
    assert _join(late, token.text).status_code == 401
    assert core.dump() == before


def test_join_tokens_expire(core: Core) -> None:
    token, expires = registry.create_join_token(core.sender)
    core.sender.store.add_join_token("0" * 64, 0, expires)
    late = PlayedExecutor(core, "alpha", MACHINE)
    core.sender.clock = lambda: expires + 1
    assert _join(late, token.text).status_code == 401
    assert core.sender.store.member(late.id) is None


def test_a_join_needs_the_key_it_introduces(core: Core) -> None:
    token, _ = registry.create_join_token(core.sender)
    thief = PlayedExecutor(core, "alpha", MACHINE)
    victim = SigningKey.generate()
    before = core.dump()
    request = JoinRequest(token=token.text, name="alpha", public_key=victim.public, capabilities=MACHINE)
    response = thief.request("POST", "/v1/join", request.model_dump_json().encode())
    assert response.status_code == 401
    assert core.dump() == before
    assert core.sender.store.member(executor_id(victim.public)) is None


@pytest.mark.parametrize("token", ["", "tfj_x_y", new_join_token("A" * 43).text])
def test_foreign_and_malformed_join_tokens_are_refused(core: Core, token: str) -> None:
    before = core.dump()
    assert _join(PlayedExecutor(core, "alpha", MACHINE), token).status_code == 401
    assert core.dump() == before


def test_a_name_belongs_to_one_executor(core: Core) -> None:
    core.executor("alpha")
    token, _ = registry.create_join_token(core.sender)
    twin = PlayedExecutor(core, "alpha", MACHINE)
    response = _join(twin, token.text)
    assert (response.status_code, response.json()["code"]) == (409, "conflict")
    assert _join(PlayedExecutor(core, "beta", MACHINE), token.text).status_code == 200  # it was not spent


def _join(executor: PlayedExecutor, token: str) -> Any:
    request = JoinRequest(
        token=token, name=executor.name, public_key=executor.key.public, capabilities=MACHINE
    )
    return executor.request("POST", "/v1/join", request.model_dump_json().encode())


# --- the journal ----------------------------------------------------------------------------------------


@pytest.fixture
def running(core: Core, tmp_path: Path) -> tuple[PlayedExecutor, NodeKey, FencingToken]:
    executor = core.executor("alpha")
    core.push_job(tmp_path)
    run = executor.take("run")
    return executor, run.node, run.token


def lines(core: Core, node: NodeKey) -> str:
    return core.sender.store.logs_of(node.job, node.attempt).get("rank0.log", "")


def log(text: str) -> tuple[str, dict[str, Any]]:
    return "log", {"rank": 0, "text": text}


def send(executor: PlayedExecutor, node: NodeKey, batch: dict[str, Any]) -> Any:
    path = f"/v1/nodes/{node.job}/{node.attempt}/{node.rank}/journal"
    return executor.request("POST", path, json.dumps(batch).encode())


def test_repeated_and_overlapping_batches_store_each_record_once(core: Core, running: Any) -> None:
    executor, node, token = running
    first = journal_batch(token, 0, log("a\n"), log("b\n"))
    assert send(executor, node, first).json() == {"acknowledged": 2}
    assert send(executor, node, first).json() == {"acknowledged": 2}
    overlapping = journal_batch(token, 1, log("b\n"), log("c\n"))
    assert send(executor, node, overlapping).json() == {"acknowledged": 3}
    assert lines(core, node) == "a\nb\nc\n"


def test_a_batch_with_a_gap_before_it_is_not_stored(core: Core, running: Any) -> None:
    executor, node, token = running
    assert send(executor, node, journal_batch(token, 0, log("a\n"))).json() == {"acknowledged": 1}
    assert send(executor, node, journal_batch(token, 5, log("f\n"))).json() == {"acknowledged": 1}
    assert lines(core, node) == "a\n"


def test_a_batch_with_a_gap_inside_is_refused(core: Core, running: Any) -> None:
    executor, node, token = running
    batch = journal_batch(token, 0, log("a\n"), log("b\n"))
    batch["records"][1]["n"] = 3
    assert send(executor, node, batch).status_code == 422
    assert lines(core, node) == ""


@pytest.mark.parametrize("change", [{"number": 0}, {"number": 99}, {"incarnation": 99}])
def test_another_fencing_token_is_refused(core: Core, running: Any, change: dict[str, int]) -> None:
    executor, node, token = running
    batch = journal_batch(token.model_copy(update=change), 0, log("late\n"))
    response = send(executor, node, batch)
    assert (response.status_code, response.json()["code"]) == (409, "conflict")
    assert lines(core, node) == ""


def test_nobody_speaks_for_anothers_node(core: Core, running: Any) -> None:
    _, node, token = running
    other = core.executor("beta")
    assert send(other, node, journal_batch(token, 0, log("lie\n"))).status_code == 403
    path = f"/v1/nodes/{node.job}/{node.attempt}/{node.rank}"
    assert other.request("GET", f"{path}/record", b"").status_code == 403
    assert other.request("POST", f"{path}/credential", b"").status_code == 403
    assert other.heartbeat(node) == [node]


def test_an_unreadable_record_does_not_hold_up_the_others(core: Core, running: Any) -> None:
    executor, node, token = running
    batch = journal_batch(token, 0, ("metric", {"values": "many"}), log("after\n"))
    assert send(executor, node, batch).json() == {"acknowledged": 2}
    assert lines(core, node) == "after\n"


def test_malformed_messages_are_refused_with_their_place(core: Core) -> None:
    executor = core.executor("alpha")
    for body in (b"", b"[]", b"{", b'{"capabilities": {}}', b'{"surprise": 1}'):
        response = executor.request("POST", "/v1/heartbeat", body)
        assert (response.status_code, response.json()["code"]) == (422, "message_invalid")


def test_an_oversized_body_is_refused_before_anything_else(core: Core) -> None:
    executor = core.executor("alpha")
    before = core.dump()
    response = executor.client.post("/v1/heartbeat", content=b" " * (8 * 1024 * 1024 + 1))
    assert response.status_code == 413
    assert core.dump() == before


# --- orders ---------------------------------------------------------------------------------------------


def test_an_order_is_repeated_until_it_is_accepted_and_then_never(
    core: Core, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainforge.sender.dispatch.REPEAT_S", 0.2)
    executor = core.executor("alpha")
    core.push_job(tmp_path)
    (first,) = executor.claim()
    executor.accepted = []  # as if the answer had been lost
    (again,) = executor.claim()
    assert again == first
    assert executor.claim(wait_s=0.5) == []
    executor.accepted = [first.id]  # accepting twice is harmless
    assert executor.claim(wait_s=0) == []


def test_a_heartbeat_names_the_nodes_that_are_no_longer_its_own(core: Core, running: Any) -> None:
    executor, node, _ = running
    other = NodeKey(job="a" * 26, attempt=1, rank=0)
    assert executor.heartbeat(node, other) == [other]


def test_a_credential_is_for_the_jobs_repository(core: Core, running: Any) -> None:
    executor, node, _ = running
    path = f"/v1/nodes/{node.job}/{node.attempt}/{node.rank}/credential"
    credential = executor.send("POST", path)
    assert credential["username"] == "job"
    assert credential["expires"] > core.sender.now()
    assert credential["password"] not in str(core.dump())
