"""The life of a job, pure: from what is known now to what is to be done next.

`next_steps` looks at facts, never at events, so it does not matter which message came when, twice or
after a restart: the same facts give the same steps, and a step whose effect is already a fact is not
given again. The reconciler applies the steps and asks once more until there are none.
"""

from __future__ import annotations

from collections.abc import Sequence

from trainforge.config.messages import (
    OUTCOMES,
    ForgetOrder,
    JobState,
    LaunchOrder,
    Outcome,
    Peer,
    ProbeOrder,
    PublishOrder,
    Reached,
    Ready,
    StopOrder,
)
from trainforge.config.reasons import REASONS, kind_of
from trainforge.sender import turns
from trainforge.sender.facts import AttemptFacts, JobFacts, NodeFacts, Policy
from trainforge.sender.steps import (
    Blame,
    Block,
    Decide,
    FindResult,
    Finish,
    Give,
    LookAtRemote,
    MarkAttempt,
    Place,
    PublishHere,
    Queue,
    RemoteStep,
    Reopen,
    RequestStop,
    SetState,
    Step,
    Wait,
)

__all__ = [
    "LEGAL",
    "OFFER_EXPIRED",
    "REFUSED",
    "Blame",
    "Block",
    "Decide",
    "FindResult",
    "Finish",
    "Give",
    "LookAtRemote",
    "MarkAttempt",
    "Place",
    "PublishHere",
    "Queue",
    "RemoteStep",
    "Reopen",
    "RequestStop",
    "SetState",
    "Step",
    "Wait",
    "is_legal",
    "next_steps",
]

_ENDINGS: tuple[JobState, ...] = ("completed", "failed", "cancelled")

# Forward by its own steps; to an ending from anywhere, because a result on the remote is the last word,
# also when this database has forgotten how it came about. Nothing leads out of an ending.
LEGAL: dict[JobState, frozenset[JobState]] = {
    "pending": frozenset({"planning", *_ENDINGS}),
    "planning": frozenset({"dispatching", *_ENDINGS}),
    "dispatching": frozenset({"running", *_ENDINGS}),
    "running": frozenset({"dispatching", *_ENDINGS}),
    "completed": frozenset(),
    "failed": frozenset(),
    "cancelled": frozenset(),
}


# The code of an attempt whose offer was not taken in time: it is planned anew and costs no retry.
OFFER_EXPIRED = "offer_expired"
REFUSED = "policy_refused"
SETUP_SLACK_S = 60.0


def is_legal(old: JobState, new: JobState) -> bool:
    return new in LEGAL[old]


# --- the decision ---------------------------------------------------------------------------------------


def next_steps(job: JobFacts, policy: Policy, now: float) -> list[Step]:  # noqa: PLR0911 - a table of cases
    if job.state in OUTCOMES:
        return []
    if job.result is not None:
        seen = job.result
        return [*_forget(job, seen.outcome), Finish(seen.outcome, seen.code, seen.reason)]
    if job.publish_blocked is not None:
        return [*_forget(job, "failed"), Finish("failed", "publish_blocked", _blocked(job))]
    if job.ending is not None:
        return _publish(job, policy, now)
    if job.stop is not None:
        return _stop(job, policy, now)
    if (asked := turns.asked_to_stop(job, policy)) is not None:
        return [RequestStop(asked.code, asked.reason)]
    if job.state == "pending":
        return [SetState("planning")]
    if job.manifest_problem:
        return [Decide("failed", "manifest_invalid", job.manifest_problem)]
    if job.attempt is None or not job.attempt.live:
        return _place(job, policy, now)
    return _drive(job, job.attempt, policy, now)


def _place(job: JobFacts, policy: Policy, now: float) -> list[Step]:
    if held := turns.held(job, policy):
        return [Wait(held, held=True)]
    if job.queued is None:
        return [Queue()]
    limit = policy.queue_timeout
    if job.tried == 0 and limit is not None and now - job.queued > limit:
        return [Decide("failed", "timeout_queue", f"no executors fitted within {limit:.0f} s")]
    if resting := turns.resting(job, policy, now):
        return [Wait(resting)]
    return [Place()]


def _stop(job: JobFacts, policy: Policy, now: float) -> list[Step]:
    """Stopping wins over everything but training that has already ended well on all nodes."""
    assert job.stop is not None  # noqa: S101 - the caller has looked
    decision = Decide("cancelled", job.stop.code or "stopped", job.stop.reason)
    attempt = job.attempt
    if attempt is None or not attempt.live:
        return [decision]
    if not attempt.code and all(node.ended is not None and not node.ended.code for node in attempt.nodes):
        return [Decide("completed")]
    # Past its lease an executor may not publish any more: no need to wait until it counts as lost.
    left = [
        node for node in attempt.nodes if _training(node) and now <= node.lease_until and not node.revoked
    ]
    if left:
        return _stop_orders(left, job.stop.code or "stopped", job.stop.reason, policy)
    return [decision]


def _drive(job: JobFacts, attempt: AttemptFacts, policy: Policy, now: float) -> list[Step]:
    failures = {
        node.rank: failure for node in attempt.nodes if (failure := _failure(node, policy, now)) is not None
    }
    if not attempt.code:
        for node in attempt.nodes:
            if node.rank in failures and node.ended is None:
                return [Blame(*failures[node.rank])]
    if attempt.code or failures:
        return _unwind(job, attempt, failures, policy)
    steps = _progress(job, attempt)
    if all(node.ended is not None for node in attempt.nodes):
        return [*steps, Decide("completed")]
    return steps + _barrier(attempt)


def _progress(job: JobFacts, attempt: AttemptFacts) -> list[Step]:
    """Moves job and attempt along as nodes take the offer and start to train."""
    steps: list[Step] = []
    if job.state == "dispatching" and any(node.taken for node in attempt.nodes):
        steps.append(SetState("running"))
    if attempt.state == "offered" and all(node.taken for node in attempt.nodes):
        steps.append(MarkAttempt("accepted"))
    if attempt.state == "accepted" and any(node.begun for node in attempt.nodes):
        steps.append(MarkAttempt("running"))
    return steps


def _barrier(attempt: AttemptFacts) -> list[Step]:
    """Probe when all are ready, launch when all have met: at one address of rank 0, and each other."""
    first, *others = attempt.nodes
    if not others or first.ready is None or any(node.ready is None for node in others):
        return []
    steps: list[Step] = [
        Give(node.rank, _probe(first.ready, others, node.rank))
        for node in others
        if "probe" not in node.ordered
    ]
    if any(node.reached is None for node in others):
        return steps
    if parted := _parted(attempt.nodes):
        return [Blame("rendezvous_unreachable", parted)]
    common = [
        address
        for address in first.ready.addresses
        if all(node.reached is not None and address in node.reached.reached for node in others)
    ]
    if not common:
        reason = f"no address of {first.name} is reached by all other nodes"
        return [Blame("rendezvous_unreachable", reason)]
    kept = [set(node.ready.checkpoints) for node in others if node.ready is not None]
    resume = next((key for key in first.ready.checkpoints if all(key in keys for keys in kept)), "")
    launch = LaunchOrder(master_address=common[0], master_port=first.ready.port, resume=resume)
    return steps + [Give(node.rank, launch) for node in attempt.nodes if "launch" not in node.ordered]


def _probe(first: Ready, others: list[NodeFacts], rank: int) -> ProbeOrder:
    """What a rank is to try: rank 0, and the ranks between it and itself."""
    peers = {
        node.rank: _peer(node.ready)
        for node in others
        if node.rank < rank and node.ready is not None and node.ready.addresses
    }
    return ProbeOrder(peers=peers, **_peer(first).model_dump())


def _peer(ready: Ready) -> Peer:
    return Peer(addresses=ready.addresses, port=ready.port, nonce=ready.nonce)


def _parted(nodes: Sequence[NodeFacts]) -> str:
    """Which machine could not reach which, at what address, and what it saw; empty when all could."""
    parts = []
    for node in nodes:
        said = node.reached or Reached()
        unmet = dict(said.unmet)
        if node.reached is not None and not said.reached:
            unmet[0] = said.failures
        for rank, failures in sorted(unmet.items()):
            words = ", ".join(f"{address}: {why}" for address, why in sorted(failures.items()))
            other = nodes[rank].name if rank < len(nodes) else f"rank {rank}"
            parts.append(f"{node.name} cannot reach {other} ({words or 'no address was offered'})")
    return "; ".join(parts)


CONSEQUENCES = frozenset({"connection_lost", "peer_failed", "stopped"})  # of another node's failure, mostly


# --- failing --------------------------------------------------------------------------------------------


def _failure(node: NodeFacts, policy: Policy, now: float) -> tuple[str, str] | None:  # noqa: PLR0911
    """Why this node cannot go on, as code and reason; None while it can."""
    if node.ended is not None:
        return (node.ended.code, node.ended.reason) if node.ended.code else None
    if node.finished is not None and node.finished.state == "failed":
        return node.finished.code or "internal", f"{node.name}: {node.finished.reason}"
    for kind, code in (("run", REFUSED), ("probe", "internal"), ("launch", "internal")):
        if kind in node.refused:
            return code, f"{node.name}: {node.refused[kind]}"
    if node.revoked:
        return "lost", f"{node.name} was removed from this sender"
    if not node.taken:
        # A restored sender may have forgotten who took it: the lease is for them to say so.
        late = now > max(node.created + policy.offer_timeout, node.lease_until)
        return (OFFER_EXPIRED, f"{node.name} did not take the offer") if late else None
    if now > node.lease_until + policy.lost_after:
        return "lost", f"{node.name} was not heard of any more"
    # The executor keeps the limit itself; this is for one that hangs.
    begun_by = node.created + policy.offer_timeout
    if node.ready is None and not node.begun and now > begun_by + policy.setup_timeout + SETUP_SLACK_S:
        return "timeout_setup", f"{node.name} was not ready within {policy.setup_timeout:.0f} s"
    return None


def _training(node: NodeFacts) -> bool:
    return node.taken and node.ended is None and node.finished is None


def _unwind(
    job: JobFacts, attempt: AttemptFacts, failures: dict[int, tuple[str, str]], policy: Policy
) -> list[Step]:
    """Stop the others, wait for their ends, then try again or decide the job's end."""
    code, reason, stop_code, stop_reason = _cause(attempt, failures)
    alive = [node for node in attempt.nodes if _training(node) and node.rank not in failures]
    if alive:
        return _stop_orders(alive, stop_code, stop_reason, policy)
    if code == OFFER_EXPIRED:
        return [*_give_up(attempt), MarkAttempt("superseded", "", reason), *_again(job)]
    if kind_of(code) == "elsewhere":
        return [*_give_up(attempt), MarkAttempt("superseded", code, reason), *_again(job)]
    if policy.may_retry(code, job.tried):
        return _try_again(job, attempt, code, reason)
    meaning = REASONS[code].meaning if code in REASONS else code
    return [Decide("failed", code, reason or meaning)]


def _try_again(job: JobFacts, attempt: AttemptFacts, code: str, reason: str) -> list[Step]:
    state = "lost" if code == "lost" else "failed"
    return [*_give_up(attempt), MarkAttempt(state, code, reason), *_again(job)]


def _again(job: JobFacts) -> list[Step]:
    return [SetState("dispatching")] if job.state == "running" else []


def _cause(attempt: AttemptFacts, failures: dict[int, tuple[str, str]]) -> tuple[str, str, str, str]:
    """Code and reason of the failure, and what to tell the other nodes when stopping them.

    What an attempt was given up for stands. Else it is the earliest end that is not itself a
    consequence of another node's.
    """
    if attempt.code:
        told = "rendezvous_unreachable" if attempt.code == "rendezvous_unreachable" else "peer_failed"
        return attempt.code, attempt.reason, told, attempt.reason

    def order(node: NodeFacts) -> tuple[bool, float, int]:
        ended = node.ended_at if node.ended_at is not None else float("inf")
        return failures[node.rank][0] in CONSEQUENCES, ended, node.rank

    first = min((node for node in attempt.nodes if node.rank in failures), key=order)
    code, reason = failures[first.rank]
    return code, reason, "peer_failed", f"rank {first.rank} ({first.name}) failed first: {code}"


def _stop_orders(nodes: list[NodeFacts], code: str, reason: str, policy: Policy) -> list[Step]:
    body = StopOrder(code=code, reason=reason, grace_s=policy.grace_s)
    return [Give(node.rank, body) for node in nodes if "stop" not in node.ordered]


def _give_up(attempt: AttemptFacts) -> list[Step]:
    return [
        Give(node.rank, ForgetOrder())
        for node in attempt.nodes
        if node.taken and "forget" not in node.ordered
    ]


# --- publishing -----------------------------------------------------------------------------------------


def _publish(job: JobFacts, policy: Policy, now: float) -> list[Step]:  # noqa: PLR0911
    """Rank 0 commits the result while it lives; the sender when it cannot."""
    assert job.ending is not None  # noqa: S101 - the caller has looked
    attempt = job.attempt
    if attempt is None or not attempt.live:
        return [PublishHere()]
    first = attempt.nodes[0]
    if first.published is not None and not attempt.code:
        return [LookAtRemote(first.published.commit)]
    if first.finished is not None and first.finished.code == "publish_blocked":
        return [Block(first.finished.reason)]
    gone = _gone(first, policy, now)
    if job.ending == "completed" and (gone is not None or attempt.code):
        return _without_result(job, attempt, policy, gone)
    if gone is not None or first.published is not None:  # in the latter case it is not on the remote
        return [PublishHere()]
    if "publish" in first.ordered:
        return []
    return [Give(0, PublishOrder(outcome=job.ending, code=job.code, reason=job.reason))]


def _gone(first: NodeFacts, policy: Policy, now: float) -> tuple[str, str] | None:
    """Why rank 0's executor will not publish, as code and reason; None while it may."""
    if first.finished is not None and first.finished.state == "failed":
        return first.finished.code or "internal", f"{first.name} cannot publish: {first.finished.reason}"
    if "publish" in first.refused:
        return "lost", f"{first.name} refuses to publish: {first.refused['publish']}"
    if first.revoked:
        return "lost", f"{first.name} was removed from this sender before it published"
    if first.ended is None or now > first.lease_until + policy.lost_after:
        return "lost", f"{first.name} was not heard of any more before it published"
    return None


def _blocked(job: JobFacts) -> str:
    """The remote's words; first what the job had come to before, which is what a person has to mend."""
    words = job.publish_blocked or ""
    if job.ending == "completed" or not job.code:
        return words
    return f"{job.code}: {job.reason.rstrip('.')}; the remote refuses the result, too: {words}"


def _without_result(
    job: JobFacts, attempt: AttemptFacts, policy: Policy, gone: tuple[str, str] | None
) -> list[Step]:
    """What the training wrote is on rank 0's machine alone: without it the job is not completed.

    It may have published without being able to say so, hence the look at the remote first.
    """
    if not attempt.code and gone is not None:
        return [FindResult(*gone)]
    if policy.may_retry(attempt.code, job.tried):
        return [Reopen(), *_try_again(job, attempt, attempt.code, attempt.reason)]
    return [Decide("failed", attempt.code, attempt.reason)]


def _forget(job: JobFacts, outcome: Outcome) -> list[Step]:
    """Lets the newest attempt's nodes clean up, and closes it."""
    attempt = job.attempt
    if attempt is None or not attempt.live:
        return []
    state = {"completed": "succeeded", "cancelled": "cancelled"}.get(outcome, "failed")
    return [*_give_up(attempt), MarkAttempt(state, job.code, job.reason)]
