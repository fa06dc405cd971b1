"""What the first API's routes answer: the shapes that `/api/openapi.json` describes."""

from __future__ import annotations

from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict  # pydantic reads the standard one from Python 3.12 on

from trainforge.config.messages import JobState
from trainforge.sender.answers import Ahead, PlannedCell, PlannedStart


class WorkerJob(TypedDict):
    job_id: str
    status: str
    project: str
    workers: int
    progress: float | None
    metrics: dict[str, float | int | str | bool | None]
    code: str
    reason: str
    waiting: dict[str, str]
    created: str | None
    started: str | None
    ended: str | None


class WorkerJobs(TypedDict):
    jobs: list[WorkerJob]


class Claimed(TypedDict):
    job_id: str
    worker_id: str
    rank: int
    world_size: int
    master_addr: str
    master_port: int
    status: str


class MachineCapabilities(TypedDict):
    gpu_count: int
    gpu_memory: int
    cpu_count: int
    memory: int
    disk_space: int


class MachineLoad(TypedDict):
    cpu_usage: float
    memory_usage: float
    gpu_usage: list[float]


class MachineView(TypedDict):
    """A machine that has joined, or one that is expected (`pending`) and has no more than the first keys."""

    id: str
    name: str
    host: str
    port: int
    status: str
    capabilities: MachineCapabilities
    current_load: MachineLoad
    pending: bool
    hint: NotRequired[str]
    join_command: NotRequired[str]
    expires: NotRequired[float]
    draining: NotRequired[bool]
    connection: NotRequired[str]
    last_seen: NotRequired[float | None]
    jobs: NotRequired[list[str]]
    max_jobs: NotRequired[int]
    gpus: NotRequired[list[dict[str, Any]]]
    labels: NotRequired[dict[str, str]]
    host_id: NotRequired[str]


class Machines(TypedDict):
    machines: list[MachineView]


class RemovedMachine(TypedDict):
    removed: str
    name: str


class Pong(TypedDict):
    machine_id: str
    name: str
    reachable: bool
    status: str
    latency_ms: float | None
    asked: str
    last_seen: float | None
    error: str


class MachineHealth(TypedDict):
    machine_id: str
    name: str
    reachable: bool
    status: str
    healthy: bool
    problems: list[str]
    latency_ms: NotRequired[float | None]
    asked: NotRequired[str]
    last_seen: NotRequired[float | None]
    error: NotRequired[str]


class HealthCheck(TypedDict):
    healthy: int
    unhealthy: int
    machines: list[MachineHealth]


class MeanLoad(TypedDict):
    cpu_usage: float
    memory_usage: float
    gpu_usage: float


class JobCounts(TypedDict):
    running: int
    waiting: int


class NetworkStatus(TypedDict):
    total_machines: int
    online: int
    busy: int
    offline: int
    pending: int
    capabilities: MachineCapabilities
    current_load: MeanLoad
    jobs: JobCounts
    machines: list[MachineView]


class HostCapabilities(TypedDict):
    name: str
    capabilities: MachineCapabilities
    current_load: MachineLoad
    executors: list[str]


class ProposedJob(TypedDict):
    """A plan to confirm; `execution_plan` where it could begin now."""

    job_id: str
    task_id: str
    jobs: list[str]
    status: Literal["planning"]
    project: str
    execution_plan: dict[str, Any] | None
    waiting: dict[str, str]
    alternatives: list[str]
    suggestions: list[str]
    start: PlannedStart | None
    ahead: list[Ahead]
    cells: list[PlannedCell]
    inactive: list[str]


class DistributedStatus(TypedDict):
    """The first API's status; a job that is only planned has its plan's keys beside these."""

    job_id: str
    status: str
    nodes: list[dict[str, Any]]
    world_size: NotRequired[int]
    master_addr: NotRequired[str]
    master_port: NotRequired[int]
    state: NotRequired[JobState]
    progress: NotRequired[float | None]
    metrics: NotRequired[dict[str, float | int | str | bool | None]]
    waiting: NotRequired[dict[str, str]]
    code: NotRequired[str]
    reason: NotRequired[str]
    attempt: NotRequired[int]
    task_id: NotRequired[str]
    jobs: NotRequired[list[Any]]
    project: NotRequired[str]
    execution_plan: NotRequired[dict[str, Any] | None]
    alternatives: NotRequired[list[str]]
    suggestions: NotRequired[list[str]]
    start: NotRequired[PlannedStart | None]
    ahead: NotRequired[list[Ahead]]
    cells: NotRequired[list[PlannedCell]]
    inactive: NotRequired[list[str]]


class MissingRanks(TypedDict):
    job_id: str
    status: Literal["planning"]
    rank: int
    missing_ranks: list[int]


class Output(TypedDict):
    job_id: str
    output: str
    cursor: int
    ended: bool


class SuggestedMachine(MachineView):
    suggested: bool
    reason: str


class Suggestions(TypedDict):
    suggested_machines: list[str]
    machines: list[SuggestedMachine]
    enough: bool
    waiting: dict[str, str]
    resource_requirements: dict[str, Any]
    machine_selection: Literal["auto", "manual"]
