"""Secrets at the sender: who gets them and who does not; nothing on disk or in answers shows them."""

from __future__ import annotations

import json
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from support.core import MANIFEST, Core, PlayedExecutor, serving
from support.web import Web, web
from trainforge.config.errors import MessageInvalid, NotFound, NotTrusted
from trainforge.config.messages import Order, SecretsAsk
from trainforge.config.redact import Redactor
from trainforge.config.sealing import SealingKey, StoredKey, seal
from trainforge.config.trust import SECRETS_TYPE, verify
from trainforge.sender import events, sealed, vault

VALUE = "canary/Zq8+v71=x & 'quoted'"
NAMES = MANIFEST + "secrets: [HF_TOKEN]\n"


@pytest.fixture
def core(tmp_path: Path) -> Iterator[Core]:
    with serving(tmp_path) as core:
        yield core


def put(core: Core, name: str = "HF_TOKEN", value: str = VALUE, **fields: Any) -> list[str]:
    given = {"repository": "digits", "branches": []} | fields
    return vault.put(core.sender, name=name, value=value, by="ada", actor="person:ada", **given)[1]


def path_of(order: Order) -> str:
    node = order.node
    return f"/v1/nodes/{node.job}/{node.attempt}/{node.rank}/secrets"


def ask(
    executor: PlayedExecutor, order: Order, *names: str, **changes: Any
) -> tuple[httpx2.Response, SealingKey]:
    key = SealingKey()
    fields = {"token": order.token, "names": list(names or ["HF_TOKEN"]), "key": key.public} | changes
    body = SecretsAsk(**fields).model_dump_json().encode()
    return executor.request("POST", path_of(order), body), key


def opened(core: Core, executor: PlayedExecutor, order: Order, *names: str) -> dict[str, str]:
    answer, key = ask(executor, order, *names)
    assert answer.status_code == 200, answer.text
    assert VALUE not in answer.text
    about = f"{order.node}/{order.token.incarnation}.{order.token.number}"
    claims = verify(
        key.open(answer.json()["sealed"], about),
        typ=SECRETS_TYPE,
        keys={core.sender.key.id: core.sender.key.public},
        issuer=core.sender.id,
        audience=executor.id,
        now=time.time(),
    )
    assert claims.payload["sub"] == str(order.node)
    values: dict[str, str] = claims.payload["secrets"]
    return values


def refused(answer: httpx2.Response) -> tuple[int, str, str]:
    said = answer.json()
    return answer.status_code, said["code"], said["detail"]


def test_the_holder_of_the_lease_gets_what_the_manifest_names(core: Core, tmp_path: Path) -> None:
    executor, other = core.executor("alpha"), core.executor("beta", hostname="other")
    core.push_job(tmp_path, NAMES)
    taker, idle = (executor, other)
    order = taker.claim(wait_s=5)
    if not order:
        taker, idle = other, executor
        order = taker.claim(wait_s=5)
    run = order[0]
    assert refused(ask(taker, run)[0])[:2] == (404, "secret_missing")
    put(core)
    put(core, "OTHER_TOKEN")
    assert opened(core, taker, run) == {"HF_TOKEN": VALUE}
    assert refused(ask(idle, run)[0])[0] == 403
    assert refused(ask(taker, run, "OTHER_TOKEN")[0])[0] == 403
    stale = run.token.model_copy(update={"number": run.token.number + 1})
    assert refused(ask(taker, run, token=stale)[0])[0] == 409
    own = core.sender.key.public
    assert refused(ask(taker, run, key=own)[0])[0] == 401


def test_a_lease_that_has_run_out_opens_nothing(core: Core, tmp_path: Path) -> None:
    executor = core.executor("alpha")
    core.push_job(tmp_path, NAMES)
    put(core)
    run = executor.take("run")
    later = time.time() + 100
    core.sender.clock = lambda: later
    assert refused(ask(executor, run)[0])[0] == 503
    executor.heartbeat(run.node)
    assert ask(executor, run)[0].status_code == 200


def test_other_branches_do_not_get_it_unless_they_are_named(core: Core, tmp_path: Path) -> None:
    executor = core.executor("alpha", max_jobs=5)
    project = core.add_project(tmp_path, manifest=NAMES)
    project.git("checkout", "--quiet", "-b", "try/it")
    commit = project.commit({"trainforge.yaml": NAMES + "seed: 3\n"})
    project.git("push", "--quiet", "origin", "try/it")
    put(core)
    events.request_job(core.sender, "digits", commit, ref="refs/heads/try/it")
    run = executor.take("run")
    status, code, said = refused(ask(executor, run)[0])
    assert (status, code) == (403, "secret_refused")
    assert "this job comes from try/it" in said
    put(core, branches=["main", "try/*"])
    assert opened(core, executor, run) == {"HF_TOKEN": VALUE}


def test_a_commit_that_only_says_it_is_on_the_branch_does_not_get_it(core: Core, tmp_path: Path) -> None:
    executor = core.executor("alpha", max_jobs=5)
    project = core.add_project(tmp_path, manifest=NAMES)
    project.git("checkout", "--quiet", "-b", "try")
    commit = project.commit({"trainforge.yaml": NAMES + "seed: 3\n"})
    project.git("push", "--quiet", "origin", "try")
    put(core, branches=["main"])
    events.request_job(core.sender, "digits", commit, ref="refs/heads/main")
    run = executor.take("run")
    status, code, said = refused(ask(executor, run)[0])
    assert (status, code) == (403, "secret_refused")
    assert "this job's commit is not on main" in said


def on_disk(folder: Path) -> bytes:
    return b"\0".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def test_nothing_on_disk_shows_a_value_and_the_key_can_be_changed(core: Core, tmp_path: Path) -> None:
    core.add_project(tmp_path)
    redactor = Redactor([VALUE])
    for number in range(3):
        put(core, f"TOKEN_{number}", f"{VALUE}{number}")
    data, key_file = core.sender.data_dir, core.sender.data_dir / sealed.KEY_FILE
    assert stat.S_IMODE(key_file.stat().st_mode) == 0o600
    before = json.loads(key_file.read_text())["keys"]
    files = on_disk(data)
    assert redactor.bytes(files) == files
    assert before[0]["k"].encode() not in (data / "trainforge.db").read_bytes()
    assert vault.rotate(core.sender, "person:ada") == 3
    after = json.loads(key_file.read_text())["keys"]
    assert len(after) == 1 and after != before
    kept = core.sender.store.secrets()
    assert [sealed.decrypt([StoredKey(**after[0])], one) for one in kept] == [f"{VALUE}{n}" for n in range(3)]
    with pytest.raises(Exception, match="does not open"):
        sealed.decrypt([StoredKey(**before[0])], kept[0])


def test_a_change_of_the_key_that_was_cut_short_leaves_everything_readable(
    core: Core, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    core.add_project(tmp_path)
    put(core)
    with monkeypatch.context() as patch:
        patch.setattr(type(core.sender.store), "reseal_secrets", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            vault.rotate(core.sender, "person:ada")
    put(core, "SECOND")
    keys = sealed.keys_of(core.sender)
    assert {sealed.decrypt(keys, one) for one in core.sender.store.secrets()} == {VALUE}
    assert vault.rotate(core.sender, "person:ada") == 2


def test_what_is_kept_opens_under_its_own_name_alone(core: Core, tmp_path: Path) -> None:
    core.add_project(tmp_path)
    put(core)
    (kept,) = core.sender.store.secrets()
    moved = type(kept)(**{**vars(kept), "name": "MINE"})
    with pytest.raises(Exception, match="does not open"):
        sealed.decrypt(sealed.keys_of(core.sender), moved)


@pytest.mark.parametrize(
    "name",
    ["hf_token", "1A", "LD_PRELOAD", "GIT_DIR", "TRAINFORGE_X", "PATH", "RANK", "PYTHONPATH", "A-B", ""],
)
def test_names_that_steer_programs_are_refused(core: Core, name: str) -> None:
    with pytest.raises(MessageInvalid):
        put(core, name, repository="builtin:digits")


@pytest.mark.parametrize("value", ["", "abc12", "      ", "a\0bcdefgh", "x" * 20_000, "\ud800abcdef"])
def test_values_that_cannot_be_kept_are_refused(core: Core, value: str) -> None:
    with pytest.raises(MessageInvalid) as refusal:
        put(core, value=value, repository="builtin:digits")
    assert not value.strip() or value not in str(refusal.value)


def test_what_cannot_be_masked_is_said(core: Core) -> None:
    assert put(core, repository="builtin:x") == []
    assert "JSON" in put(core, value='{"user": "a", "key": "b"}', repository="builtin:x")[0]
    assert "fewer than" in put(core, value="BEGIN-KEY\nab\nEND-KEY", repository="builtin:x")[0]
    with pytest.raises(NotFound):
        put(core, repository="nowhere")


def test_a_sealed_message_opens_for_one_key_and_one_purpose() -> None:
    key = SealingKey()
    sealed = seal("text", key.public, "node 1")
    assert key.open(sealed, "node 1") == "text"
    with pytest.raises(NotTrusted):
        key.open(sealed, "node 2")
    with pytest.raises(NotTrusted):
        SealingKey().open(sealed, "node 1")
    with pytest.raises(NotTrusted):
        key.open(sealed[:-2] + "AA", "node 1")


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Web]:
    with web(tmp_path) as site:
        yield site


def test_people_set_list_and_remove_but_never_read(site: Web) -> None:
    wanted = {"name": "HF_TOKEN", "repository": "demo", "value": VALUE, "branches": ["release/*"]}
    answer = site.ask("POST", "/api/secrets", json=wanted)
    assert answer.status_code == 200, answer.text
    listed = site.ask("GET", "/api/secrets?repository=demo")
    (view,) = listed.json()["secrets"]
    assert (view["name"], view["repository"], view["branches"], view["by"]) == (
        "HF_TOKEN", "demo", ["release/*"], "ada",
    )  # fmt: skip
    assert VALUE not in answer.text + listed.text
    assert site.ask("POST", "/api/secrets/rotate-key").json() == {"secrets": 1}
    assert site.ask("GET", "/api/secrets/HF_TOKEN").status_code in {404, 405}
    assert site.ask("DELETE", "/api/secrets/HF_TOKEN?repository=demo").status_code == 200
    assert site.ask("DELETE", "/api/secrets/HF_TOKEN?repository=demo").status_code == 404
    assert site.get("/api/secrets") == {"secrets": []}


def test_a_refusal_does_not_repeat_the_value(site: Web) -> None:
    value = "canary-" + "x" * 70_000
    for body in ({"name": "A", "repository": "demo", "value": value}, {"name": 3, "value": "canary-77"}):
        answer = site.ask("POST", "/api/secrets", json=body)
        assert answer.status_code in {413, 422}
        assert "canary" not in answer.text
