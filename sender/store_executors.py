"""Executors: what they have, what of it is taken, and the outbox of orders to them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from statistics import median
from typing import Any

import sqlalchemy as sa
from pydantic import TypeAdapter
from sqlalchemy.engine import Connection, RowMapping

from trainforge.config.messages import (
    Capabilities,
    FencingToken,
    NodeKey,
    Order,
    OrderBody,
)
from trainforge.sender import schema as s
from trainforge.sender.facts import LIVE
from trainforge.sender.fit import Machine, Running
from trainforge.sender.store_members import Member, member_of
from trainforge.sender.store_visits import VisitStore

_BODY: TypeAdapter[Any] = TypeAdapter(OrderBody)
DURATIONS_SEEN = 200


@dataclass(frozen=True)
class SilentNode:
    member: Member
    key: NodeKey
    acknowledged: int


# Made once, for they are part of most requests: making a query anew costs more than running it.
_EXECUTOR: sa.BindParameter[str] = sa.bindparam("executor")
_OPEN = (
    sa.select(s.orders, s.attempts.c.token_incarnation, s.attempts.c.token_number)
    .join(
        s.attempts,
        sa.and_(s.attempts.c.job_id == s.orders.c.job_id, s.attempts.c.number == s.orders.c.attempt),
    )
    .where(s.orders.c.executor_id == _EXECUTOR, s.orders.c.closed.is_(None))
    .order_by(s.orders.c.created, s.orders.c.id)
)

_E = s.executors.c
_FLEET = sa.select(
    *(_E.id, _E.name, _E.load, _E.last_seen, _E.draining, _E.drained, _E.revoked, _E.pending, _E.jobs_left),
    sa.cast(_E.capabilities, sa.Text).label("said"),
).order_by(_E.id)


@lru_cache(maxsize=4096)
def _capabilities(said: str) -> Capabilities:
    """Read once, for a pass asks for all of them and few have changed."""
    return Capabilities.model_validate_json(said)


class ExecutorStore(VisitStore):
    def machines(self, now: float, online_for: float) -> list[Machine]:
        """Every executor with what it has and what of it is taken, for the planner."""
        t, a, j = s.nodes, s.attempts, s.jobs
        taken = (
            sa.select(
                t.c.executor_id, t.c.gpus, t.c.job_id, j.c.project,
                sa.func.coalesce(a.c.started, a.c.created).label("since"),
                a.c.plan["cpu"].as_float().label("cpu"), a.c.plan["memory"].as_float().label("memory"),
            )
            .join(a, sa.and_(a.c.job_id == t.c.job_id, a.c.number == t.c.attempt))
            .join(j, j.c.id == t.c.job_id)
            .where(t.c.ended.is_(None), a.c.state.in_(LIVE))
            .order_by(t.c.job_id, t.c.rank)
        )  # fmt: skip
        with self.read() as c:
            rows = c.execute(_FLEET).mappings().all()
            nodes = c.execute(taken).all()
            usual = _usual_durations(c) if nodes else {}
        running: dict[str, list[Running]] = defaultdict(list)
        for node in nodes:
            ends = node.since + usual[node.project] if node.project in usual else None
            held = Running(node.job_id, tuple(node.gpus), node.cpu or 0.0, int(node.memory or 0), ends)
            running[node.executor_id].append(held)
        return [
            Machine(
                id=row["id"],
                name=row["name"],
                capabilities=_capabilities(row["said"]),
                online=row["last_seen"] is not None
                and now - row["last_seen"] <= online_for
                and not row["draining"],
                draining=row["drained"],
                revoked=row["revoked"] is not None,
                closed=_closed(row),
                running=tuple(running[row["id"]]),
                cpu_percent=(row["load"] or {}).get("cpu_percent", 0.0),
                others=_others(row),
            )
            for row in rows
        ]

    def silent_nodes(self, heard_before: float, lease_ttl: float) -> list[SilentNode]:
        """Nodes at work whose executor has an endpoint and was not heard of since a moment."""
        t, a, e = s.nodes, s.attempts, s.executors
        query = (
            sa.select(
                t.c.job_id,
                t.c.attempt,
                t.c.rank,
                t.c.acknowledged,
                e.c.id,
                e.c.name,
                e.c.public_key,
                e.c.endpoint,
                e.c.revoked,
                e.c.pending,
                e.c.previous_key,
                e.c.previous_until,
            )
            .join(a, sa.and_(a.c.job_id == t.c.job_id, a.c.number == t.c.attempt))
            .join(e, e.c.id == t.c.executor_id)
            .where(a.c.state.in_(LIVE), t.c.state != "pending", e.c.endpoint != "", e.c.revoked.is_(None))
            .where(t.c.lease_until < heard_before + lease_ttl)
        )
        with self.read() as c:
            rows = c.execute(query).mappings().all()
        return [
            SilentNode(
                member_of(r),
                NodeKey(job=r["job_id"], attempt=r["attempt"], rank=r["rank"]),
                r["acknowledged"],
            )
            for r in rows
        ]

    # --- the outbox -------------------------------------------------------------------------------------

    def open_orders(self, executor: str) -> list[Order]:
        with self.ask() as c:
            rows = c.execute(_OPEN, {"executor": executor}).mappings().all()
        return [
            Order(
                id=row["id"],
                node=NodeKey(job=row["job_id"], attempt=row["attempt"], rank=row["rank"]),
                token=FencingToken(incarnation=row["token_incarnation"], number=row["token_number"]),
                body=_BODY.validate_python(row["body"]),
            )
            for row in rows
        ]

    def executors_to_push(self) -> list[Member]:
        """Executors with an endpoint for which orders lie in the outbox."""
        t, o = s.executors, s.orders
        waiting = sa.exists().where(o.c.executor_id == t.c.id, o.c.closed.is_(None))
        query = sa.select(t).where(t.c.endpoint != "", t.c.revoked.is_(None), waiting)
        with self.read() as c:
            rows = c.execute(query).mappings().all()
        return [member_of(row) for row in rows]

    def accept_orders(
        self, executor: str, ids: Iterable[str], now: float, lease_ttl: float
    ) -> list[tuple[str, str]]:
        """Note what the executor has stored; gives (job, order id) of those that were still open."""
        wanted = list(ids)
        if not wanted:
            return []
        t, n = s.orders, s.nodes
        with self.write() as c:
            accepted = c.execute(
                sa.update(t)
                .where(t.c.id.in_(wanted), t.c.executor_id == executor, t.c.closed.is_(None))
                .values(accepted=now, closed=now)
                .returning(t.c.job_id, t.c.id, t.c.attempt, t.c.rank, t.c.kind)
            ).all()
            for order in accepted:
                if order.kind == "run":
                    node = (n.c.job_id == order.job_id, n.c.attempt == order.attempt, n.c.rank == order.rank)
                    begun = sa.update(n).where(*node, n.c.ended.is_(None))
                    c.execute(begun.values(state="running", started=now, lease_until=now + lease_ttl))
        return [(order.job_id, order.id) for order in accepted]

    def refuse_order(self, executor: str, order: str, why: str, now: float) -> str:
        """The executor will not take this order of its own; the job, if it was still open."""
        t = s.orders
        with self.write() as c:
            mine = sa.update(t).where(t.c.id == order, t.c.executor_id == executor, t.c.closed.is_(None))
            refused = mine.values(refused=why or "refused", closed=now).returning(t.c.job_id)
            return c.execute(refused).scalar() or ""

    def close_order(self, executor: str, order: str, now: float) -> None:
        """It is not delivered any more, though nobody has taken or refused it."""
        t = s.orders
        with self.write() as c:
            mine = sa.update(t).where(t.c.id == order, t.c.executor_id == executor, t.c.closed.is_(None))
            c.execute(mine.values(closed=now))

    def add_job_credential(
        self, digest: str, *, job: str, executor: str, repository: str, now: float, expires: float
    ) -> None:
        table = s.job_credentials
        with self.write() as c:
            c.execute(sa.delete(table).where(table.c.expires < now))
            c.execute(
                sa.insert(table).values(
                    digest=digest, job_id=job, executor_id=executor, repository_id=repository, expires=expires
                )
            )


def _others(row: RowMapping) -> dict[str, int]:
    """Memory of the executor's GPUs that programs of others use."""
    used = (row["load"] or {}).get("gpu_others_bytes", ())
    if not used:
        return {}
    gpus = _capabilities(row["said"]).gpus
    return {gpu.uuid: size for gpu, size in zip(gpus, used, strict=False) if size}


def _closed(row: RowMapping) -> str:
    """Why it is to have no jobs for now, in words."""
    if row["pending"]:
        return f"waits for approval: `trainforge executor approve {row['name']}`"
    return "has had all the jobs that it came for" if row["jobs_left"] == 0 else ""


def _usual_durations(c: Connection) -> dict[str, float]:
    """How long the newest completed jobs of each project took, as far as there are any."""
    t = s.jobs
    done = sa.select(t.c.project, t.c.started, t.c.ended).where(
        t.c.state == "completed", t.c.started.is_not(None), t.c.ended.is_not(None)
    )
    took: dict[str, list[float]] = defaultdict(list)
    for row in c.execute(done.order_by(t.c.created.desc()).limit(DURATIONS_SEEN)):
        took[row.project].append(row.ended - row.started)
    return {project: median(seconds) for project, seconds in took.items()}
