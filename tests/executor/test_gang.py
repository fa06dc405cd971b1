"""Several processes and several machines, trained by the real Accelerate on the CPU."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from support.executors import Project, ended, forgotten, joined, running, story
from support.sender_double import NodeState, SenderDouble
from support.waiting import wait_for
from trainforge.config.messages import ProbeOrder

MANIFEST = """\
project: {name: test}
training: {script: train.py, args: --num 3}
seed: 7
"""


def run_gang(
    double: SenderDouble,
    root: Path,
    nodes: int,
    processes: int,
    files: dict[str, str],
    *,
    isolation: str = "auto",
) -> list[NodeState]:
    """Train on `nodes` executors of this machine; their states when the result is out, or one has failed."""
    project = Project(root / f"{nodes}x{processes}", files)
    with ExitStack() as stack:
        executors = []
        for number in range(nodes):
            folder = root / f"{nodes}x{processes}" / f"machine-{number}"
            chosen, executor = joined(double, folder, isolation=isolation)
            stack.enter_context(running(chosen))
            executors.append((chosen, executor))
        order = project.order(nodes=nodes, processes_per_node=processes)
        states = double.run(project.job(), [executor for _, executor in executors], order)
        for state in states:
            ended(state, 150)
        forgotten(executors[0][0], states[0], 60)
    return states


def test_a_failing_rank_stops_the_gang_and_its_traceback_is_kept(
    double: SenderDouble, tmp_path: Path
) -> None:
    script = (
        "import os, time\n"
        "print('alive', flush=True)\n"
        "if os.environ['RANK'] == '1':\n"
        "    raise ValueError('rank 1 had enough')\n"
        "time.sleep(100)\n"
    )
    manifest = (
        "project: {name: test}\ntraining: {script: train.py, launcher: torchrun}\ntimeout: {grace: 1s}\n"
    )
    first, second = run_gang(double, tmp_path, 2, 1, {"trainforge.yaml": manifest, "train.py": script})
    end = second.last("ended")
    assert end["code"] == "script_failed"
    assert "ValueError: rank 1 had enough" in end["reason"]
    assert "Traceback" in end["tail"]
    assert first.last("ended")["code"] == "peer_failed"


def test_an_unreachable_first_node_is_named(double: SenderDouble, tmp_path: Path) -> None:
    double.auto = False
    project = Project(tmp_path, {"trainforge.yaml": MANIFEST, "train.py": "print(1)"})
    machines = [joined(double, tmp_path / f"m{number}") for number in range(2)]
    with running(machines[0][0]), running(machines[1][0]):
        states = double.run(project.job(), [executor for _, executor in machines], project.order(nodes=2))
        for state in states:
            wait_for("ready", lambda state=state: state.data("ready"))
        ready = states[0].last("ready")
        assert "127.0.0.1" in ready["addresses"]
        double.give(states[1], ProbeOrder(addresses=["127.0.0.1"], port=1, nonce=ready["nonce"]))
        wait_for("answer", lambda: states[1].data("reached"))
        said = states[1].last("reached")
        assert said["reached"] == {}
        assert "port 1" in said["failures"]["127.0.0.1"]


PLAIN = """\
project: {name: test}
training: {script: train.py, launcher: python}
resources: {processes_per_node: 2}
"""
# No torch: every process reports to the first one over the address and port that it was given.
MEET = """\
import json, os, socket, time
rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
place = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
me = [rank] + [int(os.environ[name]) for name in ("LOCAL_RANK", "NODE_RANK", "TRAINFORGE_NODE_RANK")]
if rank == 0:
    with socket.create_server(("", place[1])) as server:
        server.settimeout(60)
        seen = [me] + [json.loads(server.accept()[0].makefile().readline()) for _ in range(world - 1)]
    print("met", sorted(seen), "at", place[0])
else:
    for _ in range(600):
        try:
            with socket.create_connection(place, 1) as connection:
                connection.sendall(json.dumps(me).encode() + b"\\n")
            break
        except OSError:
            time.sleep(0.1)
    else:
        raise SystemExit(f"nobody at {place}")
"""
GLOO = """\
import os, torch
import torch.distributed as dist

dist.init_process_group("gloo")
sum_of_ranks = torch.tensor([dist.get_rank()])
dist.all_reduce(sum_of_ranks)
print("sum", sum_of_ranks.item(), "in a world of", dist.get_world_size())
dist.destroy_process_group()
"""


def test_plain_processes_on_two_nodes_meet_by_themselves(double: SenderDouble, tmp_path: Path) -> None:
    first, second = run_gang(double, tmp_path, 2, 2, {"trainforge.yaml": PLAIN, "train.py": MEET})
    assert first.last("ended")["code"] == "", story(first)
    assert second.last("ended")["code"] == "", story(second)
    assert second.last("ended")["world_size"] == 4
    assert "met [[0, 0, 0, 0], [1, 1, 0, 0], [2, 0, 1, 1], [3, 1, 1, 1]] at " in first.text(0)


@pytest.mark.parametrize("nodes", [1, 2])
def test_plain_processes_make_their_own_process_group(
    double: SenderDouble, tmp_path: Path, nodes: int
) -> None:
    processes = 2 // nodes
    files = {"trainforge.yaml": PLAIN.replace("2", str(processes)), "train.py": GLOO}
    states = run_gang(double, tmp_path, nodes, processes, files)
    assert [state.last("ended")["code"] for state in states] == [""] * nodes, [*map(story, states)]
    assert "sum 1 in a world of 2" in states[0].text(0)


IN_PLACE = """\
project: {name: test}
training: {script: train.py, launcher: torchrun}
resources: {nodes: 1:2}
retry: {in_place: 2}
timeout: {grace: 1s}
"""
# Every node writes its shard of each step. In its first life the last rank fails once step 2 is sealed.
SHARDS = """\
import os, pathlib, time
import torch
import torch.distributed as dist

dist.init_process_group("gloo")
rank, folder = dist.get_rank(), pathlib.Path(os.environ["TRAINFORGE_CHECKPOINT_DIR"])
assert os.environ["TRAINFORGE_NODE_RANK"] == os.environ["GROUP_RANK"]
step = 0
if resume := os.environ["TRAINFORGE_RESUME_FROM"]:
    step = int(pathlib.Path(resume, f"shard-{rank}").read_text())
print("begins after step", step, flush=True)
for step in range(step + 1, 4):
    part = folder / f"step-{step}" / f"shard-{rank}"
    part.parent.mkdir(exist_ok=True)
    part.write_text(str(step))
    dist.barrier()
    if step == 2 and not resume:
        seals, end = folder.parent / "seals.json", time.monotonic() + 60
        while not (seals.exists() and "step-2" in seals.read_text()):
            assert time.monotonic() < end, "no seal"
            time.sleep(0.1)
        dist.barrier()
        if rank == dist.get_world_size() - 1:
            raise ValueError("an unlucky row")
        time.sleep(60 if os.environ["STUCK"] else 0)
    dist.barrier()
dist.destroy_process_group()
"""


@pytest.mark.parametrize(("nodes", "stuck"), [(1, ""), (2, "yes")])
def test_processes_that_fail_start_again_in_place_from_the_newest_checkpoint(
    double: SenderDouble, tmp_path: Path, nodes: int, stuck: str
) -> None:
    """With and without the others noticing by themselves that one is gone."""
    files = {"trainforge.yaml": IN_PLACE, "train.py": SHARDS.replace('os.environ["STUCK"]', repr(stuck))}
    states = run_gang(double, tmp_path, nodes, 2 // nodes, files, isolation="process")  # it reads the seals
    for state in states:
        assert state.last("ended")["code"] == "", story(state)
        notes = [note["text"] for note in state.data("note")]
        assert sum("restart 1 of 2 in place" in note for note in notes) == 1, notes
    assert "begins after step 2" in states[0].text(0)
    assert "restart 1 in place, from checkpoint 1/step-2" in states[0].text(0)
    notes = [note["text"] for note in states[-1].data("note")]
    assert any("ValueError: an unlucky row; checkpoint 1/step-2 is here" in note for note in notes), notes
