"""Settings of the sender, the executors and the command line.

Each comes from, strongest first: what the caller says, the environment (`TRAINFORGE_SENDER_*`,
`TRAINFORGE_EXECUTOR_*`, for the command line `TRAINFORGE_*`), the settings file, the default. Secrets are
`SecretStr`, and `shown` is what may be printed.
"""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    model_validator,
)
from pydantic_settings import NoDecode, SettingsConfigDict

from trainforge.config.availability import Available
from trainforge.config.messages import Name
from trainforge.config.session import SessionEnd
from trainforge.config.settings_load import (
    FileSettings,
    comma_list,
    comma_mapping,
    config_home,
    data_home,
    http_url,
    seconds,
    size,
    write_private,
)

Seconds = Annotated[float, BeforeValidator(seconds), Field(gt=0)]
Bytes = Annotated[int, BeforeValidator(size), Field(ge=0)]
Port = Annotated[int, Field(ge=0, le=65535)]
Folder = Annotated[Path, AfterValidator(lambda path: path.expanduser().absolute())]
Url = Annotated[str, AfterValidator(http_url)]
TextList = Annotated[list[str], NoDecode, BeforeValidator(comma_list)]
FolderList = Annotated[list[Folder], NoDecode, BeforeValidator(comma_list)]
EnvironmentMode = Literal["auto", "inherit", "isolated"]


def host_name() -> str:
    """The machine's name in the form that an executor's name must have."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", socket.gethostname()).strip("-._")[:63]
    return name or f"machine-{os.getuid()}"


class WatchedRepository(BaseModel):
    """A repository that the sender polls, by URL or local path. `name` defaults to its last part."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: Annotated[str, Field(min_length=1)]
    name: Name | None = None

    @model_validator(mode="before")
    @classmethod
    def _plain_url(cls, value: Any) -> Any:
        return {"url": value} if isinstance(value, str) else value


# Not pull_request_target, issue_comment and the like: they run for people who may not push.
WorkflowEvent = Literal[
    "push", "workflow_dispatch", "repository_dispatch", "schedule", "release", "pull_request"
]
Occasion = Literal["completed", "failed", "cancelled", "recovered", "waiting"]


class NotifyTarget(BaseModel):
    """Whom to tell, as a URL that Apprise knows; `always` without a manifest naming it, too."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: SecretStr
    on: list[Occasion] = ["completed", "failed", "recovered", "waiting"]
    always: bool = False

    @model_validator(mode="before")
    @classmethod
    def _plain_url(cls, value: Any) -> Any:
        return {"url": value} if isinstance(value, str) else value


class WorkflowAccess(BaseModel):
    """What GitHub Actions workflows of a repository may ask for, by the token that GitHub gives each run.

    `repository_id` is GitHub's number of it: a name can come to be somebody else's. None: as it is connected.
    `refs` are branches and tags whose runs may train, `*` for any part; `events` what may have begun a run.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    repository_id: Annotated[int, Field(gt=0, lt=2**63)] | None = None
    refs: list[str] = ["*"]
    events: list[WorkflowEvent] = ["push", "workflow_dispatch", "schedule", "pull_request"]


class SenderSettings(FileSettings):
    """What a sender needs to know. A port of 0 takes any free one."""

    model_config = SettingsConfigDict(env_prefix="TRAINFORGE_SENDER_")

    data_dir: Folder = Field(default_factory=lambda: data_home() / "sender")
    host: str = "127.0.0.1"
    port: Port = 8420
    public_url: Url = ""
    database_url: Annotated[str, Field(repr=False)] = ""  # empty: SQLite in data_dir
    poll_interval: Seconds = 60.0
    lease_ttl: Seconds = 90.0
    lost_after: Seconds = 600.0
    heartbeat_every: Seconds = 10.0
    disk_low: Bytes = 256 * 2**20  # with less free space nothing new is taken on; 0: never mind
    max_bundle: Bytes = 2**30  # of a ZIP that somebody uploads
    pushes_per_minute: Annotated[int, Field(ge=0)] = 6  # of results, to a repository at GitHub; 0: no limit
    repositories: Annotated[list[WatchedRepository], NoDecode, BeforeValidator(comma_list)] = Field(
        default=[]
    )
    webhook_secret: SecretStr = SecretStr("")
    previous_webhook_secret: SecretStr = SecretStr("")  # accepted too while the secret is being changed
    git_username: str = ""
    git_token: SecretStr = SecretStr("")
    allow_private_endpoints: bool = False  # executors that are pushed to may be on private networks
    key_overlap: Seconds = 7 * 86_400.0  # for how long the old key counts after `sender rotate-key`
    notify: dict[str, NotifyTarget] = Field(default={})  # names that manifests may tell of their jobs
    notify_waiting_after: Seconds = 1800.0  # for how long a job waits before somebody is told
    workflows: dict[str, WorkflowAccess] = Field(default={})  # by the repository's name here
    oidc_issuer: Url = "https://token.actions.githubusercontent.com"  # who says which workflow run it is
    triggers_per_hour: Annotated[int, Field(ge=1)] = 60  # pushes of one repository that lead to jobs

    @property
    def webhook_secrets(self) -> list[str]:
        """The secrets that webhooks may be signed with, the current one first."""
        both = (self.webhook_secret, self.previous_webhook_secret)
        return [secret.get_secret_value() for secret in both if secret.get_secret_value()]

    @model_validator(mode="after")
    def _lease_outlives_heartbeats(self) -> Self:
        if self.lease_ttl < 2 * self.heartbeat_every:
            raise ValueError(
                "lease_ttl must be at least twice heartbeat_every, or one late heartbeat ends a lease"
            )
        return self


class ExecutorSettings(FileSettings):
    """What an executor needs to know. A port of 0 takes any free one."""

    model_config = SettingsConfigDict(env_prefix="TRAINFORGE_EXECUTOR_")

    data_dir: Folder = Field(default_factory=lambda: data_home() / "executor")
    name: Name = Field(default_factory=host_name)
    sender_url: Url = ""
    connection: Literal["pull", "push"] = "pull"
    host: str = "127.0.0.1"
    port: Port = 0
    public_url: Url = ""  # where push reaches it, when neither host and port nor the tunnel say so
    tunnel: Literal["none", "ngrok", "command"] = "none"
    tunnel_command: str = ""  # prints the public URL; {port} stands for the port
    ngrok_token: SecretStr = SecretStr("")
    max_jobs: Annotated[int, Field(ge=1, le=64)] = 1
    max_memory_gb: Annotated[float, Field(gt=0)] | None = None  # of 10^9 bytes; what jobs may use of it
    max_cpu_percent: Annotated[float, Field(gt=0, le=100)] | None = None  # of all cores
    poll_interval: Seconds = 1.0  # before asking again after a claim that failed
    heartbeat_every: Seconds = 10.0
    disk_low: Bytes = 2**30  # with less free space it takes no new jobs; 0: never mind
    disk_budget_gb: Annotated[float, Field(gt=0)] | None = None  # of 10^9 bytes; for all of its files
    max_repository: Annotated[Bytes, Field(gt=0)] = 20 * 2**30  # what one fetch of a repository may bring
    labels: Annotated[dict[str, str], NoDecode, BeforeValidator(comma_mapping)] = Field(default={})
    session_ends: SessionEnd = ""  # 9h from its start, or 2026-11-21T18:00: when the machine will be gone
    available: Available = ""  # such as Mon-Fri 18:00-08:00, Sat-Sun; empty: always
    accept: Literal["auto", "ask"] = "auto"  # `ask`: the machine's owner says yes to each job
    accept_timeout: Annotated[Seconds, Field(le=3000)] = 120.0  # without an answer by then it is refused
    accept_here: bool = False  # who is at the sender may not answer
    policy_file: Folder | None = None  # what jobs may do here; default: policy.yaml beside executor.yaml
    isolation: Literal["auto", "process", "sandbox", "container"] = "auto"  # `auto`: the strictest that works
    container_engine: Literal["auto", "docker", "podman", "none"] = "auto"  # `auto`: the first that works
    container_image: str = ""  # for jobs that have to be in a container and name none
    job_user: Literal["auto", "none"] = "auto"  # whether root gives each job a user of its own
    shared_folders: FolderList = Field(default=[])  # what jobs in a sandbox may read besides
    max_processes: Annotated[int, Field(ge=16)] = 4096  # and threads, of one job
    max_disk_gb: Annotated[float, Field(gt=0)] | None = None  # of 10^9 bytes; what one job may leave on disk
    max_log: Annotated[Bytes, Field(gt=0)] = 200 * 2**20  # what one node of a job may print
    debug: bool = False  # log every detail
    environment_mode: EnvironmentMode = "auto"  # `auto` leaves it to the manifest
    advertise: TextList = Field(
        default=[]
    )  # addresses for other nodes to meet this one at; empty: all of its own
    git_username: str = ""
    git_token: SecretStr = SecretStr("")
    endpoint_file: Folder | None = None  # default: config.json in data_dir
    endpoint_repository: str = ""  # whose branch trainforge-executors gets the endpoint file

    @model_validator(mode="after")
    def _tunnel_is_complete(self) -> Self:
        if self.tunnel == "command" and not self.tunnel_command.strip():
            raise ValueError(
                "tunnel: command needs tunnel_command, such as ssh -R 80:localhost:{port} serveo.net"
            )
        if self.tunnel_command and self.tunnel != "command":
            raise ValueError(f"tunnel_command goes with tunnel: command, but tunnel is {self.tunnel}")
        if self.tunnel != "none" and self.public_url:
            raise ValueError("public_url and a tunnel exclude each other: the tunnel says its own URL")
        return self


class ClientSettings(FileSettings):
    """Which sender the command line speaks to, and as whom. An empty `sender_url`: none is known yet."""

    model_config = SettingsConfigDict(env_prefix="TRAINFORGE_")

    sender_url: Url = ""
    token: SecretStr = SecretStr("")


def client_path() -> Path:
    return config_home() / "client.json"


def load_client(path: Path | None = None) -> ClientSettings:
    """What `save_client` stored, overridden by TRAINFORGE_SENDER_URL and TRAINFORGE_TOKEN.

    Raises:
        SettingsError: the file or a variable has another form.
    """
    path = path or client_path()
    return ClientSettings.load(path if path.exists() else None)


def save_client(settings: ClientSettings, path: Path | None = None) -> Path:
    """Keep the settings for later commands, readable by their owner alone."""
    path = path or client_path()
    write_private(path, {"sender_url": settings.sender_url, "token": settings.token.get_secret_value()})
    return path
