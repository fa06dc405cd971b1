"""Jobs that wait for machines, through the whole sender: offers, reasons and what is written down."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.core import MANIFEST, Core, serving
from support.databases import KINDS, database_url
from support.waiting import wait_for
from trainforge.config.messages import Gpu, Heartbeat, Load, Order
from trainforge.sender.publisher import record_of


@pytest.fixture(params=KINDS)
def core(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Core]:
    for url in database_url(request.param):
        with serving(tmp_path, database_url=url) as core:
            yield core


def texts(core: Core, job: str) -> list[str]:
    return [line["text"] for line in core.sender.store.history(job)["timeline"]]


def waits(core: Core, job: str, words: str) -> dict[str, str]:
    def told() -> Any:
        waiting = core.job(job)["waiting"]
        return waiting if words in waiting.values() else None

    found: dict[str, str] = wait_for(f"the reason {words!r}", told, 20, lambda: str(core.job(job)["waiting"]))
    return found


def test_adapted_parameters_are_in_order_timeline_and_result(core: Core, tmp_path: Path) -> None:
    executors = [core.executor("alpha"), core.executor("beta")]
    manifest = MANIFEST.replace("train.py}", "train.py, params: {batch_size: 65, output_dir: out}}")
    job = core.push_job(tmp_path, manifest + "resources: {nodes: 2}\n")
    runs: list[Order] = sorted(
        (executor.take("run") for executor in executors), key=lambda order: order.node.rank
    )
    assert [run.body.params for run in runs] == [
        {"batch_size": 32, "output_dir": "out"},
        {"batch_size": 32, "output_dir": "out/rank-1"},
    ]
    said = texts(core, job)
    assert "batch_size: 65 becomes 32 (divided by 2 processes)" in said
    assert any("not a multiple of 2 processes" in text for text in said)
    record = record_of(core.sender, job, "completed")
    assert any(text.startswith("output_dir: out becomes out/rank-1") for text in said)
    assert record.params == {"batch_size": 32, "output_dir": "out"}
    changes = [(change["before"], change["after"]) for change in record.plan["adjusted"]]
    assert changes == [(65, 32), ("out", "out/rank-1")]


def test_memory_that_a_job_was_promised_is_not_given_twice(core: Core, tmp_path: Path) -> None:
    alpha = core.executor("alpha", max_jobs=4)
    first = core.push_job(tmp_path / "1", MANIFEST + "resources: {memory: 6Gi, cpu: 1}\n", "one")
    alpha.take("run")
    second = core.push_job(tmp_path / "2", MANIFEST + "resources: {memory: 3Gi}\n", "two")
    told = waits(core, second, "needs 3 GiB of memory, has 2.2 GiB not taken by jobs")
    assert told["a change"] == "resources.memory: 2Gi would fit now"
    (machine,) = core.sender.store.machines(core.sender.now(), 60)
    assert [(held.job, held.cpu, held.memory) for held in machine.running] == [(first, 1.0, 6 * 2**30)]


def test_a_gpu_that_somebody_else_uses_is_not_given_away(core: Core, tmp_path: Path) -> None:
    gpus = [Gpu(uuid="GPU-a", model="A", memory_bytes=24 * 2**30)]
    alpha = core.executor("alpha", gpus=gpus)
    used = Load(gpu_memory_bytes=[20 * 2**30], gpu_others_bytes=[20 * 2**30])
    alpha.send("POST", "/v1/heartbeat", Heartbeat(capabilities=alpha.capabilities, load=used))
    job = core.push_job(tmp_path, MANIFEST + "resources: {gpu: 1}\n")
    waits(core, job, "GPU 0 has 20.0 of 24 GiB used by other programs")
    alpha.heartbeat()
    core.sender.wake()
    assert alpha.take("run").body.gpus == ["GPU-a"]


def test_a_small_job_waits_for_the_large_one_before_it(core: Core, tmp_path: Path) -> None:
    core.executor("alpha")
    beta = core.executor("beta")
    busy = core.push_job(tmp_path / "1", MANIFEST, "one")
    core.wait_state(busy, "dispatching")
    large = core.push_job(tmp_path / "2", MANIFEST + "resources: {nodes: 2}\n", "two")
    waits(core, large, "would fit, but the job needs 2 machines at once and 1 fits; it is kept free for it")
    small = core.push_job(tmp_path / "3", MANIFEST, "three")
    told = waits(core, small, f"kept free for job {large[:8]}, which is next")
    assert beta.name in told


def test_a_machine_out_of_its_hours_says_when_it_comes(core: Core, tmp_path: Path) -> None:
    core.sender.clock = lambda: 1_795_262_400.0  # a Saturday's noon
    core.executor("alpha", available="Mon-Fri 18:00-08:00")
    job = core.push_job(tmp_path)
    waits(core, job, "available from Mon 18:00")


def test_a_job_that_an_owner_refuses_goes_elsewhere_and_fails_once_all_have_refused(
    core: Core, tmp_path: Path
) -> None:
    alpha, beta = core.executor("alpha"), core.executor("beta")
    beta.heartbeat(draining=True)
    job = core.push_job(tmp_path)
    node = alpha.take("run").node
    alpha.journal(node, ("ended", {"code": "policy_refused", "reason": "alpha: its owner rejected it"}))
    told = waits(core, job, "refused this job: its owner rejected it")
    assert told["beta"] == "offline"
    assert alpha.take("forget").node == node
    beta.heartbeat(draining=False)
    second = beta.take("run").node
    assert second.attempt == 2
    facts, _ = core.sender.store.facts(job)
    assert facts.tried == 0  # a refusal is no try
    beta.journal(second, ("ended", {"code": "policy_refused", "reason": "beta: no"}))
    row = core.wait_state(job, "failed")
    assert row["code"] == "policy_refused"
    assert "alpha refused this job: its owner rejected it" in row["reason"]
    assert "beta refused this job: no" in row["reason"]
