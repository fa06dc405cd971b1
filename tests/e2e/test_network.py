"""Several hosts with addresses of their own: a sender and three executors on a network of the test's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.fleet import Fleet
from support.network import Network

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


def test_three_hosts_learn_what_three_processes_on_one_host_learn(hosts: Fleet) -> None:
    project = hosts.project("line", {"train.py": TRAIN, "trainforge.yaml": MANIFEST})
    losses = []
    for count, (nodes, processes) in enumerate(((3, 1), (1, 3)), start=1):
        text = MANIFEST.replace("nodes: 3", f"nodes: {nodes}, processes_per_node: {processes}")
        hosts.commit(project, {"trainforge.yaml": text})
        hosts.push(project)
        detail = hosts.wait_ended(hosts.the_job(count), 180)
        assert detail["state"] == "completed", detail
        used = {node["executor_name"] for node in detail["attempts"][-1]["nodes"]}
        assert len(used) == nodes
        assert detail["metrics"]["world"] == 3
        losses.append(detail["metrics"]["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize("pair", [("alpha", "gamma"), ("beta", "gamma")])
def test_two_hosts_that_cannot_reach_each_other_are_named_before_training(
    hosts: Fleet, pair: tuple[str, str]
) -> None:
    """Also where neither is rank 0: gloo connects every process with every other."""
    assert hosts.network
    hosts.network.part(*pair)
    script = "raise SystemExit('nothing was to be trained')\n"
    hosts.push(hosts.project("line", {"train.py": script, "trainforge.yaml": MANIFEST}))
    detail = hosts.wait_ended(hosts.the_job())
    assert detail["state"] == "failed", detail
    assert detail["code"] == "rendezvous_unreachable"
    for host in pair:
        assert host in detail["reason"], detail["reason"]
    assert "unreachable" in detail["reason"] or "No route" in detail["reason"], detail["reason"]
    assert "nothing was to be trained" not in hosts.log_text(detail["id"])
    (third,) = {"alpha", "beta", "gamma"} - set(pair)
    assert third not in detail["reason"]
