"""How far a job is kept apart from its machine: the levels, what a job or an owner may demand, who has what.

`process` is a session of its own with limits. `sandbox` is bubblewrap: besides the system, read-only, a job
sees what is its own and nothing else. `container` has a system of its own too, from an image, which a job
names or the machine's settings do. A stricter level does where a weaker one is asked for.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Level = Literal["process", "sandbox", "container"]
LEVELS: tuple[Level, ...] = ("process", "sandbox", "container")  # from the weakest on


class Isolation(BaseModel):
    """What a machine can enforce, found out by trying, and what it does without being asked."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    usual: Level = "process"
    levels: list[Level] = Field(default=["process"], min_length=1, max_length=8)
    own_user: bool = False  # whether a job at `process` has a user of its own
    bounded: list[str] = Field(default=[], max_length=8)  # of memory, cpu, pids: by control groups
    lacks: dict[str, str] = Field(default={}, max_length=16)  # what it cannot enforce, and why
    engine: str = Field(default="", max_length=200)  # of containers, such as `podman 4.3.1`
    image: str = Field(default="", max_length=2048)  # for jobs that name none
    gpus: bool = False  # whether containers can be given GPUs


def strictest(levels: Iterable[Level]) -> Level:
    return max(levels, key=LEVELS.index, default="process")


def demanded(least: Level | None, network: str | None) -> Level:
    """What a job needs: no network is a thing of sandboxes."""
    return strictest(["sandbox" if network == "none" else "process", least or "process"])


def lacking(has: Isolation | None, needs: Level, *, image: bool = False, gpus: int = 0) -> str:
    """Why a machine cannot isolate a job that much; empty when it can; None says nothing.

    `image` is whether the job names one, or a Dockerfile; `gpus` how many it has to have.
    """
    here = has or Isolation()
    able = [level for level in here.levels if LEVELS.index(level) >= LEVELS.index(needs)]
    if any(level != "container" for level in able):
        return ""
    why = here.lacks.get(needs, "")
    if able and not image and not here.image:
        why = "it names no image, and this machine has no container_image"
    elif able and gpus and not here.gpus:
        why = here.lacks.get("GPUs in containers", "its containers get no GPUs")
    elif able:
        return ""
    return f"cannot isolate a job as {needs}{f': {why}' if why else ''}"
