"""A job's rows as the facts that the life cycle reads."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, RowMapping

from trainforge.config.matrix import cell_name
from trainforge.config.messages import Ended, Finished, Published, Reached, Ready
from trainforge.config.reasons import REASONS, kind_of
from trainforge.sender import schema as s
from trainforge.sender.facts import AttemptFacts, Company, JobFacts, NodeFacts, Result, Stop

# Made once: making a query anew costs more than running it.
_JOB: sa.BindParameter[str] = sa.bindparam("job")
_ATTEMPT: sa.BindParameter[int] = sa.bindparam("attempt")
JOB = sa.select(s.jobs).where(s.jobs.c.id == _JOB)
ATTEMPTS = sa.select(s.attempts).where(s.attempts.c.job_id == _JOB).order_by(s.attempts.c.number)
NODES = (
    sa.select(s.nodes, s.executors.c.name, s.executors.c.revoked)
    .join(s.executors, s.executors.c.id == s.nodes.c.executor_id)
    .where(s.nodes.c.job_id == _JOB, s.nodes.c.attempt == _ATTEMPT)
    .order_by(s.nodes.c.rank)
)
ORDERS = sa.select(s.orders).where(s.orders.c.job_id == _JOB, s.orders.c.attempt == _ATTEMPT)


ELSEWHERE = tuple(code for code, reason in REASONS.items() if reason.kind == "elsewhere")


def refusals_of(c: Connection, job_id: str, attempts: Sequence[RowMapping]) -> dict[str, str]:
    """The executors that could not have this job, such as by their owners' policy, and their words."""
    numbers = [row["number"] for row in attempts if kind_of(row["code"]) == "elsewhere"]
    if not numbers:
        return {}
    n, o, e = s.nodes, s.orders, s.executors
    said = (
        sa.select(n.c.executor_id, n.c.reason, e.c.name)
        .join(e, e.c.id == n.c.executor_id)
        .where(n.c.job_id == job_id, n.c.attempt.in_(numbers))
        .where(n.c.outcome.is_not(None), n.c.code.in_(ELSEWHERE))
    )
    answered = sa.select(o.c.executor_id, o.c.refused).where(
        o.c.job_id == job_id, o.c.attempt.in_(numbers), o.c.kind == "run", o.c.refused != ""
    )
    words = {row.executor_id: row.refused for row in c.execute(answered)}
    return words | {row.executor_id: row.reason.removeprefix(f"{row.name}: ") for row in c.execute(said)}


def company_of(c: Connection, job: RowMapping) -> Company:
    """The jobs of its matrix and its group that a job has to mind, oldest first."""
    placed, failed = _matrix_of(c, job) if job["matrix"] else ([], "")
    older, newer = _group_of(c, job) if job["concurrency"] else ([], "")
    return Company(tuple(placed), failed, job["concurrency"], tuple(older), newer)


def _matrix_of(c: Connection, job: RowMapping) -> tuple[list[str], str]:
    t = s.jobs
    others = sa.and_(t.c.matrix == job["matrix"], t.c.id != job["id"])
    query = sa.select(t.c.id, t.c.cell, t.c.state, t.c.ending).where(others).order_by(t.c.created, t.c.id)
    placed, failed = [], ""
    for row in c.execute(query):
        if "failed" in {row.state, row.ending}:
            failed = failed or _called(row)
        elif row.ending is None and row.state in {"dispatching", "running"}:
            placed.append(_called(row))
    return placed, failed


def _group_of(c: Connection, job: RowMapping) -> tuple[list[str], str]:
    """The jobs of one matrix do not stand in each other's way."""
    t = s.jobs
    mine = sa.and_(t.c.repository_id == job["repository_id"], t.c.concurrency == job["concurrency"])
    others = sa.and_(mine, t.c.ended.is_(None), t.c.ending.is_(None), t.c.id != job["id"])
    columns = (t.c.id, t.c.cell, t.c.matrix, t.c.created, t.c.cancels, t.c.stop_requested)
    older, newer = [], ""
    for row in c.execute(sa.select(*columns).where(others).order_by(t.c.created, t.c.id)):
        if row.matrix and row.matrix == job["matrix"]:
            continue
        if (row.created, row.id) < (job["created"], job["id"]):
            older.append(_called(row))
        elif row.cancels and row.stop_requested is None:
            newer = _called(row)
    return older, newer


def _called(row: Any) -> str:
    return f"job {row.id[:8]}" + (f" ({cell_name(row.cell)})" if row.cell else "")


def job_facts(  # noqa: PLR0917 - the rows it is made of
    job: RowMapping,
    attempts: Sequence[RowMapping],
    nodes: Sequence[RowMapping],
    orders: Sequence[RowMapping],
    company: Company,
    refused: dict[str, str],
) -> JobFacts:
    by_rank: dict[int, list[RowMapping]] = defaultdict(list)
    for order in orders:
        by_rank[order["rank"]].append(order)
    attempt = None
    if attempts:
        newest = attempts[-1]
        members = tuple(_node_facts(node, by_rank[node["rank"]]) for node in nodes)
        attempt = AttemptFacts(
            newest["number"], newest["state"], newest["created"], members, newest["code"], newest["reason"],
            newest["ended"],
        )  # fmt: skip
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
        queued=job["queued"],
        company=company,
        refused=refused,
    )


def _node_facts(node: RowMapping, orders: Sequence[RowMapping]) -> NodeFacts:
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
        published=Published.model_validate(node["published"]) if node["published"] else None,
        finished=Finished.model_validate(node["finished"]) if node["finished"] else None,
    )
