"""Several hosts with addresses of their own: a sender and three executors on a network of the test's own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.fleet import Fleet
from support.network import Network
from support.waiting import wait_for

TRAIN = """\
import json, os
import torch
from accelerate import Accelerator

params = json.load(open(os.environ["TRAINFORGE_PARAMS_FILE"]))
accelerator = Accelerator(cpu=True)
torch.manual_seed(1)
x = torch.randn(96, 8)
y = x @ torch.randn(8, 1) + 0.1 * torch.randn(96, 1)
batches = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=params["batch_size"])
model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
model, optimizer, batches = accelerator.prepare(model, optimizer, batches)
for epoch in range(params["epochs"]):
    for inputs, wanted in batches:
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(model(inputs), wanted)
        accelerator.backward(loss)
        optimizer.step()
    loss = accelerator.reduce(loss.detach(), "mean").item()
    if accelerator.is_main_process:
        print("PROGRESS:", json.dumps({"epoch": epoch, "loss": loss, "world": accelerator.num_processes}))
accelerator.wait_for_everyone()
accelerator.end_training()
"""

MANIFEST = """\
project: {name: line}
training: {script: train.py, params: {batch_size: 24, epochs: 10}}
resources: {nodes: 3}
"""


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Fleet]:
    """A sender and the executors alpha, beta and gamma, each on a host of its own."""
    fleet = Fleet(tmp_path)
    network = fleet.network = Network()
    try:
        for host in ("sender", "alpha", "beta", "gamma"):
            network.add(host)
        fleet.start_sender(host=network.addresses["sender"], lease_ttl=4, lost_after=2)
        for name in ("alpha", "beta", "gamma"):
            fleet.add_executor(name)
        yield fleet
    finally:
        fleet.close()
        network.close()


def test_three_hosts_learn_what_one_process_learns(hosts: Fleet) -> None:
    project = hosts.project("line", {"train.py": TRAIN, "trainforge.yaml": MANIFEST})
    losses = []
    for count, nodes in enumerate((3, 1), start=1):
        hosts.commit(project, {"trainforge.yaml": MANIFEST.replace("nodes: 3", f"nodes: {nodes}")})
        hosts.push(project)
        detail = hosts.wait_ended(hosts.the_job(count))
        assert detail["state"] == "completed", (detail["code"], detail["reason"], hosts.logs()[-6000:])
        used = {node["executor_name"] for node in detail["attempts"][-1]["nodes"]}
        assert len(used) == nodes
        assert detail["metrics"]["world"] == nodes
        losses.append(detail["metrics"]["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_two_hosts_that_cannot_reach_each_other_are_named_before_training(hosts: Fleet) -> None:
    """Also where neither is rank 0: gloo connects every process with every other."""
    assert hosts.network
    script = "raise SystemExit('nothing was to be trained')\n"
    project = hosts.project("line", {"train.py": script, "trainforge.yaml": MANIFEST})
    for count, pair in enumerate((("alpha", "gamma"), ("beta", "gamma")), start=1):
        hosts.commit(project, {"trainforge.yaml": f"{MANIFEST}seed: {count}\n"})
        hosts.network.part(*pair)
        hosts.push(project)
        check_named(hosts, hosts.wait_ended(hosts.the_job(count)), pair)
        hosts.network.heal(*pair)


def check_named(hosts: Fleet, detail: dict[str, Any], pair: tuple[str, str]) -> None:
    assert detail["state"] == "failed", detail
    assert detail["code"] == "rendezvous_unreachable"
    for host in pair:
        assert host in detail["reason"], detail["reason"]
    assert "unreachable" in detail["reason"] or "No route" in detail["reason"], detail["reason"]
    assert "nothing was to be trained" not in hosts.log_text(detail["id"])
    (third,) = {"alpha", "beta", "gamma"} - set(pair)
    assert third not in detail["reason"]


RESUMABLE = """\
import json, os, pathlib, time
import torch
from accelerate import Accelerator

accelerator = Accelerator(cpu=True)
epoch, total = 0, torch.zeros(1)
if resume := os.environ["TRAINFORGE_RESUME_FROM"]:
    epoch, total = torch.load(resume)
    print(f"rank {accelerator.process_index} goes on after epoch {epoch}", flush=True)
go_on = pathlib.Path(GO_ON)
deadline = time.monotonic() + 100
while epoch < 6:
    epoch += 1
    total = accelerator.reduce(total + epoch, "mean")
    if accelerator.is_main_process:
        name = pathlib.Path(os.environ["TRAINFORGE_CHECKPOINT_DIR"], f"epoch-{epoch}.pt")
        torch.save((epoch, total), name.with_suffix(".tmp"))
        name.with_suffix(".tmp").rename(name)
        print("PROGRESS:", json.dumps({"epoch": epoch, "total": total.item()}), flush=True)
    while epoch == 3 and not go_on.exists():
        assert time.monotonic() < deadline, "nobody said go on"
        time.sleep(0.1)
if accelerator.is_main_process:
    pathlib.Path(os.environ["TRAINFORGE_OUTPUT_DIR"], "model.txt").write_text(str(total.item()))
accelerator.wait_for_everyone()
accelerator.end_training()
"""


def test_a_cut_in_mid_training_is_resumed_from_the_checkpoint_by_those_left(hosts: Fleet) -> None:
    assert hosts.network
    store, go_on = hosts.root / "store", hosts.signals / "go-on"
    manifest = MANIFEST.replace("nodes: 3", "nodes: 2:3") + (
        f"checkpoint: {{store: {store}, keep: 2}}\ntimeout: {{grace: 1s}}\nretry: {{max: 2}}\n"
    )
    script = RESUMABLE.replace("GO_ON", repr(str(go_on)))
    hosts.push(hosts.project("line", {"train.py": script, "trainforge.yaml": manifest}))
    job = hosts.the_job()
    markers = store / job
    wait_for(
        "checkpoint of epoch 3",
        lambda: any("epoch-3" in path.name for path in markers.glob("*.json")),
        90,
        hosts.logs,
    )
    hosts.network.cut(hosts.job(job)["attempts"][-1]["nodes"][0]["executor_name"])
    go_on.touch()

    detail = hosts.wait_ended(job)

    assert detail["state"] == "completed", (detail["code"], detail["reason"], hosts.logs()[-6000:])
    first, *_, last = detail["attempts"]
    assert (first["state"], len(first["nodes"])) == ("lost", 3)
    assert len(last["nodes"]) == 2
    assert "goes on after epoch 3" in hosts.log_text(job)
    files = hosts.result("line")
    assert sum(path.endswith("/result.json") for path in files) == 1
    assert files[f"{detail['result_path']}/artifacts/model.txt"] == b"21.0"
    assert detail["metrics"]["total"] == 21


FAILING = """\
import torch
from accelerate import Accelerator

accelerator = Accelerator(cpu=True)
for step in range(100):
    print(f"step {step}", flush=True)
    if step == 3 and accelerator.process_index == 1:
        raise ValueError("bad row in the shard of rank 1")
    accelerator.reduce(torch.ones(1))
"""


def test_the_rank_that_failed_first_is_the_reason_and_logs_are_in_order_of_time(hosts: Fleet) -> None:
    """The others see a closed connection only, maybe before the first one's end is known."""
    hosts.push(hosts.project("line", {"train.py": FAILING, "trainforge.yaml": MANIFEST}))
    detail = hosts.wait_ended(hosts.the_job())
    assert (detail["state"], detail["code"]) == ("failed", "script_failed"), detail
    assert "ValueError: bad row in the shard of rank 1" in detail["reason"]
    summary = hosts.result("line")[f"{detail['result_path']}/result.json"].decode()
    assert "Traceback" in summary
    lines = [
        json.loads(line)
        for line in hosts.cli("logs", detail["id"][:8], "--json", host="sender").stdout.splitlines()
    ]
    assert {line["rank"] for line in lines} >= {0, 1, 2}
    assert [line["time"] for line in lines] == sorted(line["time"] for line in lines)
    only = hosts.cli("logs", detail["id"][:8], "--rank", "1", host="sender").stdout
    assert "ValueError: bad row" in only
    assert "step 0" in only
