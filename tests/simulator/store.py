"""The store's methods over plain dictionaries: the same transactions, a thousand times faster.

What is decided is decided by the production code (`facts.py`, `store_facts.job_facts`, `intake.py`); this
holds the rows, as the SQL of the `store*` modules would leave them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from simulator.members import MemberRows
from simulator.rows import Row, job_row, state_row
from trainforge.config.errors import Conflict, NotFound
from trainforge.config.messages import OUTCOMES, FencingToken, NodeKey
from trainforge.sender import facts as f
from trainforge.sender import lifecycle as life
from trainforge.sender.store_events import NewEvent, NewJob, Noted, Repo
from trainforge.sender.store_executors import Member
from trainforge.sender.store_facts import job_facts

_EMPTY = f.Company()


class ModelStore(MemberRows):
    # --- reading ----------------------------------------------------------------------------------------

    def job(self, job_id: str) -> Row:
        if job_id not in self.jobs:
            raise NotFound(f"no job {job_id} is known here")
        return dict(self.jobs[job_id])

    def repository(self, name_or_id: str) -> Repo:
        return self._repo

    def facts(self, job_id: str) -> tuple[f.JobFacts, Any]:
        if job_id not in self._facts:
            job = self.job(job_id)
            attempts = self._attempts(job_id)
            newest = attempts[-1]["number"] if attempts else 0
            nodes = [
                {**node, "name": self.executors[node["executor_id"]]["name"],
                 "revoked": self.executors[node["executor_id"]]["revoked"]}
                for key, node in sorted(self.nodes.items()) if key[:2] == (job_id, newest)
            ]  # fmt: skip
            orders = [
                row for row in self.orders.values() if (row["job_id"], row["attempt"]) == (job_id, newest)
            ]
            refused = self._refusals(job_id, attempts)
            made = job_facts(job, attempts, nodes, orders, _EMPTY, refused)  # type: ignore[arg-type]
            self._facts[job_id] = (made, job)
        return self._facts[job_id]

    def _attempts(self, job_id: str) -> list[Row]:
        return [row for key, row in sorted(self.attempts.items()) if key[0] == job_id]

    def _refusals(self, job_id: str, attempts: Sequence[Row]) -> dict[str, str]:
        numbers = {row["number"] for row in attempts if row["code"] == "policy_refused"}
        return {
            row["executor_id"]: row["refused"]
            for row in self.orders.values()
            if row["job_id"] == job_id
            and row["attempt"] in numbers
            and row["kind"] == "run"
            and row["refused"]
        }

    def versions(self) -> dict[str, int]:
        rows = [row for row in self.jobs.values() if row["ended"] is None]
        rows.sort(key=lambda row: (-row["priority"], row["created"], row["id"]))
        return {row["id"]: row["version"] for row in rows}

    def heads(self, repository_id: str) -> dict[str, str]:
        return dict(self.heads_)

    def results_branches(self, repository_id: str) -> set[str]:
        return {row["result_branch"] for row in self.jobs.values()}

    def get_meta(self, key: str) -> str | None:
        return self.meta.get(key)

    def member(self, executor: str) -> Member | None:
        row = self.executors.get(executor)
        return row and Member(executor, row["name"], {}, "", row["revoked"] is not None)  # type: ignore[return-value]

    def attempt_of(self, job: str, number: int) -> Row | None:
        return self.attempts.get((job, number))

    def attempts_now(self) -> dict[tuple[str, int], tuple[str, str, list[Row]]]:
        """What each attempt was given up for, and its nodes."""
        nodes: dict[tuple[str, int], list[Row]] = defaultdict(list)
        for key, node in self.nodes.items():
            nodes[key[:2]].append(node)
        return {key: (row["code"], row["reason"], nodes[key]) for key, row in self.attempts.items()}

    def leases(self) -> dict[tuple[str, int, int], float]:
        return {key: row["lease_until"] for key, row in self.nodes.items()}

    def nodes_row(self, key: NodeKey) -> Row | None:
        return self.nodes.get((key.job, key.attempt, key.rank))

    def lines_of(self, key: tuple[str, int, int]) -> list[str]:
        return self.lines.get(key, [])

    def states(self) -> dict[str, tuple[str, str]]:
        return {row["id"]: (row["state"], row["code"]) for row in self.jobs.values()}

    # --- events -----------------------------------------------------------------------------------------

    def record_push(self, event: NewEvent, jobs: list[NewJob], now: float) -> list[str] | None:
        if self.heads_.get(event.ref, "") != event.old:
            return None
        self.heads_[event.ref] = event.new
        return self._add_event(event, jobs, now)

    def _add_event(self, event: NewEvent, jobs: list[NewJob], now: float) -> list[str]:
        self.pushes.pop((event.ref, event.new), None)
        self.events.add((event.ref, event.new))
        for position, job in enumerate(jobs):
            if job.id not in self.jobs:
                self.jobs[job.id] = job_row(job, now + position * 1e-6)
        self._done()
        return [job.id for job in jobs]

    def noted_pushes(self, repository_id: str) -> list[Noted]:
        return [push for _, push in sorted(self.pushes.values(), key=lambda one: (one[0], one[1].commit))]

    def record_noted(self, event: NewEvent, jobs: list[NewJob], now: float) -> list[str] | None:
        return self._add_event(event, jobs, now) if (event.ref, event.new) in self.pushes else None

    def count_triggers(self, *_: Any, **__: Any) -> int:
        """Nobody pushes that often here."""
        return 0

    def first_delivery(self, source: str, delivery: str, now: float, push: Noted | None = None) -> bool:
        if delivery in self.deliveries:
            return False
        self.deliveries.add(delivery)
        if push is not None and (push.ref, push.commit) not in self.events:
            self.pushes.setdefault((push.ref, push.commit), (now, push))
        self._done()
        return True

    # --- jobs -------------------------------------------------------------------------------------------

    def _current(self, job: f.JobFacts) -> bool:
        row = self.jobs[job.id]
        return (row["version"], row["state"]) == (job.version, job.state)

    def apply(self, job: f.JobFacts, steps: Sequence[life.Step], now: float) -> list[str] | None:
        if not self._current(job):
            return None
        told: set[str] = set()
        changes: Row = {"version": job.version + 1}
        for step in steps:
            changes |= self._apply(job, step, told, now)
        self.jobs[job.id] |= changes
        self._done(job.id)
        return sorted(told)

    def _apply(  # noqa: C901, PLR0911 - a table of cases
        self, job: f.JobFacts, step: life.Step, told: set[str], now: float
    ) -> Row:
        match step:
            case life.SetState(state):
                return state_row(job, state)
            case life.Queue():
                return {"queued": now, "waiting": {}}
            case life.RequestStop(code, reason):
                return {"stop_requested": now, "stop_code": code, "stop_reason": reason}
            case life.Give(rank, body):
                told.add(self._give(job, rank, body, now))
            case life.MarkAttempt():
                self._mark_attempt(job, step, now)
            case life.Blame(code, reason):
                self._newest(job).update(code=code, reason=reason)
            case life.Decide(outcome, code, reason):
                self._withdraw(job.id, now, ("run", "probe", "launch"))
                return {"ending": outcome, "code": code, "reason": reason, "waiting": {}}
            case life.Reopen():
                return {"ending": None, "code": "", "reason": ""}
            case life.Block(words):
                return {"publish_blocked": words}
            case life.Finish(state, code, reason):
                end = {"ended": now, "ending": None, "code": code, "reason": reason, "waiting": {}}
                return {**state_row(job, state), **end}
            case _:
                raise TypeError(f"{step} is not the store's to apply")
        return {}

    def _newest(self, job: f.JobFacts) -> Row:
        assert job.attempt is not None
        return self.attempts[job.id, job.attempt.number]

    def _give(self, job: f.JobFacts, rank: int, body: Any, now: float) -> str:
        assert job.attempt is not None
        attempt, executor = self._newest(job), job.attempt.nodes[rank].executor
        self._add_order(job.id, attempt, rank, executor, body, now)
        return executor

    def _add_order(self, job: str, attempt: Row, rank: int, executor: str, body: Any, now: float) -> None:  # noqa: PLR0917
        token = f"{attempt['token_incarnation']}-{attempt['token_number']}"
        name = f"{job}.{attempt['number']}.{rank}.{token}.{body.kind}"
        row = {
            "id": name, "job_id": job, "attempt": attempt["number"], "rank": rank, "executor_id": executor,
            "kind": body.kind, "body": body, "created": now, "accepted": None, "closed": None, "refused": "",
        }  # fmt: skip
        self.orders.setdefault(name, row)

    def _mark_attempt(self, job: f.JobFacts, step: life.MarkAttempt, now: float) -> None:
        attempt = self._newest(job)
        attempt["state"] = step.state
        if step.code or step.reason:
            attempt |= {"code": step.code, "reason": step.reason}
        if step.state == "running":
            attempt["started"] = now
        if step.state not in f.LIVE:
            attempt["ended"] = now
            self._withdraw(job.id, now, ("run", "probe", "launch", "stop", "publish"))
            for key, node in self.nodes.items():
                if key[:2] == (job.id, attempt["number"]) and node["ended"] is None:
                    node["ended"] = now

    def _withdraw(self, job: str, now: float, kinds: Sequence[str]) -> None:
        for row in self.orders.values():
            if row["job_id"] == job and row["closed"] is None and row["kind"] in kinds:
                row["closed"] = now

    def place(
        self, job: f.JobFacts, plan: Any, runs: Mapping[int, Any], token: FencingToken, now: float
    ) -> bool:
        if not self._current(job):
            return False
        number = (job.attempt.number if job.attempt else 0) + 1
        stored = {"cpu": plan.cpu, "memory": plan.memory}
        changes = {"version": job.version + 1, "attempt": number, "nodes": len(plan.nodes), "waiting": {}}
        self.jobs[job.id] |= changes
        attempt = {
            "job_id": job.id, "number": number, "state": "offered", "token_incarnation": token.incarnation,
            "token_number": token.number, "plan": stored, "created": now, "started": None, "ended": None,
            "code": "", "reason": "",
        }  # fmt: skip
        self.attempts[job.id, number] = attempt
        for placed in plan.nodes:
            run = runs[placed.rank]
            self.nodes[job.id, number, placed.rank] = {
                "job_id": job.id, "attempt": number, "rank": placed.rank, "executor_id": placed.executor,
                "state": "pending", "lease_until": now + run.lease_ttl, "created": now, "acknowledged": 0,
                "ready": None, "reached": None, "begun": None, "outcome": None, "published": None,
                "finished": None, "started": None, "ended": None, "code": "", "reason": "",
            }  # fmt: skip
            self._add_order(job.id, attempt, placed.rank, placed.executor, run, now)
        if job.state == "planning":
            self.jobs[job.id] |= state_row(job, "dispatching")
        self._done(job.id)
        return True

    def next_token(self, incarnation: int) -> FencingToken:
        number = int(self.meta.get("fence_number", "0")) + 1
        self.meta["fence_number"] = str(number)
        self._done()
        return FencingToken(incarnation=incarnation, number=number)

    def set_meta(self, key: str, value: str) -> None:
        self.meta[key] = value
        self._done()

    def wait(self, job_id: str, reasons: Mapping[str, str], *, held: bool = False) -> bool:
        row = self.jobs[job_id]
        values: Row = {"waiting": dict(reasons)} | ({"queued": None} if held else {})
        if all(row[name] == value for name, value in values.items()):
            return False
        if row["ended"] is None:
            row |= values
        self._done(job_id)
        return True

    def tell(self, reasons: Mapping[str, Mapping[str, str]]) -> None:
        for job, words in reasons.items():
            if self.jobs[job]["ended"] is None:
                self.jobs[job]["waiting"] = dict(words)
        self._done(*reasons)

    def request_stop(self, job_id: str, code: str, reason: str, now: float) -> None:
        row = self.jobs[job_id]
        if row["state"] in OUTCOMES or row["ending"] is not None:
            raise Conflict("the job has already ended")
        if row["stop_requested"] is None:
            row |= {"stop_requested": now, "stop_code": code, "stop_reason": reason}
            row["version"] += 1
        self._done(job_id)

    def note_blocked(self, job_id: str, words: str) -> None:
        if self.jobs[job_id]["ended"] is None:
            self.jobs[job_id]["publish_blocked"] = words
        self._done(job_id)

    def note_result(self, job_id: str, result: f.Result, artifacts: Sequence[Any]) -> None:
        if self.jobs[job_id]["ended"] is None:
            self.jobs[job_id] |= {
                "result_commit": result.commit, "result_outcome": result.outcome, "result_code": result.code,
                "result_reason": result.reason, "waiting": {},
            }  # fmt: skip
        self._done(job_id)

    def audit_restored(self, incarnation: int, now: float) -> None:
        """Nothing is decided by the audit log."""
