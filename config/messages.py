"""The wire messages between sender and executors, and the life they tell.

One node's life, as messages (S = sender, E = the node's executor):

    S -> E  run         prepare this commit as rank r of n             (order, signed)
    E -> S  phase       checkout, environment, data                     (journal)
    E -> S  ready       prepared, and where it can be reached           (journal)
    S -> E  probe       can you reach rank 0, and the ranks between?    (order, ranks > 0)
    E -> S  reached     these addresses of rank 0 answered, those not   (journal)
    S -> E  launch      train now, rendezvous at this address           (order, all ranks)
    E -> S  started, log, metric, usage ...                             (journal)
    E -> S  ended       training ended, with exit code and reason       (journal)
    S -> E  publish     all ranks have ended: commit this outcome       (order, rank 0)
    E -> S  published   the result is on the remote at this commit      (journal)
    S -> E  forget      everything has been read, clean up              (order, all ranks)

At any time S may send `stop`: E terminates training (TERM, grace, KILL), reports `ended` and waits for
`publish` or `forget`. A job of one node has no barrier: E launches by itself after `ready`.

Orders are compact JWS signed by the sender (`trust.py`), delivered by POST to the executor's endpoint
(push) or in the answer to its claim (pull), and repeated until accepted; the executor stores an order
before it accepts it, and accepting the same one twice is harmless. The journal is the executor's
append-only record of a node, numbered from 1 without gaps; the sender acknowledges the highest number
it has stored, so either side can restart at any point and nothing is missing or double.

A lease ends `lease_ttl` seconds after the last heartbeat or journal batch that named its node. Past it
the executor may train on but may not publish; once the sender has waited `lost_after` as well it gives
the node's attempt up, and everything said with the old fencing token is refused with 409.
"""

from __future__ import annotations

import sys
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints

from trainforge.config.availability import Available
from trainforge.config.isolation import Isolation
from trainforge.config.policy import Policy

JOB_ID_LENGTH = 26
JobId = Annotated[str, StringConstraints(pattern=r"^[a-z2-7]{26}$")]
ExecutorId = Annotated[str, StringConstraints(pattern=r"^x[a-z2-7]{16}$")]
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
CommitId = Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{40}|[0-9a-f]{64})$")]


def _storable(value: Any) -> Any:
    """Trainings print NUL, and PostgreSQL takes none."""
    return value.replace("\0", "\N{REPLACEMENT CHARACTER}") if isinstance(value, str) else value


Text = Annotated[str, BeforeValidator(_storable), StringConstraints(max_length=8192)]


# What databases, calendars and arithmetic take, so that nobody's numbers get in the way of others' jobs.
Whole = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Small = Annotated[int, Field(ge=-(2**31), lt=2**31)]
Percent = Annotated[float, Field(ge=0, le=1e6)]  # of processes on many cores more than 100
Moment = Annotated[float, Field(ge=0, le=253_402_300_799)]  # unix seconds, to the end of the year 9999


def _finite(values: Any) -> Any:
    """JSON has no NaN and no infinities, and no float is larger than this: such numbers travel as null."""
    if not isinstance(values, dict):
        return values
    numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
    return values | {name: None for name, value in numbers.items() if not abs(value) <= sys.float_info.max}


MetricValues = Annotated[dict[str, float | int | str | bool | None], BeforeValidator(_finite)]

NodePhase = Literal[
    "checkout", "environment", "data", "ready", "training", "collecting", "publishing", "finished"
]
NodeState = Literal["pending", "running", "completed", "failed"]
JobState = Literal["pending", "planning", "dispatching", "running", "completed", "failed", "cancelled"]
Outcome = Literal["completed", "failed", "cancelled"]
OWNER_ASKED = "waiting for the machine's owner to accept"  # the detail of a node that may be answered
RESUME = "resume"  # the source of a job that goes on from the newest checkpoint of the one it names
PREPARE = "prepare"  # the source of a job that is prepared and not trained
OUTCOMES: frozenset[str] = frozenset({"completed", "failed", "cancelled"})


class Message(BaseModel):
    """Base of everything that crosses the wire: unknown fields, wrong types and NaN are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


# --- identities -------------------------------------------------------------------------------------


class FencingToken(Message):
    """Who may speak for a node: compared as (incarnation, number), higher wins."""

    incarnation: Whole = Field(ge=0)
    number: Whole = Field(ge=0)


class NodeKey(Message):
    """One executor's part in one attempt of a job."""

    job: JobId
    attempt: int = Field(ge=1, le=10_000)
    rank: int = Field(ge=0, lt=4096)

    def __str__(self) -> str:
        return f"{self.job}.{self.attempt}.{self.rank}"


# --- what an executor is ------------------------------------------------------------------------------


class Gpu(Message):
    uuid: str
    model: str
    memory_bytes: Whole
    driver: str = ""
    cuda: str = ""  # the newest version that the driver supports
    problem: Text = ""  # why no job is to have it


class Capabilities(Message):
    """What a machine has; memory and disk in bytes. Sizes are totals, `Load` has what is in use."""

    hostname: str
    host_id: str = ""  # same for all executors of one machine
    system: str = ""
    cpu_count: Whole = Field(ge=1)
    memory_bytes: Whole = Field(ge=0)
    disk_free_bytes: Whole = Field(ge=0)
    gpus: list[Gpu] = []
    python: str = ""
    torch: str = ""
    accelerate: str = ""
    trainforge: str = ""
    labels: dict[str, str] = {}
    max_jobs: Whole = Field(default=1, ge=1)
    available: Available = ""  # when it takes jobs, in its own time; empty is always
    session_ends: Moment = 0.0  # when it is known to go away; 0: it is not
    utc_offset: float = Field(default=0.0, ge=-86_400, le=86_400)  # seconds that its time is ahead of UTC
    policy: Policy | None = None  # what its owner lets jobs do there
    isolation: Isolation | None = None  # how far it keeps a job apart; None: it does not say
    installers: list[str] = []  # of uv, pip and conda, those that are there
    closed: Text = ""  # why it takes no new jobs at the moment, such as a disk that is low


class Load(Message):
    cpu_percent: Percent = 0.0
    memory_bytes: Whole = 0
    disk_free_bytes: Whole = 0
    gpu_percent: list[Percent] = []
    gpu_memory_bytes: list[Whole] = []
    gpu_others_bytes: list[Whole] = []  # the same, but 0 where a job of this executor has the GPU


# --- orders: sender -> executor, signed ---------------------------------------------------------------


class Repository(Message):
    """`id` never changes and job ids are made from it; `url` is where the executor clones."""

    id: str
    name: str
    url: str


class RunOrder(Message):
    """Prepare (and, alone, train) one node of a job."""

    kind: Literal["run"] = "run"
    repository: Repository
    ref: str
    commit: CommitId
    manifest_path: str
    manifest_blob: CommitId
    project: str
    nodes: Whole = Field(ge=1)
    processes_per_node: Whole = Field(ge=1)
    gpus: list[str] = []  # uuids given to this node; empty is CPU training
    params: dict[str, Any] = {}  # after adjustment to the world size
    overrides: dict[str, Any] = {}  # of manifest keys, dotted, such as {"resources.nodes": 2}
    results_branch: str
    lease_ttl: float = Field(gt=0)
    session_ends: float = 0.0  # when the first of the job's machines is known to go away; 0: none is
    prepare: bool = False  # stop once prepared: environment and data are there for a later job
    resume_of: JobId | Literal[""] = ""  # the job whose newest checkpoint this one begins with


class Peer(Message):
    """Where another rank listens; the listener answers with `nonce`."""

    addresses: list[str]
    port: int = Field(ge=1, le=65535)
    nonce: str


class ProbeOrder(Peer):
    """Try each address of rank 0, and of `peers`: each pair of nodes is tried by its higher rank."""

    kind: Literal["probe"] = "probe"
    peers: dict[Whole, Peer] = {}


class LaunchOrder(Message):
    kind: Literal["launch"] = "launch"
    master_address: str
    master_port: int = Field(ge=1, le=65535)
    resume: str = ""  # the newest checkpoint that every node has


class StopOrder(Message):
    """Stop training and preparing. `code` is one of `reasons.REASONS`."""

    kind: Literal["stop"] = "stop"
    code: str
    reason: str
    grace_s: float = Field(default=30.0, ge=0, le=3600)


class PublishOrder(Message):
    kind: Literal["publish"] = "publish"
    outcome: Outcome
    code: str = ""
    reason: str = ""


class AnswerOrder(Message):
    """What somebody at the sender says to a node that asks for its machine's owner (`OWNER_ASKED`)."""

    kind: Literal["answer"] = "answer"
    accept: bool


class ForgetOrder(Message):
    kind: Literal["forget"] = "forget"


OrderBody = Annotated[
    RunOrder | ProbeOrder | LaunchOrder | StopOrder | PublishOrder | AnswerOrder | ForgetOrder,
    Field(discriminator="kind"),
]


class Order(Message):
    """What `trust.sign_order` signs. `id` is stable across repetitions of the same order."""

    id: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]{1,128}$")]
    node: NodeKey
    token: FencingToken
    body: OrderBody


# --- the journal: executor -> sender ------------------------------------------------------------------

RecordKind = Literal[
    "phase", "ready", "reached", "started", "log", "metric", "usage", "ended", "publish_waiting",
    "published", "finished", "note",
]  # fmt: skip


class Record(Message):
    """One journal entry. `data` has the form of the model named after `kind` below."""

    n: Whole = Field(ge=1)
    time: Moment  # on the executor's clock
    kind: RecordKind
    data: dict[str, Any]


class Phase(Message):
    phase: NodePhase
    detail: Text = ""


class Ready(Message):
    """`addresses` and `port` are where this node listens; empty where it trains alone."""

    addresses: list[str] = []
    port: int = Field(default=0, ge=0, le=65535)
    nonce: str = ""
    checkpoints: list[str] = []  # what this node can go on from, the newest first


class Reached(Message):
    """`reached` maps an address of rank 0 that answered to this node's own source address there.

    `unmet` has the peers of which no address answered, and why not.
    """

    reached: dict[str, str] = {}
    failures: dict[str, str] = {}
    unmet: dict[Whole, dict[str, str]] = {}


class Started(Message):
    argv: list[str]
    processes: Whole
    pid: Whole


class Log(Message):
    """A chunk of whole lines of one rank's output; `rank` is the global rank, -1 the node's own log."""

    rank: Small = Field(ge=-1)
    stream: Literal["stdout", "stderr", "setup"] = "stdout"
    text: Annotated[str, BeforeValidator(_storable), StringConstraints(max_length=262_144)]


class Metric(Message):
    """Numbers reported at one moment; null stands for NaN and infinities."""

    rank: Small = Field(default=0, ge=0)
    values: MetricValues
    step: Whole | None = None
    epoch: float | None = None


class Usage(Message):
    cpu_percent: Percent = 0.0
    memory_bytes: Whole = 0
    gpu_percent: list[Percent] = []
    gpu_memory_bytes: list[Whole] = []


class GpuUse(Message):
    """Of one GPU during a training; percent of its time, and of its memory all that was in use."""

    uuid: str
    mean_percent: Percent
    peak_percent: Percent
    mean_memory_bytes: Whole
    peak_memory_bytes: Whole


class Ended(Message):
    """Training, or preparing for it, has ended at this node. An empty `code` is success."""

    exit_code: Small | None = None
    code: Text = ""
    reason: Text = ""
    tail: Text = ""  # the last lines that explain a failure
    world_size: Whole | None = None  # as the processes reported it, where they did
    peak_memory_bytes: Whole | None = None  # of its processes together
    cpu_s: float | None = None
    peak_disk_bytes: Whole | None = None  # of its folders
    log_bytes: Whole | None = None  # of all that was printed and reported
    gpus: list[GpuUse] = Field(default=[], max_length=64)


class PublishWaiting(Message):
    reason: Text
    next_try: float


class Published(Message):
    branch: str
    path: str
    commit: CommitId
    outcome: Outcome


class Finished(Message):
    state: Literal["completed", "failed"]
    code: Text = ""
    reason: Text = ""


class Note(Message):
    level: Literal["info", "warning", "error"] = "info"
    text: Text


class JournalBatch(Message):
    """Records after `after`, in order and without gaps; at most 1000 and 4 MiB of JSON."""

    token: FencingToken
    after: Whole = Field(ge=0)
    records: list[Record] = Field(max_length=1000)


class JournalAck(Message):
    """The sender has durably stored everything up to `acknowledged`."""

    acknowledged: Whole


# --- requests: executor -> sender ---------------------------------------------------------------------


class JoinRequest(Message):
    """Signed by the key that it introduces (proof header), authorised by the one-time token."""

    token: str
    name: Name
    public_key: dict[str, str]  # OKP JWK
    capabilities: Capabilities


class JoinReply(Message):
    """`pending`: it gets no work until a person has compared its fingerprint and approved it."""

    executor: ExecutorId
    sender: str
    sender_key: dict[str, str]
    lease_ttl: float
    pending: bool = False


class Endpoint(Message):
    """Where an executor can be reached from outside: what config.json holds."""

    name: Name
    public_url: str
    ip: str
    port: int = Field(ge=0, le=65535)
    timestamp: str  # ISO 8601, UTC
    capabilities: Capabilities
    public_key: dict[str, str]
    executor: str = ""


class Heartbeat(Message):
    """Every `heartbeat_every` seconds: still here, these nodes are mine. `endpoint` empty: pull only."""

    capabilities: Capabilities
    load: Load
    nodes: list[NodeKey] = []
    endpoint: str = ""
    endpoint_seq: Whole = 0
    draining: bool = False  # it is being shut down; its last words, unless jobs are stopped first
    sender_key: str = ""  # the id of the newest key of the sender that it trusts


class HeartbeatReply(Message):
    """`unknown` are nodes the sender no longer counts as this executor's: stop and forget them.

    `sender_key` is the id of the sender's key. Where it is not the one that the executor knows,
    `introduction` is it, signed by the one before; without one it must join again.
    """

    unknown: list[NodeKey] = []
    missing: list[NodeKey] = []  # whose published results are not on the remote any more
    lease_ttl: float
    notices: list[str] = []  # what the machine's owner should be told
    pending: bool = False
    sender_key: str = ""
    introduction: str = ""


class KeyChange(Message):
    """An executor's next key, in a request signed by the old one; `proof` is the new one's own word."""

    public_key: dict[str, str]
    proof: str


class KeyChanged(Message):
    """The old key is good until then, too."""

    until: float


class Left(Message):
    """The sender has forgotten the executor that asked for it."""

    executor: ExecutorId


class Claim(Message):
    """Long poll. `accepted` are the ids of orders stored since the last claim."""

    challenge: Annotated[str, StringConstraints(min_length=22, max_length=64)]
    wait_s: float = Field(default=20.0, ge=0, le=30)
    accepted: list[str] = Field(default=[], max_length=1000)
    refused: dict[str, Text] = Field(default={}, max_length=1000)  # orders that it will not take, and why


class ClaimReply(Message):
    orders: list[str] = []  # compact JWS, each bound to the claim's challenge


class SecretsAsk(Message):
    """The values of secrets that the node's manifest names, sealed to a key made for this request."""

    token: FencingToken
    names: Annotated[list[Annotated[str, StringConstraints(max_length=128)]], Field(max_length=100)]
    key: dict[str, str]  # public X25519 JWK


class SealedSecrets(Message):
    """Opens with `sealing.SealingKey.open` to a JWS of the sender (`trust.verify`) with their values."""

    sealed: str


class PushTurn(Message):
    """Seconds until the asking executor may push results to the node's repository; 0: now, once."""

    wait_s: Annotated[float, Field(ge=0)]


class GitCredential(Message):
    """Short-lived, for this repository only. An empty password: use the executor's own access."""

    username: str = ""
    password: str = ""
    expires: float = 0.0
