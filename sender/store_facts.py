"""A job's rows as the facts that the life cycle reads."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import RowMapping

from trainforge.config.messages import Ended, Finished, Published, Reached, Ready
from trainforge.sender import schema as s
from trainforge.sender.facts import AttemptFacts, JobFacts, NodeFacts, Result, Stop


def attempts_of(job_id: str) -> sa.Select[Any]:
    return sa.select(s.attempts).where(s.attempts.c.job_id == job_id).order_by(s.attempts.c.number)


def nodes_of(job_id: str, attempt: int) -> sa.Select[Any]:
    t, e = s.nodes, s.executors
    return (
        sa.select(t, e.c.name, e.c.revoked)
        .join(e, e.c.id == t.c.executor_id)
        .where(t.c.job_id == job_id, t.c.attempt == attempt)
        .order_by(t.c.rank)
    )


def job_facts(
    job: RowMapping, attempts: Sequence[RowMapping], nodes: Sequence[RowMapping], orders: Sequence[RowMapping]
) -> JobFacts:
    by_rank: dict[int, list[RowMapping]] = defaultdict(list)
    for order in orders:
        by_rank[order["rank"]].append(order)
    attempt = None
    if attempts:
        newest = attempts[-1]
        members = tuple(_node_facts(node, by_rank[node["rank"]]) for node in nodes)
        attempt = AttemptFacts(
            newest["number"], newest["state"], newest["created"], members, newest["code"], newest["reason"]
        )
    result = None
    if job["result_outcome"]:
        result = Result(job["result_outcome"], job["result_commit"], job["result_code"], job["result_reason"])
    problems = "\n".join(str(problem.get("detail", "")) for problem in job["problems"])
    stopped = job["stop_requested"] is not None
    return JobFacts(
        id=job["id"],
        state=job["state"],
        version=job["version"],
        created=job["created"],
        manifest_problem=problems[:8000],
        stop=Stop(job["stop_code"], job["stop_reason"]) if stopped else None,
        ending=job["ending"],
        code=job["code"],
        reason=job["reason"],
        attempt=attempt,
        tried=sum(row["state"] in {"failed", "lost"} for row in attempts),
        publish_blocked=job["publish_blocked"],
        result=result,
    )


def _node_facts(node: RowMapping, orders: Sequence[RowMapping]) -> NodeFacts:
    waiting = node["publish_waiting"] or {}
    return NodeFacts(
        rank=node["rank"],
        executor=node["executor_id"],
        name=node["name"],
        created=node["created"],
        lease_until=node["lease_until"],
        revoked=node["revoked"] is not None,
        ordered=frozenset(order["kind"] for order in orders),
        accepted=frozenset(order["kind"] for order in orders if order["accepted"] is not None),
        refused={order["kind"]: order["refused"] for order in orders if order["refused"]},
        heard=node["acknowledged"] > 0,
        ready=Ready.model_validate(node["ready"]) if node["ready"] else None,
        reached=Reached.model_validate(node["reached"]) if node["reached"] else None,
        begun=node["begun"] is not None,
        ended=Ended.model_validate(node["outcome"]) if node["outcome"] else None,
        ended_at=node["ended"],
        publish_waiting=str(waiting.get("reason", "")),
        published=Published.model_validate(node["published"]) if node["published"] else None,
        finished=Finished.model_validate(node["finished"]) if node["finished"] else None,
    )
