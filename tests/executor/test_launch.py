"""What is run: the table of argument lists and environments, and what really ran."""

from __future__ import annotations

import itertools
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from support.waiting import wait_for
from trainforge.config import messages as m
from trainforge.config.manifest import parse_manifest
from trainforge.executor import endings, launch
from trainforge.executor.supervise import Exit, Supervised

JOB = "a" * 26
FOLDERS = launch.Folders(
    work=Path("/w"), run=Path("/r"), output=Path("/o"), checkpoint=Path("/c"), data=Path("/d"),
    metrics_file=Path("/r/metrics.jsonl"), params_file=Path("/r/params.json"),
)  # fmt: skip
RANK = ["/env/bin/python", "-I", "-S", launch.RANK_PROGRAM, "/r"]
MEETING = launch.Meeting("10.0.0.1", 4242, "eth0")


def planned(
    training: str, *, rank: int = 0, more: str = "", meeting: Any = None, **order: Any
) -> launch.Launch:
    manifest = parse_manifest(f"project: {{name: t}}\ntraining: {{{training}}}\n{more}\n")
    fields: dict[str, Any] = {
        "repository": m.Repository(id="git:x", name="x", url="https://x/x"), "ref": "refs/heads/main",
        "commit": "0" * 40, "manifest_path": "trainforge.yaml", "manifest_blob": "0" * 40, "project": "t",
        "nodes": 1, "processes_per_node": 1, "results_branch": "r", "lease_ttl": 9,
    }  # fmt: skip
    return launch.plan_launch(
        launch.Plan(
            manifest=manifest,
            node=m.NodeKey(job=JOB, attempt=1, rank=rank),
            order=m.RunOrder(**(fields | order)),
            folders=FOLDERS,
            python="/env/bin/python",
            inherited={"PATH": "/usr/bin", "SECRET": "canary", "HOME": "/home/ada"},
            meeting=meeting,
        )
    )


def test_one_process_needs_no_launcher() -> None:
    done = planned("script: train.py, args: [--lr, 0.1]")
    assert done.argv == [*RANK, "0"]
    assert done.command == ["/env/bin/python", "train.py", "--lr", "0.1"]
    assert done.env["ACCELERATE_USE_CPU"] == "true"
    assert done.env["CUDA_VISIBLE_DEVICES"] == ""
    assert done.env["PATH"] == "/env/bin:/usr/bin"
    assert "SECRET" not in done.env
    assert "RANK" not in done.env


def test_accelerate_is_told_everything() -> None:
    done = planned("script: train.py", nodes=2, processes_per_node=3, rank=1, meeting=MEETING)
    assert (done.processes, done.world_size) == (3, 6)
    assert done.argv == [
        "/env/bin/python", "-m", "accelerate.commands.launch", "--multi_gpu",
        "--num_machines", "2", "--num_processes", "6", "--machine_rank", "1", "--mixed_precision", "no",
        "--dynamo_backend", "no", "--num_cpu_threads_per_process", "1", "--gpu_ids", "all",
        "--rdzv_backend", "static", "--main_process_port", "4242", "--main_process_ip", "10.0.0.1",
        "--no_python", *RANK, "1",
    ]  # fmt: skip
    assert done.env["GLOO_SOCKET_IFNAME"] == done.env["NCCL_SOCKET_IFNAME"] == "eth0"
    assert (done.env["MASTER_ADDR"], done.env["MASTER_PORT"]) == ("10.0.0.1", "4242")


def test_torchrun_meets_where_it_is_told() -> None:
    done = planned("script: train.py, launcher: torchrun", nodes=2, rank=1, meeting=MEETING)
    assert "--master-addr=10.0.0.1" in done.argv
    assert done.argv[-7:] == ["--no-python", *RANK, "1"]
    assert "--standalone" in planned("script: train.py, launcher: torchrun", processes_per_node=2).argv


def test_a_gpu_job_sees_its_gpus_alone() -> None:
    done = planned("script: train.py", gpus=["GPU-a", "GPU-b"], processes_per_node=2)
    assert done.env["CUDA_VISIBLE_DEVICES"] == "GPU-a,GPU-b"
    assert "ACCELERATE_USE_CPU" not in done.env


def test_a_command_is_one_process_that_knows_its_place() -> None:
    done = planned("command: make train", nodes=2, processes_per_node=4, rank=1, meeting=MEETING)
    assert done.command == ["/bin/sh", "-c", "make train"]
    assert (done.processes, done.world_size) == (1, 2)
    assert (done.starts[0]["RANK"], done.starts[0]["WORLD_SIZE"]) == ("1", "2")


def test_modules_threads_seed_and_own_variables() -> None:
    done = planned(
        "module: pkg.train, env: {A: b}", more="resources: {cpu: 8}\nseed: 3", processes_per_node=2
    )
    assert done.command == ["/env/bin/python", "-m", "pkg.train"]
    assert done.env["OMP_NUM_THREADS"] == "4"
    assert (done.env["A"], done.env["TRAINFORGE_SEED"]) == ("b", "3")
    promised = (
        "JOB_ID ATTEMPT COMMIT NODE_RANK NODES OUTPUT_DIR CHECKPOINT_DIR RESUME_FROM METRICS_FILE "
        "PARAMS_FILE DATA_DIR DEADLINE"
    )
    assert all(f"TRAINFORGE_{name}" in done.env for name in promised.split())


# --- what really runs -----------------------------------------------------------------------------------


def supervise(root: Path, argv: list[str], processes: int, script: str) -> tuple[Supervised, Exit]:
    """Run a script under the given launcher to its end."""
    (root / "train.py").write_text(script)
    run = root / "run"
    run.mkdir()
    env = dict(os.environ) | {"ACCELERATE_USE_CPU": "true", "GLOO_SOCKET_IFNAME": "lo"}
    rank = [sys.executable, "-I", "-S", launch.RANK_PROGRAM, str(run), "0"]
    command = [sys.executable, "train.py", "--n", "5"]
    supervised = Supervised(run)
    supervised.prepare(
        launch.Launch([*argv, *rank], command, root, processes, processes, env), timeout_s=None, grace_s=1
    )
    supervised.start()
    return supervised, wait_for("exit", supervised.exit, 120)


ACCELERATE = [
    sys.executable, "-m", "accelerate.commands.launch", "--num_machines", "1", "--machine_rank", "0",
    "--mixed_precision", "no", "--dynamo_backend", "no", "--num_cpu_threads_per_process", "1",
]  # fmt: skip


def test_the_launcher_that_quietly_runs_one_process_is_caught(tmp_path: Path) -> None:
    argv = [*ACCELERATE, "--cpu", "--num_processes", "2", "--no_python"]
    supervised, done = supervise(tmp_path, argv, 2, "print('trained happily')")
    assert done.exit_code == 0
    said = endings.ended(
        done, endings.last_words(supervised.run / "logs"), stop=None, ranks=supervised.ranks(),
        processes=2, world_size=2, run_timeout=None,
    )  # fmt: skip
    assert said.code == "wrong_world_size"
    assert said.world_size == 1


@pytest.mark.parametrize("launcher", ["accelerate", "torchrun"])
def test_two_processes_really_run(tmp_path: Path, launcher: str) -> None:
    accelerate = [
        *ACCELERATE,
        "--multi_gpu",
        "--num_processes",
        "2",
        "--main_process_port",
        "0",
        "--no_python",
    ]
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        "--no-python",
    ]
    script = "import os, sys\nprint('rank', os.environ['RANK'], sys.argv[1:], __name__, sys.argv[0])\n"
    supervised, done = supervise(tmp_path, accelerate if launcher == "accelerate" else torchrun, 2, script)
    logs = supervised.run / "logs"
    assert done.exit_code == 0, endings.last_words(logs)
    ranks = supervised.ranks()
    assert [(rank["rank"], rank["world_size"]) for rank in ranks] == [(0, 2), (1, 2)]
    for rank in range(2):
        assert (logs / f"{rank}.stdout").read_text() == f"rank {rank} ['--n', '5'] __main__ train.py\n"


def test_torchrun_tells_who_failed_first(tmp_path: Path) -> None:
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        "--no-python",
    ]
    script = "import os, time\nif os.environ['RANK'] == '1': raise SystemExit(7)\ntime.sleep(60)\n"
    supervised, done = supervise(tmp_path, torchrun, 2, script)
    assert done.exit_code == 1
    assert endings.root_cause(done, endings.last_words(supervised.run / "logs")) == (7, 1)


def test_a_personal_accelerate_config_decides_nothing() -> None:
    """Every option of the launcher that a configuration file could set is on the command line."""
    argv = planned("script: train.py", processes_per_node=2).argv
    options = {name for name, _ in itertools.pairwise(argv) if name.startswith("--")}
    assert {
        "--num_machines",
        "--num_processes",
        "--machine_rank",
        "--mixed_precision",
        "--gpu_ids",
    } <= options


def test_plain_processes_are_told_their_places() -> None:
    done = planned(
        "script: train.py, launcher: python", nodes=2, processes_per_node=2, rank=1, meeting=MEETING
    )
    assert done.argv == [*RANK, "1"]
    assert (done.processes, done.world_size) == (2, 4)
    assert [each["RANK"] for each in done.starts] == ["2", "3"]
    assert [each["LOCAL_RANK"] for each in done.starts] == ["0", "1"]
    assert {each["WORLD_SIZE"] + each["NODE_RANK"] for each in done.starts} == {"41"}
    assert (done.env["MASTER_ADDR"], done.env["MASTER_PORT"]) == ("10.0.0.1", "4242")
    assert planned("script: train.py, launcher: python").starts == ({},)


def test_restarts_in_place_need_a_rendezvous_that_can_be_repeated() -> None:
    more = "resources: {nodes: 1:4}\nretry: {in_place: 3}"
    done = [
        planned("script: train.py", more=more, nodes=3, processes_per_node=2, rank=rank, meeting=MEETING).argv
        for rank in range(2)
    ]
    for argv, host, address in zip(done, "10", ("10.0.0.1", "node-0001"), strict=True):
        assert {
            "--nnodes=1:3",
            "--max-restarts=3",
            "--rdzv-backend=c10d",
            "--rdzv-endpoint=10.0.0.1:4242",
        } < set(argv)
        assert {f"--rdzv-conf=is_host={host}", f"--local-addr={address}"} < set(argv)
    alone = planned("script: train.py, launcher: torchrun", more=more).argv
    assert {"--nnodes=1", "--standalone", "--max-restarts=3"} < set(alone)
