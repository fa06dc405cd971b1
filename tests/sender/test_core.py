"""A job's way through the sender, with the executors played by signed requests."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from support.core import MANIFEST, Core, journal_batch, serving
from support.databases import KINDS, database_url
from support.waiting import wait_for
from trainforge.sender.store_events import NewEvent, NewJob, Repo


@pytest.fixture(params=KINDS)
def core(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Core]:
    for url in database_url(request.param):
        with serving(tmp_path, database_url=url) as core:
            yield core


def test_one_node_from_push_to_completed(core: Core, tmp_path: Path) -> None:
    executor = core.executor("alpha")
    project = core.add_project(tmp_path)
    lines = core.announce()
    (job,) = core.jobs()
    assert lines == [f"TrainForge: job {job[:8]} queued (digits, trainforge.yaml)"]

    run = executor.take("run")
    assert run.node.job == job
    assert run.body.commit == project.git("rev-parse", "HEAD").stdout.strip()
    core.wait_state(job, "running")
    node = run.node
    executor.journal(
        node,
        ("phase", {"phase": "checkout"}),
        ("ready", {}),
        ("started", {"argv": ["python", "train.py"], "processes": 1, "pid": 7}),
        ("log", {"rank": 0, "text": "hello\nworld\n"}),
        ("metric", {"values": {"loss": 0.5, "epochs": 4}, "epoch": 1}),
        ("ended", {"exit_code": 0}),
    )
    publish = executor.take("publish")
    assert publish.body.outcome == "completed"
    commit = executor.publish(publish, run)
    row = core.wait_state(job, "completed")
    assert row["result_commit"] == commit
    assert row["metrics"] == {"loss": 0.5, "epochs": 4}
    assert row["progress"] == 0.25
    executor.take("forget")
    (attempt,) = core.sender.queries.job(job).attempts
    assert [(node.state, node.phase) for node in attempt.nodes] == [("completed", "finished")]
    assert core.sender.store.logs_of(job, 1) == {"rank0.log": "hello\nworld\n"}


def test_no_number_or_text_of_one_machine_is_in_the_way_of_another(core: Core, tmp_path: Path) -> None:
    """What arithmetic, calendars or a database do not take is refused, or told as null."""
    odd, huge = core.executor("odd"), 10**320
    has, load = odd.capabilities.model_dump(mode="json"), {"cpu_percent": 1.0}
    for wrong in (
        {"capabilities": has | {"memory_bytes": huge}},
        {"capabilities": has | {"cpu_count": huge}},
        {"capabilities": has | {"session_ends": 1e300}},
        {"load": {"gpu_percent": [math.nan]}},
        {"load": {"cpu_percent": 1e300}},
    ):
        body = json.dumps({"capabilities": has, "load": load} | wrong).encode()
        assert odd.request("POST", "/v1/heartbeat", body).status_code == 422, wrong
    job = core.push_job(tmp_path)
    run = odd.take("run")
    odd.journal(
        run.node,
        ("started", {"argv": ["python"], "processes": 1, "pid": 7}),
        ("metric", {"values": {"loss": huge, "epochs": -huge, "seen": 10**30}, "epoch": 1}),
        ("metric", {"values": {"lost": 1}, "step": huge}),
        ("log", {"rank": 2**63, "text": "lost\n"}),
        ("log", {"rank": 0, "text": "a\0b\n"}),
        ("phase", {"phase": "training", "detail": "a\0b"}),
        ("ended", {"exit_code": 1, "code": "script_failed", "reason": "ValueError: a\0b"}),
    )
    odd.publish(odd.take("publish"), run)
    row = core.wait_state(job, "failed")
    assert (row["reason"], row["metrics"]) == (
        "ValueError: a\ufffdb", {"loss": None, "epochs": None, "seen": 10**30},
    )  # fmt: skip
    assert core.sender.store.logs_of(job, 1) == {"rank0.log": "a\ufffdb\n"}


def test_two_nodes_meet_at_the_barrier(core: Core, tmp_path: Path) -> None:
    first, second = core.executor("alpha"), core.executor("beta")
    manifest = MANIFEST + "resources: {nodes: 2}\n"
    job = core.push_job(tmp_path, manifest)
    runs = {executor.name: executor.take("run") for executor in (first, second)}
    by_rank = {runs[e.name].node.rank: e for e in (first, second)}
    nodes = {run.node.rank: run.node for run in runs.values()}
    assert sorted(nodes) == [0, 1]
    assert {run.body.nodes for run in runs.values()} == {2}

    by_rank[0].journal(
        nodes[0], ("ready", {"addresses": ["10.0.0.1", "10.0.0.2"], "port": 4000, "nonce": "n"})
    )
    by_rank[1].journal(nodes[1], ("ready", {}))
    probe = by_rank[1].take("probe")
    assert (probe.body.addresses, probe.body.port) == (["10.0.0.1", "10.0.0.2"], 4000)
    by_rank[1].journal(
        nodes[1], ("reached", {"reached": {"10.0.0.2": "10.0.0.9"}, "failures": {"10.0.0.1": "refused"}})
    )
    for rank in (0, 1):
        launch = by_rank[rank].take("launch")
        assert (launch.body.master_address, launch.body.master_port) == ("10.0.0.2", 4000)
    for rank in (0, 1):
        by_rank[rank].journal(nodes[rank], ("ended", {"exit_code": 0}))
    by_rank[0].publish(by_rank[0].take("publish"), runs[by_rank[0].name])
    core.wait_state(job, "completed")
    for rank in (0, 1):
        by_rank[rank].take("forget")


def test_a_failing_node_stops_the_others_and_names_the_cause(core: Core, tmp_path: Path) -> None:
    executors = [core.executor("alpha"), core.executor("beta")]
    job = core.push_job(tmp_path, MANIFEST + "resources: {nodes: 2}\n")
    runs = [executor.take("run") for executor in executors]
    loser, other = executors[1], executors[0]
    loser.journal(
        runs[1].node, ("ended", {"exit_code": 1, "code": "script_failed", "reason": "ValueError: x"})
    )
    stop = other.take("stop")
    assert stop.body.code == "peer_failed"
    other.journal(runs[0].node, ("ended", {"code": "peer_failed", "reason": "told to"}))
    rank0 = next(e for e, run in zip(executors, runs, strict=True) if run.node.rank == 0)
    run0 = next(run for run in runs if run.node.rank == 0)
    publish = rank0.take("publish")
    assert (publish.body.outcome, publish.body.code) == ("failed", "script_failed")
    rank0.publish(publish, run0)
    row = core.wait_state(job, "failed")
    assert (row["code"], row["reason"]) == ("script_failed", "ValueError: x")


def test_an_invalid_manifest_is_a_failed_job_with_a_placed_reason(core: Core, tmp_path: Path) -> None:
    job = core.push_job(tmp_path, "project: {name: digits}\ntraining: {scirpt: train.py}\n")
    row = core.wait_state(job, "failed")
    assert row["code"] == "manifest_invalid"
    assert "trainforge.yaml:2" in row["reason"]
    assert row["result_commit"]


def test_a_job_without_machines_waits_and_says_why(core: Core, tmp_path: Path) -> None:
    core.executor("alpha")
    job = core.push_job(tmp_path, MANIFEST + "resources: {gpu: 1}\n")
    core.wait_state(job, "planning")
    core.sender.wake()
    row = core.job(job)
    row = wait_for("a waiting reason", lambda: core.job(job)["waiting"], 10)
    assert row["alpha"] == "needs 1 GPU, has none"


def test_stopping_a_waiting_job_cancels_it(core: Core, tmp_path: Path) -> None:
    job = core.push_job(tmp_path)
    core.wait_state(job, "planning")
    core.sender.store.request_stop(job, "stopped", "changed my mind", core.sender.now())
    core.sender.wake(job)
    row = core.wait_state(job, "cancelled")
    assert (row["code"], row["reason"]) == ("stopped", "changed my mind")


def test_a_restarted_sender_goes_on_where_it_was(tmp_path: Path) -> None:
    with serving(tmp_path) as core:
        executor = core.executor("alpha")
        job = core.push_job(tmp_path)
        (run,) = executor.claim()  # and the acceptance is lost with the sender
    with serving(tmp_path) as core:
        executor.core, executor.accepted = core, []
        executor.client = httpx2.Client(base_url=core.url, timeout=40)
        core.executors.append(executor)
        (again,) = executor.claim()
        assert again == run
        executor.journal(run.node, ("ended", {"exit_code": 0}))
        publish = executor.take("publish")
        core.sender.bell.close()
    with serving(tmp_path) as core:
        executor.core = core
        executor.client = httpx2.Client(base_url=core.url, timeout=40)
        core.executors.append(executor)
        executor.publish(publish, run)
        core.wait_state(job, "completed")


def test_an_unreachable_remote_is_a_waiting_job_that_says_so(core: Core, tmp_path: Path) -> None:
    core.sender.store.add_repository(
        Repo("git:127.0.0.1/x", "far", "http://127.0.0.1:9/x.git", "remote", primed=True), 1.0
    )
    new = NewJob(
        "f" * 26, "git:127.0.0.1/x", "a" * 40, "trainforge.yaml", "b" * 40, "push",
        result_branch="trainforge-results", problems=({"detail": "line 1: no"},),
    )  # fmt: skip
    core.sender.store.record_request(NewEvent("push", "git:127.0.0.1/x", "far", "job"), [new], 1.0)
    core.sender.wake()
    waiting = wait_for("waiting reason", lambda: core.job(new.id)["waiting"], 20)
    assert waiting.keys() == {"remote"}
    row = core.job(new.id)
    assert (row["state"], row["ending"]) == ("planning", "failed")


def test_a_lost_node_is_replaced_by_another_machine(core: Core, tmp_path: Path) -> None:
    first, second = core.executor("alpha"), core.executor("beta")
    job = core.push_job(tmp_path)
    core.wait_state(job, "dispatching")
    orders = {executor: executor.claim(wait_s=0) for executor in (first, second)}
    lost, other = (first, second) if orders[first] else (second, first)
    lost.claim(wait_s=0)
    core.wait_state(job, "running")
    core.sender.clock = lambda: time.time() + 1000  # and runs on: a lost job rests before its next try
    other.heartbeat()
    run = other.take("run")
    assert run.node.attempt == 2
    assert run.token.number > orders[lost][0].token.number
    node = orders[lost][0].node
    assert lost.heartbeat(node) == [node]
    path = f"/v1/nodes/{node.job}/{node.attempt}/{node.rank}/journal"
    batch = journal_batch(orders[lost][0].token, 0, ("ended", {"exit_code": 0}))
    assert lost.request("POST", path, json.dumps(batch).encode()).status_code == 409


def test_what_the_end_of_a_session_cuts_off_is_tried_on_another_machine(core: Core, tmp_path: Path) -> None:
    notebook = core.executor("notebook", session_ends=time.time() + 3600)
    job = core.push_job(tmp_path, MANIFEST + "checkpoint: {store: /mnt/checkpoints}\n")
    run = notebook.take("run")
    assert run.body.session_ends > time.time()
    notebook.journal(run.node, ("started", {"argv": [], "processes": 1, "pid": 7}))
    notebook.capabilities = notebook.capabilities.model_copy(update={"session_ends": time.time() + 30})
    notebook.heartbeat(run.node)  # it is still there, with too little left for another try
    notebook.journal(run.node, ("ended", {"code": "lost", "reason": "the machine's session has ended"}))
    other = core.executor("workstation")
    again = other.take("run")
    assert (again.node.job, again.node.attempt, again.body.session_ends) == (job, 2, 0)
    other.journal(
        again.node, ("started", {"argv": [], "processes": 1, "pid": 8}), ("ended", {"exit_code": 0})
    )
    commit = other.publish(other.take("publish"), again)
    assert core.wait_state(job, "completed")["result_commit"] == commit


def test_a_training_that_ended_well_is_repeated_when_its_files_are_lost(core: Core, tmp_path: Path) -> None:
    first, second = core.executor("alpha"), core.executor("beta")
    job = core.push_job(tmp_path)
    core.wait_state(job, "dispatching")
    orders = {executor: executor.claim(wait_s=0) for executor in (first, second)}
    lost, other = (first, second) if orders[first] else (second, first)
    lost.journal(orders[lost][0].node, ("started", {"argv": [], "processes": 1, "pid": 7}))
    lost.journal(orders[lost][0].node, ("ended", {"exit_code": 0}))
    wait_for("the end", lambda: core.job(job)["ending"] == "completed", 20)
    core.sender.clock = lambda: time.time() + 1000  # and runs on: a lost job rests before its next try
    other.heartbeat()
    run = other.take("run")
    assert run.node.attempt == 2
    other.journal(run.node, ("started", {"argv": [], "processes": 1, "pid": 8}), ("ended", {"exit_code": 0}))
    commit = other.publish(other.take("publish"), run)
    assert core.wait_state(job, "completed")["result_commit"] == commit
