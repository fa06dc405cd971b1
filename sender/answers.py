"""What the API answers where it is not a view of its own: the shapes that `/api/openapi.json` describes."""

from __future__ import annotations

from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict  # pydantic reads the standard one from Python 3.12 on

from trainforge.config.views import (
    AuditEntry,
    EventView,
    ExecutorView,
    GitHubAppView,
    GitHubConnectionView,
    JobSummary,
    LogLine,
    MetricPoint,
    NoticeView,
    RepositoryView,
    Role,
    SecretView,
    TokenView,
    UserView,
)


class Problem(TypedDict):
    """RFC 9457: `code` is stable, `hint` says what to do; docs/troubleshooting.md lists the codes."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    hint: str
    place: NotRequired[str]
    problems: NotRequired[list[PlacedProblem]]


class PlacedProblem(TypedDict):
    detail: str
    hint: str
    place: str


class Health(TypedDict):
    status: Literal["ok"]
    version: str
    sender: str


class Received(TypedDict):
    status: Literal["accepted", "known", "ignored"]
    reason: NotRequired[str]


class Lines(TypedDict):
    lines: list[str]


class WorkflowToken(TypedDict):
    """What the token is good for: this commit of this repository, until then."""

    token: str
    expires: float
    repository: str
    ref: str
    commit: str
    run: bool


class Jobs(TypedDict):
    jobs: list[JobSummary]


class LogLines(TypedDict):
    lines: list[LogLine]
    cursor: int
    ended: bool


class Points(TypedDict):
    points: list[MetricPoint]


class Artifacts(TypedDict):
    artifacts: list[dict[str, Any]]
    branch: str
    folder: str
    commit: str


class Executors(TypedDict):
    executors: list[ExecutorView]


class Repositories(TypedDict):
    repositories: list[RepositoryView]


class Events(TypedDict):
    events: list[EventView]


class Entries(TypedDict):
    entries: list[AuditEntry]


class GitHub(TypedDict):
    connections: list[GitHubConnectionView]
    apps: list[GitHubAppView]


class Beginning(TypedDict):
    """`url` is a page of this sender's, for the browser of who is to agree at GitHub."""

    url: str
    expires: float


class Notices(TypedDict):
    notices: list[NoticeView]


class Secrets(TypedDict):
    secrets: list[SecretView]


class SetSecret(TypedDict):
    name: str
    repository: str
    branches: list[str]
    changed: float
    by: str
    remarks: list[str]


class Count(TypedDict):
    secrets: int


class Users(TypedDict):
    users: list[UserView]


class AddedUser(TypedDict):
    """With a link to set a password by, where none was given."""

    name: str
    role: Role
    password: bool
    created: float
    seen: float | None
    url: NotRequired[str]
    expires: NotRequired[float]


class Link(TypedDict):
    url: str
    expires: float


class Named(TypedDict):
    name: str


class Me(TypedDict):
    name: str
    role: Role
    account: bool


class Tokens(TypedDict):
    tokens: list[TokenView]


class NewToken(TypedDict):
    name: str
    token: str


class Revoked(TypedDict):
    id: int


class Invitation(TypedDict):
    token: str
    expires: float
    command: str


class RotatedKey(TypedDict):
    fingerprint: str
    until: float


# --- plans ----------------------------------------------------------------------------------------------


class PlannedStart(TypedDict):
    time: float | None
    words: str


class Ahead(TypedDict):
    id: str
    priority: int


class PlannedCell(TypedDict):
    number: int
    name: str
    parameters: dict[str, Any]
    plan: dict[str, Any] | None
    waiting: dict[str, str]
    suggestions: list[str]
    start: PlannedStart
    job_id: NotRequired[str]


class PlanAnswer(TypedDict):
    """`plan` where the job would begin now, else why it would wait."""

    plan: dict[str, Any] | None
    waiting: dict[str, str]
    suggestions: list[str]
    start: PlannedStart
    cells: list[PlannedCell]
    max_parallel: int | None
    ahead: list[Ahead]
    inactive: list[str]
