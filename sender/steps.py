"""What the life cycle can ask for: the store applies most, the reconciler the rest."""

from __future__ import annotations

from dataclasses import dataclass

from trainforge.config.messages import (
    ForgetOrder,
    JobState,
    LaunchOrder,
    Outcome,
    ProbeOrder,
    PublishOrder,
    StopOrder,
)


@dataclass(frozen=True)
class SetState:
    state: JobState


@dataclass(frozen=True)
class Queue:
    """From now on the job waits for machines alone."""


@dataclass(frozen=True)
class Wait:
    """Show why the job cannot be placed yet; `held`: other jobs stand in the way, so no time limit runs."""

    reasons: dict[str, str]
    held: bool = False


@dataclass(frozen=True)
class RequestStop:
    """Ask for the job's end, as a person could."""

    code: str
    reason: str


@dataclass(frozen=True)
class Place:
    """Plan the job over the executors there are, and offer it to them."""


@dataclass(frozen=True)
class Give:
    """Put an order into a node's outbox."""

    rank: int
    body: ProbeOrder | LaunchOrder | StopOrder | PublishOrder | ForgetOrder


@dataclass(frozen=True)
class MarkAttempt:
    """Move the newest attempt; a state that is not live closes it and withdraws what was not accepted."""

    state: str
    code: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Blame:
    """Note on the newest attempt why it cannot succeed, so that it stays true whatever is heard later."""

    code: str
    reason: str


@dataclass(frozen=True)
class Decide:
    """How the job ends; it becomes true when its result is on the remote."""

    outcome: Outcome
    code: str = ""
    reason: str = ""


@dataclass(frozen=True)
class PublishHere:
    """Have the sender itself commit the result."""


@dataclass(frozen=True)
class LookAtRemote:
    """An executor says it has published: see whether that is so."""

    commit: str


@dataclass(frozen=True)
class FindResult:
    """Nobody can publish what the training wrote: if the remote has no result, blame this on the attempt."""

    code: str
    reason: str


@dataclass(frozen=True)
class Reopen:
    """Take back the end that was decided: the job is tried again."""


@dataclass(frozen=True)
class Block:
    """The remote refuses the result for good."""

    words: str


@dataclass(frozen=True)
class Finish:
    state: Outcome
    code: str = ""
    reason: str = ""


RemoteStep = PublishHere | LookAtRemote | FindResult
Step = (
    SetState
    | Queue
    | Wait
    | RequestStop
    | Place
    | Give
    | MarkAttempt
    | Blame
    | Decide
    | Reopen
    | RemoteStep
    | Block
    | Finish
)
