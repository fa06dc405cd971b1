"""What requests to the API may say after the `?`: the models that they are checked by and described with."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from trainforge.config.messages import JobState
from trainforge.sender.levels import LEVELS
from trainforge.sender.planned import Requirements
from trainforge.sender.store_listing import Wanted
from trainforge.sender.store_output import LogFilter

MOST = 2**31 - 1
Whole = Annotated[int, Field(ge=0, le=MOST)]
Cursor = Annotated[int, Field(ge=0, lt=2**63, description="what comes after this cursor")]
Wait = Annotated[
    float,
    Field(ge=0, le=3600, allow_inf_nan=False, description="seconds to wait for news; 30 at most are waited"),
]
Limit = Annotated[Whole, Field(description="how many at most; 5000 are the most that is given")]
Short = Annotated[str, Field(max_length=2048)]
LEVEL_LIST = f"^$|^(?:{'|'.join(LEVELS)})(?:,(?:{'|'.join(LEVELS)}))*$"


class JobsQuery(BaseModel):
    state: JobState | Literal["active", ""] = Field(default="", description="`active`: all that go on")
    project: Short = ""
    matrix: Short = ""
    limit: Limit = 50
    before: Short = Field(default="", description="the id of the last job of the page before")


class LogsQuery(BaseModel):
    after: Cursor = 0
    before: Cursor | None = Field(default=None, description="the newest lines before this cursor instead")
    rank: int | None = Field(default=None, ge=-1, le=MOST, description="-1: what the nodes say themselves")
    level: str = Field(default="", pattern=LEVEL_LIST, description="such as `warning,error`; empty is all")
    q: str = Field(default="", max_length=200, description="a text in the line, whatever the case")
    limit: Limit = 1000
    wait: Wait = 0.0
    page: Literal["", "1"] = Field(
        default="",
        description="as a page shows them: without terminal codes, and as events the newest alone",
    )

    @property
    def wanted(self) -> LogFilter:
        ranks = () if self.rank is None else (self.rank,)
        return LogFilter(ranks, tuple(filter(None, self.level.split(","))), self.q)


class MetricsQuery(BaseModel):
    after: Cursor = 0


class EventsQuery(BaseModel):
    repository: Short = ""
    limit: Limit = 50


class ChangesQuery(BaseModel):
    page: Literal["jobs", "executors", "events", "queue"]
    state: JobState | Literal["active", ""] = ""
    project: Short = ""
    repository: Short = ""
    branch: Short = ""
    author: Short = ""
    source: Short = ""
    q: Short = Field(default="", description="words that the jobs have somewhere")
    decision: Literal["job", "ignored", "refused", ""] = Field(default="", description="of events")

    @property
    def wanted(self) -> Wanted:
        return Wanted(**self.model_dump(exclude={"page", "decision"}))


class RepositoryQuery(BaseModel):
    repository: Short = ""


class AuditQuery(BaseModel):
    before: Cursor = Field(default=0, description="entries older than this one; 0 for the newest")
    limit: Limit = 100


class AuditVerifyQuery(BaseModel):
    head: Short = Field(default="", description="a head that was printed before, such as 42:9f3c")


class WaitQuery(BaseModel):
    wait: Wait = 0.0


class OutputQuery(BaseModel):
    after: Cursor = 0


class SuggestQuery(BaseModel):
    num_machines: Annotated[int, Field(ge=1, le=1024)] | None = None
    gpus_per_machine: Annotated[int, Field(ge=0, le=64)] | None = None
    min_gpu_memory: Short = Field(default="", description="bytes, or text with a unit such as 24GB")

    def requirements(self, num_machines: int, gpus_per_machine: int) -> Requirements:
        """What was asked for, these being the numbers where nothing was said."""
        memory = self.min_gpu_memory
        return Requirements(
            num_machines=self.num_machines or num_machines,
            gpus_per_machine=gpus_per_machine if self.gpus_per_machine is None else self.gpus_per_machine,
            min_gpu_memory=int(memory) if memory.isascii() and memory.isdigit() else memory or None,
        )
