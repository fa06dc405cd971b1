"""Who belongs to a sender, and how that changes: tokens, approval, visitors, keys, removal."""

from __future__ import annotations

import json
import stat
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from support.core import MACHINE, Core, PlayedExecutor, journal_batch, serving
from support.executors import running, settings
from support.waiting import wait_for
from trainforge.config.errors import Forbidden, NotTrusted
from trainforge.config.messages import Claim, FencingToken, Heartbeat, HeartbeatReply, JoinRequest, Load
from trainforge.config.trust import SigningKey, executor_id, sign_request, thumbprint
from trainforge.executor.identity import ExecutorIdentity, load_key
from trainforge.executor.join import join
from trainforge.executor.link import SenderLink
from trainforge.executor.program import run_visitor
from trainforge.executor.rotation import NEXT_FILE, finish_rotation, rotate_key
from trainforge.sender import keys, registry


@pytest.fixture
def core(tmp_path: Path) -> Iterator[Core]:
    with serving(tmp_path) as core:
        yield core


def actions(core: Core) -> list[str]:
    return [row["action"] for row in core.sender.store.audit_rows()]


def view(core: Core, name: str) -> Any:
    return core.sender.queries.executor(name, core.sender.now())


def asked_to_join(player: PlayedExecutor, token: str) -> int:
    request = JoinRequest(token=token, name=player.name, public_key=player.key.public, capabilities=MACHINE)
    return player.request("POST", "/v1/join", request.model_dump_json().encode()).status_code


# --- joining --------------------------------------------------------------------------------------------


def test_of_fifty_who_use_one_token_at_once_one_gets_in(core: Core) -> None:
    token, _ = registry.create_join_token(core.sender)
    players = [PlayedExecutor(core, f"box-{n}", MACHINE) for n in range(50)]
    with ThreadPoolExecutor(25) as pool:
        statuses = list(pool.map(lambda player: asked_to_join(player, token.text), players))
    assert sorted(statuses) == [200] + [401] * 49
    assert len(core.sender.queries.executors(core.sender.now())) == 1
    assert actions(core).count("executor.joined") == 1


def test_whoever_tries_tokens_has_to_wait(core: Core) -> None:
    """5,000 a minute are 84 a second: after a hundred that are wrong nothing is even read any more."""
    player = PlayedExecutor(core, "mallory", MACHINE)
    body = b'{"token": "tfj_' + b"0" * 64 + b'_x"}'
    answers = [player.client.post("/v1/join", content=body) for _ in range(130)]
    statuses = [answer.status_code for answer in answers]
    assert statuses[:100] == [422] * 100
    assert set(statuses[105:]) == {429}
    assert int(answers[-1].headers["retry-after"]) >= 1
    assert answers[-1].json()["code"] == "too_many"
    token, _ = registry.create_join_token(core.sender)
    assert asked_to_join(PlayedExecutor(core, "late", MACHINE), token.text) == 429
    assert core.dump()["executors"] == []


def test_a_sender_with_another_key_is_not_joined(core: Core, tmp_path: Path) -> None:
    token, _ = registry.create_join_token(core.sender)
    other = token.text[:-43] + thumbprint(SigningKey.generate().public)
    with pytest.raises(NotTrusted):
        join(core.url, other, settings(tmp_path / "box"))
    assert core.dump()["executors"] == []
    assert not (tmp_path / "box" / "identity.json").exists()


def test_one_that_has_to_be_approved_is_shown_and_gets_nothing_before(core: Core, tmp_path: Path) -> None:
    token, _ = registry.create_join_token(core.sender, "person:ann", approval=True)
    chosen = settings(tmp_path / "box")
    assert join(core.url, token.text, chosen).pending
    key = load_key(chosen.data_dir)
    assert stat.S_IMODE((chosen.data_dir / "key.json").stat().st_mode) == 0o600
    with running(chosen):
        wait_for("heartbeat", lambda: view(core, "box").last_seen, 10)
        assert (view(core, "box").status, view(core, "box").fingerprint) == ("pending", key.id)
        job = core.push_job(tmp_path)
        waiting = wait_for("words", lambda: core.job(job)["waiting"], 10)
        assert "waits for approval: `trainforge executor approve box`" in json.dumps(waiting)
        registry.approve_executor(core.sender, executor_id(key.public), "person:ann")
        core.wait_state(job, "running", "failed")
    said = core.sender.store.audit_rows()
    assert [(row["actor"], row["action"]) for row in said][::-1][:3] == [
        ("person:ann", "join_token.created"),
        (f"executor:{executor_id(key.public)}", "executor.joined"),
        ("person:ann", "executor.approved"),
    ]
    assert said[-3]["detail"]["fingerprint"] == key.id


def test_the_name_of_a_removed_one_is_free(core: Core) -> None:
    old = core.executor("alpha")
    registry.remove_executor(core.sender, old.id, "person:ann")
    new = core.executor("alpha")
    assert view(core, "alpha").id == new.id
    assert view(core, old.id).name == f"alpha-{old.id}"


# --- visitors -------------------------------------------------------------------------------------------


def test_a_visitor_gets_as_many_jobs_as_it_came_for_and_leaves_no_trace(core: Core, tmp_path: Path) -> None:
    token, _ = registry.create_join_token(core.sender, ephemeral=True, max_jobs=1)
    visitor = PlayedExecutor(core, "colab", MACHINE.model_copy(update={"max_jobs": 2}))
    visitor.join(token.text)
    visitor.heartbeat()
    job = core.push_job(tmp_path)
    node = visitor.take("run").node
    second = core.push_job(tmp_path, name="other")
    why = wait_for("words", lambda: core.job(second)["waiting"], 10)
    assert "has had all the jobs that it came for" in json.dumps(why)
    visitor.journal(node, ("ended", {"exit_code": 0}))
    assert core.job(job)["state"] == "running"
    now = core.sender.now()
    assert core.sender.store.gone_visitors(now - 60) == []
    assert core.sender.store.gone_visitors(now + 1) == [visitor.id]
    idle = PlayedExecutor(core, "kaggle", MACHINE)
    idle.join(registry.create_join_token(core.sender, ephemeral=True)[0].text)
    for one in (visitor.id, idle.id):
        assert core.sender.store.revoke(one, now, "sender", "executor.expired")
    assert core.sender.store.member(idle.id) is None  # it never had a job
    assert view(core, visitor.id).status == "revoked"  # its job's history names it
    assert idle.request("POST", "/v1/heartbeat", b"{}").status_code == 401


def test_a_visitors_key_is_on_no_disk(core: Core, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token, _ = registry.create_join_token(core.sender, ephemeral=True)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(home))
    seen: dict[str, Any] = {}

    def look(agent: Any, *, stop_jobs: bool) -> None:
        agent.start()
        wait_for("heartbeat", lambda: view(core, "colab").last_seen, 10)
        seen["status"], seen["ephemeral"] = view(core, "colab").status, view(core, "colab").ephemeral
        private = agent.key._key.as_dict(private=True)["d"].encode()
        files = [path for path in home.rglob("*") if path.is_file()]
        seen["files"] = [path.name for path in files if private in path.read_bytes()]
        agent.close(stop_jobs=stop_jobs)

    monkeypatch.setattr("trainforge.executor.program._serve", look)
    run_visitor(settings(tmp_path / "box", name="colab", sender_url=core.url), token.text)
    assert seen == {"status": "online", "ephemeral": True, "files": []}
    assert list(home.iterdir()) == []
    assert "colab" not in [one.name for one in core.sender.queries.executors(core.sender.now())]


# --- keys -----------------------------------------------------------------------------------------------


def joined(core: Core, folder: Path) -> Any:
    chosen = settings(folder)
    join(core.url, registry.create_join_token(core.sender)[0].text, chosen)
    return chosen


def test_an_executors_key_changes_under_way_and_its_id_stays(core: Core, tmp_path: Path) -> None:
    chosen = joined(core, tmp_path / "box")
    old = load_key(chosen.data_dir)
    name = executor_id(old.public)
    with running(chosen) as agent:
        wait_for("heartbeat", lambda: view(core, "box").last_seen, 10)
        new = rotate_key(chosen)
        assert new.id != old.id
        wait_for("the new key", lambda: agent.link.key.id == new.id, 10)
        seen = view(core, "box").last_seen
        wait_for("heartbeat with it", lambda: view(core, "box").last_seen > seen, 10)
    assert (view(core, "box").id, view(core, "box").fingerprint) == (name, new.id)
    assert load_key(chosen.data_dir).id == new.id
    assert "executor.key_changed" in actions(core)
    member = core.sender.store.member(name)
    assert member is not None
    now = core.sender.now()
    assert set(member.keys(now)) == {old.id, new.id}
    assert set(member.keys(now + registry.KEY_OVERLAP_S + 1)) == {new.id}


def test_an_interrupted_change_of_a_key_goes_on_with_the_same(core: Core, tmp_path: Path) -> None:
    chosen = joined(core, tmp_path / "box")
    old = load_key(chosen.data_dir)
    new = rotate_key(chosen)
    (chosen.data_dir / "key.json").replace(chosen.data_dir / NEXT_FILE)
    old.save(chosen.data_dir / "key.json")  # as if killed before the new key was put in its place
    core.sender.clock = lambda: time.time() + registry.KEY_OVERLAP_S + 10  # and long ago
    finish_rotation(chosen)
    assert load_key(chosen.data_dir).id == new.id
    assert not (chosen.data_dir / NEXT_FILE).exists()


def test_only_the_holder_of_both_keys_changes_one(core: Core) -> None:
    alpha, beta = core.executor("alpha"), core.executor("beta")
    body = json.dumps({"public_key": beta.key.public, "proof": "TF-Proof a.b.c"}).encode()
    assert alpha.request("POST", "/v1/executors/me/key", body).status_code == 401
    before = core.dump()["executors"]
    assert alpha.request("POST", "/v1/executors/me/key", b"{}").status_code == 422
    assert core.dump()["executors"] == before


def beat(known: str) -> bytes:
    return Heartbeat(capabilities=MACHINE, load=Load(), sender_key=known).model_dump_json().encode()


def test_the_senders_new_key_is_introduced_by_the_old_one(core: Core, tmp_path: Path) -> None:
    chosen = joined(core, tmp_path / "box")
    sender, old = core.sender, core.sender.key
    with running(chosen) as agent:
        wait_for("heartbeat", lambda: view(core, "box").last_seen, 10)
        keys.rotate(sender, "person:ann", overlap=3600)
        assert sender.id == old.id != sender.key.id
        wait_for("pinned", lambda: thumbprint(agent.identity.sender_key) == sender.key.id, 10)
        wait_for("told", lambda: sender.keys.pinned.get(agent.identity.executor) == sender.key.id, 10)
        job = core.push_job(tmp_path)
        core.wait_state(job, "running", "failed")  # an order of the new key was taken
        kept = ExecutorIdentity.load(chosen.data_dir)
    assert set(kept.sender_keys) == {old.id, sender.key.id}
    assert kept.previous_until <= time.time() + 3600
    kept.previous_until = time.time() - 1
    assert set(kept.sender_keys) == {sender.key.id}
    again = keys.SenderKeys.load(sender.data_dir)
    assert (again.id, again.current.id, again.previous and again.previous.id) == (
        old.id, sender.key.id, old.id,
    )  # fmt: skip
    assert stat.S_IMODE((sender.data_dir / "sender.key.previous").stat().st_mode) == 0o600
    assert again.signing("x", time.time()).id == old.id  # for whoever has not said that it knows the new one
    assert again.signing("x", time.time() + 3601).id == sender.key.id
    assert "sender.key_changed" in actions(core)


def test_a_withdrawn_key_signs_nothing_and_is_introduced_by_none(core: Core, tmp_path: Path) -> None:
    chosen = joined(core, tmp_path / "box")
    old = core.sender.key
    with running(chosen) as agent:
        wait_for("heartbeat", lambda: view(core, "box").last_seen, 10)
        keys.rotate(core.sender, "person:ann", overlap=0)
        wait_for("no more work", lambda: not agent.standing.trusts, 10)
        wait_for("offline", lambda: view(core, "box").status == "offline", 10)
        job = core.push_job(tmp_path)
        assert "offline" in json.dumps(wait_for("words", lambda: core.job(job)["waiting"], 10))
    assert not (core.sender.data_dir / "sender.key.previous").exists()
    assert core.sender.keys.signing("x", core.sender.now()).id != old.id
    answer = HeartbeatReply.model_validate(
        PlayedOver(core, chosen).request("POST", "/v1/heartbeat", beat(old.id)).json()
    )
    assert (answer.introduction, answer.sender_key) == ("", core.sender.key.id)


class PlayedOver(PlayedExecutor):
    """A test's own voice for an executor that has really joined."""

    def __init__(self, core: Core, chosen: Any) -> None:
        super().__init__(core, chosen.name, MACHINE)
        self.key = load_key(chosen.data_dir)
        self.id = executor_id(self.key.public)


# --- removal --------------------------------------------------------------------------------------------


def test_a_removed_executor_ends_its_jobs_and_says_so(
    core: Core, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    chosen = joined(core, tmp_path / "box")
    with running(chosen) as agent:
        wait_for("heartbeat", lambda: view(core, "box").last_seen, 10)
        registry.remove_executor(core.sender, agent.identity.executor, "person:ann")
        wait_for("noticed", agent.standing.removed.is_set, 10)
        assert agent.draining
        assert isinstance(agent.standing.why, Forbidden)
    assert "was removed from the sender: its jobs are ended, no more work is taken" in caplog.text


def test_what_a_removed_executor_had_is_planned_again_with_a_higher_token(core: Core, tmp_path: Path) -> None:
    alpha = core.executor("alpha")
    job = core.push_job(tmp_path)
    order = alpha.take("run")
    node = f"/v1/nodes/{job}/1/0"
    registry.remove_executor(core.sender, alpha.id, "person:ann")
    beta = core.executor("beta")
    again = wait_for("next attempt", lambda: [o for o in beta.claim(5) if o.body.kind == "run"], 20)[0]
    assert again.node.attempt == 2
    assert (again.token.incarnation, again.token.number) > (order.token.incarnation, order.token.number)
    batch = json.dumps(journal_batch(order.token, 0, ("ended", {"exit_code": 0}))).encode()
    for method, path, body in (
        ("POST", "/v1/heartbeat", beat("")),
        ("POST", "/v1/claims", Claim(challenge="c" * 24, wait_s=0).model_dump_json().encode()),
        ("POST", f"{node}/journal", batch),
        ("POST", f"{node}/credential", b"{}"),
        ("POST", f"{node}/turn", b"{}"),
        ("GET", f"{node}/record", b""),
        ("DELETE", "/v1/executors/me", b"{}"),
    ):
        answer = alpha.request(method, path, body)
        assert (answer.status_code, answer.json()["code"]) == (403, "executor_removed"), path


# --- nobody for another ---------------------------------------------------------------------------------


def test_nobody_does_anything_for_a_job_of_another(core: Core, tmp_path: Path) -> None:
    alpha = core.executor("alpha")
    job = core.push_job(tmp_path)
    run = alpha.take("run")
    beta = core.executor("beta")
    ask = {
        "token": run.token.model_dump(),
        "names": [],
        "key": {"kty": "OKP", "crv": "X25519", "x": "A" * 43},
    }
    batch = journal_batch(run.token, 0, ("ended", {"exit_code": 0}))
    before = core.dump()
    for what, body in (("journal", batch), ("credential", {}), ("turn", {}), ("secrets", ask)):
        answer = beta.request("POST", f"/v1/nodes/{job}/1/0/{what}", json.dumps(body).encode())
        assert answer.status_code == 403, (what, answer.text)
    assert beta.request("GET", f"/v1/nodes/{job}/1/0/record", b"").status_code == 403
    assert beta.heartbeat(run.node) == [run.node]  # not its own
    claim = Claim(challenge="c" * 24, wait_s=0, accepted=[run.id], refused={run.id: "mine"})
    assert beta.send("POST", "/v1/claims", claim) == {"orders": []}
    after = core.dump()
    changed = {name for name in before if before[name] != after[name]}
    assert changed <= {"proofs", "executors"}
    stale = run.token.model_copy(update={"number": run.token.number - 1})
    for token in (stale, FencingToken(incarnation=0, number=99)):
        body = json.dumps(journal_batch(token, 0, ("ended", {"exit_code": 0}))).encode()
        assert alpha.request("POST", f"/v1/nodes/{job}/1/0/journal", body).status_code == 409


# --- clocks ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ahead", [-7200, 7200])
def test_a_clock_that_is_two_hours_off_is_told_in_seconds_and_got_around(
    core: Core, tmp_path: Path, ahead: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = joined(core, tmp_path / "box")
    player = PlayedOver(core, chosen)
    core.sender.clock = lambda: time.time() - ahead
    refused = player.client.post(
        "/v1/heartbeat", content=beat(""), headers={"Authorization": _proof(player, beat(""))}
    )
    assert (refused.status_code, refused.json()["code"]) == (401, "clock_skew")
    assert any(str(abs(ahead) + off) in refused.json()["detail"] for off in range(-65, 5)), refused.text
    link = SenderLink(ExecutorIdentity.load(chosen.data_dir), player.key)
    message = Heartbeat(capabilities=MACHINE, load=Load())
    assert link.heartbeat(message).lease_ttl == 90  # by the nonce that came with the refusal
    assert link.trusted
    assert link.heartbeat(message).lease_ttl == 90
    link.close()
    forged = _proof(player, beat(""), nonce=f"{time.monotonic():.0f}.{'0' * 64}")
    answer = player.client.post("/v1/heartbeat", content=beat(""), headers={"Authorization": forged})
    assert answer.status_code == 401


def _proof(player: PlayedExecutor, body: bytes, **more: Any) -> str:
    return sign_request(
        player.key, subject=player.id, audience=player.core.sender.id, method="POST", path="/v1/heartbeat",
        body=body, now=time.time(), **more,
    )  # fmt: skip
