"""Jobs: the facts that the life cycle reads, and the steps that it writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, RowMapping

from trainforge.config.errors import Conflict, NotFound
from trainforge.config.messages import OUTCOMES, OWNER_ASKED, AnswerOrder, FencingToken, JobState, RunOrder
from trainforge.sender import lifecycle as life
from trainforge.sender import schema as s
from trainforge.sender.database import Database
from trainforge.sender.facts import JobFacts, Result
from trainforge.sender.planner import Placement, Plan
from trainforge.sender.store_audit import SENDER, record
from trainforge.sender.store_facts import ATTEMPTS, JOB, NODES, ORDERS, company_of, job_facts, refusals_of

LIVE = ("offered", "accepted", "running")

_JOB: sa.BindParameter[str] = sa.bindparam("job")
_KNOWN: sa.BindParameter[int] = sa.bindparam("known")
_WAS: sa.BindParameter[str] = sa.bindparam("was")
_MINE = sa.and_(s.jobs.c.id == _JOB, s.jobs.c.version == _KNOWN, s.jobs.c.state == _WAS)
_TAKE = sa.update(s.jobs).where(_MINE).values(version=sa.bindparam("version"))
_COUNT = (
    sa.update(s.jobs)
    .where(s.jobs.c.id == _JOB)
    .values(cursor=s.jobs.c.cursor + sa.bindparam("count"))
    .returning(s.jobs.c.cursor)
)
_NOTE = sa.insert(s.timeline)


class JobStore(Database):
    # --- reading ----------------------------------------------------------------------------------------

    def job(self, job_id: str) -> RowMapping:
        """The job's row.

        Raises:
            NotFound: no such job.
        """
        with self.ask() as c:
            row = c.execute(JOB, {"job": job_id}).mappings().first()
        if row is None:
            raise NotFound(f"no job {job_id} is known here", hint="`trainforge status` lists the jobs")
        return row

    def facts(self, job_id: str) -> tuple[JobFacts, RowMapping]:
        """Everything the life cycle looks at, in one consistent read, and the row it was made from."""
        with self.read() as c:
            job = c.execute(JOB, {"job": job_id}).mappings().first()
            if job is None:
                raise NotFound(f"no job {job_id} is known here", hint="`trainforge status` lists the jobs")
            attempts = c.execute(ATTEMPTS, {"job": job_id}).mappings().all()
            newest = attempts[-1] if attempts else None
            nodes: Sequence[RowMapping] = []
            orders: Sequence[RowMapping] = []
            if newest is not None:
                mine = {"job": job_id, "attempt": newest["number"]}
                nodes = c.execute(NODES, mine).mappings().all()
                orders = c.execute(ORDERS, mine).mappings().all()
            company, refused = company_of(c, job), refusals_of(c, job_id, attempts)
        return job_facts(job, attempts, nodes, orders, company, refused), job

    # --- writing ----------------------------------------------------------------------------------------

    def apply(self, job: JobFacts, steps: Sequence[life.Step], now: float) -> list[str] | None:
        """Apply steps that change only the database, at once; gives the executors that got orders.

        None if the job has changed since its facts were read: look again.
        """
        changes: dict[str, Any] = {"version": job.version + 1}
        told: set[str] = set()
        with self.write() as c:
            t = s.jobs
            mine = {"job": job.id, "known": job.version, "was": job.state, "version": job.version + 1}
            if c.execute(_TAKE, mine).rowcount != 1:
                return None
            for step in steps:
                changes |= self._apply(c, job, step, told, now)
            c.execute(sa.update(t).where(t.c.id == job.id).values(changes))
        return sorted(told)

    def _apply(  # noqa: C901, PLR0911 - a table of cases
        self, c: Connection, job: JobFacts, step: life.Step, told: set[str], now: float
    ) -> dict[str, Any]:
        """Write one step; gives the changes of the job's row."""
        match step:
            case life.SetState(state):
                return self._set_state(c, job, state, now)
            case life.Queue():
                return {"queued": now, "waiting": {}}
            case life.RequestStop(code, reason):
                self.note(c, job.id, "state", f"to be stopped: {reason}", now)
                return {"stop_requested": now, "stop_code": code, "stop_reason": reason}
            case life.Give():
                told.add(self._give(c, job, step, now))
            case life.MarkAttempt():
                self._mark_attempt(c, job, step, now)
            case life.Blame(code, reason):
                self._update_attempt(c, job, {"code": code, "reason": reason})
                self.note(c, job.id, "error", f"{code}: {reason}", now)
            case life.Decide(outcome, code, reason):
                self._withdraw(c, job, now, ("run", "probe", "launch"))
                self.note(c, job.id, "state", f"will end {outcome}" + (f": {reason}" if reason else ""), now)
                return {"ending": outcome, "code": code, "reason": reason, "waiting": {}}
            case life.Reopen():
                return {"ending": None, "code": "", "reason": ""}
            case life.Block(words):
                return {"publish_blocked": words}
            case life.Finish(state, code, reason):
                return {
                    **self._set_state(c, job, state, now),
                    "ended": now,
                    "ending": None,
                    "code": code,
                    "reason": reason,
                    "waiting": {},
                }
            case _:
                raise TypeError(f"{step} is not the store's to apply")
        return {}

    def place(
        self, job: JobFacts, plan: Plan, runs: Mapping[int, RunOrder], token: FencingToken, now: float
    ) -> bool:
        """Make the next attempt with its nodes and run orders; False if the job has changed meanwhile.

        A machine that was filled since the plan was made keeps the plan from being used.
        """
        t = s.jobs
        with self.write() as c:
            current = sa.and_(t.c.id == job.id, t.c.version == job.version, t.c.state == job.state)
            number = (job.attempt.number if job.attempt else 0) + 1
            values: dict[str, Any] = {"version": job.version + 1, "attempt": number, "plan": plan.as_dict()}
            values |= {"nodes": len(plan.nodes), "waiting": {}}
            if c.execute(sa.update(t).where(current).values(values)).rowcount != 1:
                return False
            c.execute(
                sa.insert(s.attempts).values(
                    job_id=job.id,
                    number=number,
                    state="offered",
                    token_incarnation=token.incarnation,
                    token_number=token.number,
                    plan=plan.as_dict(),
                    created=now,
                )
            )
            for placed in plan.nodes:
                self._add_node(c, job.id, number, placed, runs[placed.rank], now)
                order = f"{job.id}.{number}.{placed.rank}.{token.incarnation}-{token.number}.run"
                body = runs[placed.rank].model_dump(mode="json")
                self._add_order(c, order, (job.id, number, placed.rank), placed.executor, body, now)
            if job.state == "planning":
                self._set_state(c, job, "dispatching", now)
            machines = ", ".join(placed.name for placed in plan.nodes)
            self.note(c, job.id, "attempt", f"attempt {number} offered to {machines}", now, attempt=number)
            for words in (*map(str, plan.adjusted), *plan.notices):
                self.note(c, job.id, "note", words, now, attempt=number)
        return True

    def next_token(self, incarnation: int) -> FencingToken:
        """A fencing token higher than every one before it."""
        t = s.meta
        with self.write() as c:
            row = c.execute(sa.select(t.c.value).where(t.c.key == "fence_number")).first()
            number = int(row[0]) + 1 if row else 1
            put = self.insert(t).values(key="fence_number", value=str(number))
            c.execute(put.on_conflict_do_update(index_elements=["key"], set_={"value": str(number)}))
        return FencingToken(incarnation=incarnation, number=number)

    def get_meta(self, key: str) -> str | None:
        with self.read() as c:
            return c.execute(sa.select(s.meta.c.value).where(s.meta.c.key == key)).scalar()

    def set_meta(self, key: str, value: str) -> None:
        with self.write() as c:
            put = self.insert(s.meta).values(key=key, value=value)
            c.execute(put.on_conflict_do_update(index_elements=["key"], set_={"value": value}))

    def wait(self, job_id: str, reasons: Mapping[str, str], *, held: bool = False) -> bool:
        """Show why a job waits; whether that is news. A job that is held by others waits for no machines."""
        t = s.jobs
        values: dict[str, Any] = {"waiting": dict(reasons)} | ({"queued": None} if held else {})
        with self.read() as c:
            row = c.execute(sa.select(t.c.waiting, t.c.queued).where(t.c.id == job_id)).mappings().first()
            if row is None or all(row[name] == value for name, value in values.items()):
                return False
        with self.write() as c:
            c.execute(sa.update(t).where(t.c.id == job_id, t.c.ended.is_(None)).values(values))
        return True

    def request_stop(self, job_id: str, code: str, reason: str, now: float, actor: str = SENDER) -> None:
        """Ask for the job's end; asking again changes nothing.

        Raises:
            NotFound: no such job.
            Conflict: it has ended, or its end is decided.
        """
        t = s.jobs
        with self.write() as c:
            row = c.execute(sa.select(t).where(t.c.id == job_id)).mappings().first()
            if row is None:
                raise NotFound(f"no job {job_id} is known here", hint="`trainforge status` lists the jobs")
            if row["state"] in OUTCOMES or row["ending"] is not None:
                raise Conflict(f"the job has already ended ({row['ending'] or row['state']})")
            if row["stop_requested"] is None:
                values = {"stop_requested": now, "stop_code": code, "stop_reason": reason}
                c.execute(sa.update(t).where(t.c.id == job_id).values(**values, version=row["version"] + 1))
                record(c, actor, "job.stopped", job_id, {"reason": reason}, now=now)
                self.note(
                    c, job_id, "state", f"stop requested: {reason}" if reason else "stop requested", now
                )

    def answer(self, job_id: str, body: AnswerOrder, now: float, actor: str) -> list[str]:
        """Say yes or no for each of a job's nodes that asks for its machine's owner; gives their executors.

        Raises:
            Conflict: none asks.
        """
        n, a = s.nodes, s.attempts
        newest = sa.and_(a.c.job_id == n.c.job_id, a.c.number == n.c.attempt)
        asking = sa.and_(
            n.c.job_id == job_id, a.c.state.in_(LIVE), n.c.ended.is_(None), n.c.detail == OWNER_ASKED
        )
        wanted = sa.select(
            n.c.attempt, n.c.rank, n.c.executor_id, a.c.token_incarnation, a.c.token_number
        ).join(a, newest)
        with self.write() as c:
            nodes = c.execute(wanted.where(asking)).all()
            if not nodes:
                raise Conflict("no machine of this job waits for an answer")
            for node in nodes:
                key = (job_id, node.attempt, node.rank)
                order = "{}.{}.{}.{}-{}.answer".format(*key, node.token_incarnation, node.token_number)
                self._add_order(c, order, key, node.executor_id, body.model_dump(mode="json"), now)
            said = "accepted" if body.accept else "rejected"
            record(
                c, actor, f"job.{said}", job_id, {"executors": [node.executor_id for node in nodes]}, now=now
            )
            self.note(c, job_id, "note", f"{said} by {actor} for the machine's owner", now)
        return [node.executor_id for node in nodes]

    def note_blocked(self, job_id: str, words: str) -> None:
        """The remote refuses the result for good, in these words."""
        t = s.jobs
        with self.write() as c:
            blocked = sa.update(t).where(t.c.id == job_id, t.c.ended.is_(None))
            c.execute(blocked.values(publish_blocked=words[:8000]))

    def note_result(self, job_id: str, result: Result, artifacts: Sequence[Mapping[str, Any]]) -> None:
        """The result was seen on the remote: the life cycle ends the job with it."""
        t = s.jobs
        values = {
            "result_commit": result.commit,
            "result_outcome": result.outcome,
            "result_code": result.code,
            "result_reason": result.reason,
            "artifacts": [dict(artifact) for artifact in artifacts],
            "gates": [gate.model_dump() for gate in result.gates],
            "waiting": {},
        }
        with self.write() as c:
            c.execute(sa.update(t).where(t.c.id == job_id, t.c.ended.is_(None)).values(values))

    def note(self, c: Connection, job_id: str, kind: str, text: str, now: float, **place: int | None) -> None:
        """Add a line to the job's timeline, in the transaction of what it tells about."""
        cursor = self.take_cursors(c, job_id, 1)
        line = {"job_id": job_id, "cursor": cursor, "time": now, "kind": kind, "text": text[:4000], **place}
        c.execute(_NOTE, line)

    def take_cursors(self, c: Connection, job_id: str, count: int) -> int:
        """The first of `count` numbers of the job's own counter; also locks the job's row until commit."""
        return int(c.execute(_COUNT, {"job": job_id, "count": count}).scalar_one()) - count + 1

    # --- one step each ----------------------------------------------------------------------------------

    def _set_state(self, c: Connection, job: JobFacts, state: JobState, now: float) -> dict[str, Any]:
        if not life.is_legal(job.state, state):
            raise Conflict(f"a job does not go from {job.state} to {state}")
        self.note(c, job.id, "state", f"{job.state} → {state}", now)
        t = s.jobs
        c.execute(sa.update(t).where(t.c.id == job.id).values(state=state))
        changes: dict[str, Any] = {"state": state}
        if state == "running":
            changes["started"] = sa.func.coalesce(t.c.started, now)
        return changes

    def _give(self, c: Connection, job: JobFacts, step: life.Give, now: float) -> str:
        assert job.attempt is not None  # noqa: S101 - orders are given to nodes of the newest attempt
        node = job.attempt.nodes[step.rank]
        t = s.attempts
        mine = sa.select(t.c.token_incarnation, t.c.token_number).where(
            t.c.job_id == job.id, t.c.number == job.attempt.number
        )
        token = c.execute(mine).one()
        key = (job.id, job.attempt.number, step.rank)
        order = f"{job.id}.{job.attempt.number}.{step.rank}.{token[0]}-{token[1]}.{step.body.kind}"
        self._add_order(c, order, key, node.executor, step.body.model_dump(mode="json"), now)
        return node.executor

    def _add_order(  # noqa: PLR0917
        self,
        c: Connection,
        order: str,
        node: tuple[str, int, int],
        executor: str,
        body: Mapping[str, Any],
        now: float,
    ) -> None:
        job, attempt, rank = node
        row = self.insert(s.orders).values(
            id=order, job_id=job, attempt=attempt, rank=rank, executor_id=executor,
            kind=body["kind"], body=dict(body), created=now,
        )  # fmt: skip
        c.execute(row.on_conflict_do_nothing())

    def _add_node(  # noqa: PLR0917
        self, c: Connection, job_id: str, number: int, placed: Placement, run: RunOrder, now: float
    ) -> None:
        c.execute(
            sa.insert(s.nodes).values(
                job_id=job_id,
                attempt=number,
                rank=placed.rank,
                executor_id=placed.executor,
                state="pending",
                gpus=list(placed.gpus),
                lease_until=now + run.lease_ttl,
                created=now,
            )
        )
        self._count_job(c, placed.executor)

    @staticmethod
    def _count_job(c: Connection, executor: str) -> None:
        """One job less that an executor which came for some may have.

        Raises:
            Conflict: it has had them all.
        """
        t = s.executors
        limited = sa.and_(t.c.id == executor, t.c.jobs_left.is_not(None))
        counted = sa.update(t).where(limited).values(jobs_left=t.c.jobs_left - 1)
        left = c.execute(counted.returning(t.c.jobs_left)).scalar()
        if left is not None and left < 0:
            raise Conflict("an executor has had all the jobs that it came for")

    def _mark_attempt(self, c: Connection, job: JobFacts, step: life.MarkAttempt, now: float) -> None:
        assert job.attempt is not None  # noqa: S101
        values: dict[str, Any] = {"state": step.state}
        if step.code or step.reason:
            values |= {"code": step.code, "reason": step.reason}
        if step.state == "running":
            values["started"] = now
        if step.state not in LIVE:
            values["ended"] = now
            self._withdraw(c, job, now, ("run", "probe", "launch", "stop", "publish", "answer"))
            t = s.nodes
            mine = sa.and_(t.c.job_id == job.id, t.c.attempt == job.attempt.number, t.c.ended.is_(None))
            end = {"state": "failed", "ended": now, "code": step.code or "lost", "reason": step.reason}
            c.execute(sa.update(t).where(mine).values(end))
        self._update_attempt(c, job, values)
        text = f"attempt {job.attempt.number} {step.state}" + (f": {step.reason}" if step.reason else "")
        self.note(c, job.id, "attempt", text, now, attempt=job.attempt.number)

    @staticmethod
    def _update_attempt(c: Connection, job: JobFacts, values: Mapping[str, Any]) -> None:
        assert job.attempt is not None  # noqa: S101
        t = s.attempts
        mine = sa.and_(t.c.job_id == job.id, t.c.number == job.attempt.number)
        c.execute(sa.update(t).where(mine).values(dict(values)))

    @staticmethod
    def _withdraw(c: Connection, job: JobFacts, now: float, kinds: Sequence[str]) -> None:
        """Close what the executors have not accepted and need not any more."""
        t = s.orders
        mine = sa.and_(t.c.job_id == job.id, t.c.closed.is_(None), t.c.kind.in_(kinds))
        c.execute(sa.update(t).where(mine).values(closed=now))
