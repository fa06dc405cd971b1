"""Machines and manifests for the planner's tests and its benchmark."""

from __future__ import annotations

from typing import Any

from trainforge.config.manifest import Manifest, parse_manifest
from trainforge.config.messages import Capabilities, Gpu
from trainforge.sender.fit import Machine, Running
from trainforge.sender.planner import Plan, Waiting

GIB = 2**30


def manifest(rest: str = "", training: str = "{script: t.py}") -> Manifest:
    return parse_manifest(f"project: {{name: p}}\ntraining: {training}\n{rest}")


def machine(name: str, gpus: int = 0, gpu_gib: int = 24, gpu_host: str = "", **facts: Any) -> Machine:
    """`gpu_host` names the GPUs, for executors that see the same ones."""
    has = {
        "hostname": name,
        "cpu_count": 4,
        "memory_bytes": 16 * GIB,
        "disk_free_bytes": 100 * GIB,
        "gpus": [
            Gpu(uuid=f"{gpu_host or name}-{i}", model="A", memory_bytes=gpu_gib * GIB) for i in range(gpus)
        ],
    }
    own = {key: facts.pop(key) for key in list(facts) if key in Capabilities.model_fields}
    return Machine(id=f"x-{name}", name=name, capabilities=Capabilities.model_validate(has | own), **facts)


def node(*gpus: str, job: str = "other", **facts: Any) -> Running:
    return Running(job, gpus, **facts)


def why(made: Plan | Waiting) -> dict[str, str]:
    assert isinstance(made, Waiting)
    return made.reasons


def placed(made: Plan | Waiting) -> list[str]:
    assert isinstance(made, Plan)
    return [one.name for one in made.nodes]
