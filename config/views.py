"""What people and programs see of jobs, executors and events: the JSON API's resources.

The sender fills them, `/api` serves them, the command line and the pages show them. Times are unix
seconds, sizes bytes.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel

from trainforge.config.gates import Verdict
from trainforge.config.messages import Capabilities, JobState, Load, NodePhase, NodeState, Outcome


class NodeView(BaseModel):
    rank: int
    executor: str
    executor_name: str
    state: NodeState
    phase: NodePhase | None = None
    detail: str = ""
    code: str = ""
    reason: str = ""
    exit_code: int | None = None
    started: float | None = None
    ended: float | None = None


class AttemptView(BaseModel):
    number: int
    state: Literal["offered", "accepted", "running", "succeeded", "failed", "lost", "superseded", "cancelled"]
    started: float | None = None
    ended: float | None = None
    code: str = ""
    reason: str = ""
    nodes: list[NodeView] = []


class JobSummary(BaseModel):
    """`ending` is the outcome that is decided but not yet on the remote; `waiting` says why it waits.

    `cell` has the parameters that a matrix gave the job, `matrix` is the same for all jobs of one.
    """

    id: str
    project: str
    repository: str
    ref: str
    commit: str
    subject: str = ""
    author: str = ""
    manifest_path: str
    source: str
    state: JobState
    ending: Outcome | None = None
    stopping: bool = False
    code: str = ""
    reason: str = ""
    waiting: dict[str, str] = {}
    nodes: int
    attempt: int
    created: float
    started: float | None = None
    ended: float | None = None
    metrics: dict[str, float | int | str | bool | None] = {}
    progress: float | None = None
    rerun_of: str = ""
    cell: dict[str, Any] = {}
    matrix: str = ""


class JobDetail(JobSummary):
    plan: dict[str, Any] = {}
    attempts: list[AttemptView] = []
    result_branch: str = ""
    result_path: str = ""
    result_commit: str = ""
    result_missing: float | None = None  # since when its result is not on the remote any more
    timeline: list[dict[str, Any]] = []
    artifacts: list[dict[str, Any]] = []
    gates: list[Verdict] = []  # what its result says of the manifest's gates
    notices: list[str] = []


class LogLine(BaseModel):
    """`cursor` orders all lines of a job; ask for what comes after it."""

    cursor: int
    time: float
    attempt: int
    node: int
    rank: int
    stream: str
    text: str
    level: str = "info"  # or warning, error, progress: what its words say


class MetricPoint(BaseModel):
    cursor: int
    time: float
    attempt: int
    rank: int
    step: int | None = None
    epoch: float | None = None
    values: dict[str, float | int | str | bool | None]


class ExecutorView(BaseModel):
    id: str
    name: str
    status: Literal["online", "offline", "busy", "draining", "revoked", "pending"]
    connection: Literal["pull", "push"]
    endpoint: str = ""
    last_seen: float | None = None
    capabilities: Capabilities
    load: Load
    jobs: list[str] = []
    fingerprint: str = ""  # of its key, to be compared with what the machine shows
    ephemeral: bool = False  # a visitor: forgotten when it has gone


class AuditEntry(BaseModel):
    """What somebody did; `hash` covers it and the hash of the entry before."""

    n: int
    time: float
    actor: str
    action: str
    subject: str
    detail: dict[str, Any] = {}
    hash: str


class AuditVerdict(BaseModel):
    """`head` is worth keeping elsewhere: given again, it proves that nothing up to it was changed."""

    rows: int
    head: str
    problems: list[str] = []


class EventView(BaseModel):
    """What arrived, and what it led to, or why to nothing."""

    id: int
    time: float
    source: str
    repository: str
    ref: str = ""
    old: str = ""
    new: str = ""
    decision: Literal["job", "ignored", "refused"]
    reason: str = ""
    jobs: list[str] = []


class SecretView(BaseModel):
    """A secret without its value. No `branches` stands for the repository's default branch."""

    name: str
    repository: str
    branches: list[str] = []
    changed: float
    by: str


class NoticeView(BaseModel):
    """A notification that has not arrived: `due` is when it is tried next, none where that was given up."""

    job: str
    occasion: str
    target: str
    kind: str
    created: float
    due: float | None = None
    tries: int = 0
    problem: str = ""


class RepositoryView(BaseModel):
    id: str
    name: str
    url: str
    kind: Literal["builtin", "remote", "local"]
    checked: float | None = None
    error: str = ""


class GitHubFinding(BaseModel):
    """One thing that a connection to GitHub needs: whether it holds, and what to do if it does not."""

    what: Literal[
        "access", "permissions", "repository", "webhook", "ping", "deliveries", "installation", "rate limit"
    ]
    ok: bool
    says: str
    hint: str = ""


class GitHubConnectionView(BaseModel):
    """`repository` is its name here, `full_name` the one at GitHub; `app` the App's, empty by a token."""

    repository: str
    full_name: str
    api_url: str
    app: str = ""
    webhook: bool
    by: str
    connected: float
    delivered: float | None = None
    pinged: float | None = None
    problem: str = ""


class GitHubAppView(BaseModel):
    """A GitHub App of the sender's; `install_url` is where it is given repositories."""

    id: int
    slug: str
    url: str
    install_url: str
    api_url: str
    by: str
    created: float


class GitHubReport(BaseModel):
    """What a connection needs and has; `ok` if nothing is missing."""

    connection: GitHubConnectionView
    ok: bool
    findings: list[GitHubFinding]


# What people may do, each role all that the one before it may.
Role = Literal["viewer", "operator", "admin"]
ROLES: tuple[Role, ...] = ("viewer", "operator", "admin")


class UserView(BaseModel):
    """An account; `password` tells whether it has one, without which one gets in by a one-time link."""

    name: str
    role: Role
    password: bool
    created: float
    seen: float | None = None


class TokenView(BaseModel):
    """An access token without its secret; `user` is whose it is, empty for one of nobody."""

    id: int
    name: str
    role: Role
    user: str = ""
    created: float
    expires: float | None = None
