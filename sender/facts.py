"""What is known of one job at one moment: the input of the life cycle, built by the store."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from trainforge.config.errors import Conflict
from trainforge.config.gates import Verdict
from trainforge.config.messages import (
    Ended,
    FencingToken,
    Finished,
    JobState,
    Outcome,
    Published,
    Reached,
    Ready,
)
from trainforge.config.reasons import kind_of

LIVE = ("offered", "accepted", "running")  # the states of an attempt that still counts
FIRST_REST_S, LONGEST_REST_S = 2.0, 600.0


@dataclass(frozen=True)
class NodeFacts:
    """One node of the newest attempt. `ordered`, `accepted` and `closed` hold kinds of orders."""

    rank: int
    executor: str
    name: str
    created: float
    lease_until: float
    revoked: bool = False
    ordered: frozenset[str] = frozenset()
    accepted: frozenset[str] = frozenset()
    refused: dict[str, str] = field(default_factory=dict)
    heard: bool = False  # something of its journal has arrived
    ready: Ready | None = None
    reached: Reached | None = None
    begun: bool = False
    ended: Ended | None = None
    ended_at: float | None = None
    published: Published | None = None
    finished: Finished | None = None

    @property
    def taken(self) -> bool:
        return self.heard or "run" in self.accepted


@dataclass(frozen=True)
class AttemptFacts:
    """`code` and `reason`: a failure that no node's own end tells, such as an executor that was lost."""

    number: int
    state: str
    created: float
    nodes: tuple[NodeFacts, ...]
    code: str = ""
    reason: str = ""
    ended: float | None = None

    @property
    def live(self) -> bool:
        return self.state in LIVE


def may_speak(token: FencingToken, own: FencingToken, state: str, *, newest: bool) -> None:
    """Whether what is said with a token about an attempt counts, and renews its lease.

    The token must be the attempt's own, and the attempt the job's newest and not given up. One that has
    ended well may still say what was on its way.

    Raises:
        Conflict: it does not.
    """
    if token != own:
        raise Conflict("the fencing token is not this attempt's", hint="stop and forget this node")
    if state in {"lost", "superseded"} or (state not in LIVE and not newest):
        raise Conflict("this attempt was given up", hint="stop and forget this node")


@dataclass(frozen=True)
class Stop:
    code: str
    reason: str


@dataclass(frozen=True)
class Result:
    """A result that was seen on the remote, with what it says of the manifest's gates."""

    outcome: Outcome
    commit: str
    code: str = ""
    reason: str = ""
    gates: tuple[Verdict, ...] = ()


@dataclass(frozen=True)
class Company:
    """The other jobs that a job has to mind, as a person calls them.

    Of its matrix: those that machines have, and the first that failed. Of its concurrency group: older
    ones that have not ended, and the newest that wants older ones stopped.
    """

    placed: tuple[str, ...] = ()
    failed: str = ""
    group: str = ""
    older: tuple[str, ...] = ()
    newer: str = ""


@dataclass(frozen=True)
class Policy:
    """What settings and manifest say about waiting and trying again."""

    lost_after: float = 600.0
    offer_timeout: float = 90.0
    grace_s: float = 30.0
    setup_timeout: float = 3600.0
    queue_timeout: float | None = None
    retry_max: int = 1
    retry_on: frozenset[str] = frozenset({"lost", "connection_lost"})
    max_parallel: int | None = None
    fail_fast: bool = True

    def may_retry(self, code: str, tried: int) -> bool:
        return kind_of(code) in {"now", "later"} and code in self.retry_on and tried < self.retry_max

    @staticmethod
    def rest(job: str, tried: int) -> float:
        """Seconds before the next try: twice as many each time, and a jitter drawn by the job's id."""
        drawn = int.from_bytes(hashlib.sha256(f"{job}:{tried}".encode()).digest()[:4]) / 2**32
        return min(FIRST_REST_S * 2.0 ** min(max(tried - 1, 0), 30), LONGEST_REST_S) * (0.75 + drawn / 2)


@dataclass(frozen=True)
class JobFacts:
    """`tried` counts earlier attempts that failed or were lost; `manifest_problem` has a line per fault."""

    id: str
    state: JobState
    version: int
    created: float
    manifest_problem: str = ""
    stop: Stop | None = None
    ending: Outcome | None = None
    code: str = ""
    reason: str = ""
    attempt: AttemptFacts | None = None
    tried: int = 0
    publish_blocked: str | None = None
    result: Result | None = None
    queued: float | None = None  # since when it waits for machines alone
    refused: dict[str, str] = field(default_factory=dict)  # executors that will not have it, and their words
    company: Company = Company()
