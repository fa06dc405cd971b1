"""What is run, with which environment: pure. No file is read here and no process started.

Accelerate's launcher quietly runs one process for `--cpu --num_processes 2` (1.15). With `--multi_gpu` it
runs as many as it was told, and `ACCELERATE_USE_CPU` makes them train on the CPU over gloo. One single
process needs no launcher: Accelerate would only import torch, set four variables and start the script.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainforge.config.manifest import Manifest
from trainforge.config.messages import NodeKey, RunOrder
from trainforge.executor import parameters

WARNED = "warned"  # in the run folder once the training was warned of its end
RANK_PROGRAM = str(Path(__file__).with_name("rank.py"))
KEPT = re.compile(
    r"PATH|HOME|USER|LOGNAME|SHELL|TERM|LANG|LC_\w+|TZ|TMPDIR|LD_LIBRARY_PATH|XDG_CACHE_HOME"
    r"|(?i:https?_proxy|no_proxy|all_proxy)|SSL_CERT_FILE|SSL_CERT_DIR|REQUESTS_CA_BUNDLE"
    r"|CUDA_(?!VISIBLE)\w+|NVIDIA_\w+|NCCL_\w+|GLOO_\w+|TORCH_HOME"
    r"|HF_HOME|HF_HUB_OFFLINE|HF_HUB_CACHE|HF_DATASETS_CACHE|HF_ENDPOINT|TRANSFORMERS_OFFLINE"
)


@dataclass(frozen=True)
class Folders:
    """Where a node's training finds and leaves things."""

    work: Path  # the checkout
    run: Path
    output: Path
    checkpoint: Path
    data: Path
    metrics_file: Path
    params_file: Path
    resume_from: str = ""
    params: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Meeting:
    """Where the ranks meet, and through which network interface this node gets there."""

    address: str
    port: int
    interface: str = ""
    resume: str = ""  # the checkpoint that all nodes go on from


@dataclass(frozen=True)
class Plan:
    """Everything that decides a launch."""

    manifest: Manifest
    node: NodeKey
    order: RunOrder
    folders: Folders
    python: str
    inherited: Mapping[str, str]
    meeting: Meeting | None = None
    deadline: float = 0.0


@dataclass(frozen=True)
class Launch:
    """`argv` starts the launcher, `command` is what every process becomes (see `rank.py`)."""

    argv: list[str]
    command: list[str]
    cwd: Path
    processes: int  # on this node
    world_size: int
    env: dict[str, str] = field(repr=False)
    least_world: int = 0  # with which a restart in place goes on; 0: with all
    starts: tuple[Mapping[str, str], ...] = ({},)  # `argv` is started once for each, with these variables too


def plan_launch(plan: Plan) -> Launch:
    training = plan.manifest.training
    launched = has_launcher(plan.manifest)
    local = processes(plan.manifest, plan.order)
    world = local * plan.order.nodes
    rank_argv = [plan.python, "-I", "-S", RANK_PROGRAM, str(plan.folders.run), str(plan.node.rank)]
    again = plan.manifest.retry.in_place
    if not launched or (world == 1 and training.launcher == "accelerate" and not again):
        argv = rank_argv
    elif training.launcher == "torchrun" or again:  # Accelerate takes its settings from the environment too
        argv = [*_torchrun(plan, local), *rank_argv]
    else:
        argv = [*_accelerate(plan, world), *rank_argv]
    env = environment(plan, world=world, local=local)
    starts = ({},) if launched or world == 1 else tuple(_place(plan, local, each) for each in range(local))
    cwd = plan.folders.work / training.working_dir
    least = least_nodes(plan.manifest, plan.order) * local
    return Launch(argv, command(plan), cwd, local, world, env, least, starts)


def has_launcher(manifest: Manifest) -> bool:
    return manifest.training.command is None and manifest.training.launcher in ("accelerate", "torchrun")


def processes(manifest: Manifest, order: RunOrder) -> int:
    """How many are started on each node."""
    return 1 if manifest.training.command is not None else order.processes_per_node


def _place(plan: Plan, local: int, number: int) -> dict[str, str]:
    """What a launcher would tell a process of its place, with torch's names."""
    rank, nodes = plan.node.rank, plan.order.nodes
    place = {"RANK": rank * local + number, "LOCAL_RANK": number, "WORLD_SIZE": nodes * local}
    place |= {"NODE_RANK": rank, "GROUP_RANK": rank, "LOCAL_WORLD_SIZE": local}
    return {name: str(value) for name, value in place.items()}


def command(plan: Plan) -> list[str]:
    training = plan.manifest.training
    args = parameters.arguments([str(arg) for arg in training.args], plan.folders.params)
    if training.command is not None:
        return ["/bin/sh", "-c", training.command]
    if training.module is not None:
        return [plan.python, "-m", training.module, *args]
    return [plan.python, str(training.script), *args]


def _accelerate(plan: Plan, world: int) -> list[str]:
    """Every value is given, so that a personal `accelerate config` on the machine decides nothing."""
    distributed = plan.manifest.distributed
    options = {
        "num_machines": plan.order.nodes,
        "num_processes": world,
        "machine_rank": plan.node.rank,
        "mixed_precision": distributed.mixed_precision,
        "dynamo_backend": "no",
        "num_cpu_threads_per_process": threads(plan.manifest, plan.order.processes_per_node),
        "gpu_ids": "all",
        "rdzv_backend": "static",
        "main_process_port": plan.meeting.port if plan.meeting else distributed.port or 0,
    }
    if plan.meeting:
        options["main_process_ip"] = plan.meeting.address
    argv = [plan.python, "-m", "accelerate.commands.launch", "--multi_gpu"]
    for name, value in options.items():
        argv += [f"--{name}", str(value)]
    return [*argv, "--no_python"]


def _torchrun(plan: Plan, local: int) -> list[str]:
    argv = [plan.python, "-m", "torch.distributed.run", f"--nnodes={_nodes(plan)}"]
    argv += [f"--nproc-per-node={local}", f"--node-rank={plan.node.rank}", "--monitor-interval=0.1"]
    if plan.manifest.retry.in_place:
        argv += [f"--max-restarts={plan.manifest.retry.in_place}"]
    if plan.meeting and plan.manifest.retry.in_place:
        argv += _elastic(plan, plan.meeting)
    elif plan.meeting:
        argv += [f"--master-addr={plan.meeting.address}", f"--master-port={plan.meeting.port}"]
    elif plan.manifest.distributed.port:
        argv += ["--master-addr=127.0.0.1", f"--master-port={plan.manifest.distributed.port}"]
    else:
        argv += ["--standalone"]
    return [*argv, "--no-python"]


def _nodes(plan: Plan) -> str:
    """How many there are, and with how few of them a restart in place goes on."""
    nodes, least = plan.order.nodes, least_nodes(plan.manifest, plan.order)
    return str(nodes) if least == nodes else f"{least}:{nodes}"


def least_nodes(manifest: Manifest, order: RunOrder) -> int:
    return min(manifest.resources.nodes.min, order.nodes) if manifest.retry.in_place else order.nodes


def _elastic(plan: Plan, meeting: Meeting) -> list[str]:
    """A rendezvous that the nodes can repeat.

    torch orders the nodes by their addresses' text, and takes that of the first alone for an address. The
    others get names that come after any address, in the order of their ranks: rank 0 stays where it belongs.
    """
    first = plan.node.rank == 0
    argv = ["--rdzv-backend=c10d", f"--rdzv-endpoint={meeting.address}:{meeting.port}"]
    argv += [f"--rdzv-id={plan.node.job}-{plan.node.attempt}", f"--rdzv-conf=is_host={int(first)}"]
    return [*argv, f"--local-addr={meeting.address if first else f'node-{plan.node.rank:04}'}"]


def threads(manifest: Manifest, local: int) -> int:
    """Threads of each process: its share of the cores asked for, else one, as torchrun does it."""
    return max(1, int((manifest.resources.cpu or 0) // local))


def base_environment(inherited: Mapping[str, str]) -> dict[str, str]:
    """What a job may see of the executor's own environment: no credentials, nothing of ours or git's."""
    return {name: value for name, value in inherited.items() if KEPT.fullmatch(name)}


def environment(plan: Plan, *, world: int, local: int) -> dict[str, str]:
    env = base_environment(plan.inherited)
    bin_folder = str(Path(plan.python).parent)
    env["PATH"] = f"{bin_folder}:{env.get('PATH', '/usr/local/bin:/usr/bin:/bin')}"
    env["PYTHONUNBUFFERED"] = "1"
    env["CUDA_VISIBLE_DEVICES"] = ",".join(plan.order.gpus)
    env |= _accelerate_environment(plan, world)
    if plan.manifest.retry.in_place:  # else torch (2.13) has restarted processes read what the last ones left
        env["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    if world > 1:
        env["OMP_NUM_THREADS"] = str(threads(plan.manifest, local))
    if plan.meeting:
        env |= {"MASTER_ADDR": plan.meeting.address, "MASTER_PORT": str(plan.meeting.port)}
        if plan.meeting.interface:
            names = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "TP_SOCKET_IFNAME")
            env |= dict.fromkeys(names, plan.meeting.interface)
    elif world > 1:
        env["GLOO_SOCKET_IFNAME"] = "lo"
    env |= {name: str(value) for name, value in plan.manifest.training.env.items()}
    if plan.manifest.seed is not None:
        env |= {"TRAINFORGE_SEED": str(plan.manifest.seed), "PYTHONHASHSEED": str(plan.manifest.seed)}
    return env | _own(plan)


def _accelerate_environment(plan: Plan, world: int) -> dict[str, str]:
    env = {
        "ACCELERATE_MIXED_PRECISION": str(plan.manifest.distributed.mixed_precision),
        "ACCELERATE_DYNAMO_BACKEND": "NO",
    }
    if not plan.order.gpus:
        env["ACCELERATE_USE_CPU"] = "true"
    if plan.manifest.distributed.backend != "auto" and world > 1:
        env["TRAINFORGE_BACKEND"] = plan.manifest.distributed.backend
    return env


def _own(plan: Plan) -> dict[str, str]:
    """The variables that the manual promises to every process of a job."""
    folders = plan.folders
    values: dict[str, Any] = {
        "JOB_ID": plan.node.job,
        "ATTEMPT": plan.node.attempt,
        "COMMIT": plan.order.commit,
        "NODE_RANK": plan.node.rank,
        "NODES": plan.order.nodes,
        "OUTPUT_DIR": folders.output,
        "CHECKPOINT_DIR": folders.checkpoint,
        "RESUME_FROM": folders.resume_from,
        "METRICS_FILE": folders.metrics_file,
        "PARAMS_FILE": folders.params_file,
        "DATA_DIR": folders.data,
        "DEADLINE": f"{plan.deadline:.0f}" if plan.deadline else "",
        "WARNING_FILE": folders.run / WARNED,
        "CHECKPOINT_EVERY": f"{every:g}" if (every := plan.manifest.checkpoint.every) else "",
    }
    return {f"TRAINFORGE_{name}": str(value) for name, value in values.items()}
