"""The model store's executors, deadlines and journals."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from simulator.rows import Row, Tables
from trainforge.config.errors import Forbidden
from trainforge.config.messages import FencingToken, Heartbeat, JournalBatch, NodeKey, Order
from trainforge.sender import facts as f
from trainforge.sender.fit import Machine, Running
from trainforge.sender.intake import fresh_records, read_records
from trainforge.sender.store_journal import Stored


class MemberRows(Tables):
    # --- executors --------------------------------------------------------------------------------------

    def add_executor(self, executor: str, name: str, capabilities: Any, now: float) -> None:
        self.executors[executor] = {
            "name": name, "capabilities": capabilities, "last_seen": None, "draining": False, "revoked": None,
        }  # fmt: skip

    def revoke(self, executor: str, now: float) -> bool:
        row = self.executors[executor]
        if row["revoked"] is not None:
            return False
        row["revoked"] = now
        self._done(*self.jobs)
        return True

    def heartbeat(
        self, executor: str, beat: Heartbeat, now: float, lease_ttl: float
    ) -> tuple[list[NodeKey], bool]:
        row = self.executors[executor]
        was_away = row["last_seen"] is None or now - row["last_seen"] > lease_ttl
        changed = was_away or row["draining"] != beat.draining
        row |= {"last_seen": now, "draining": beat.draining}
        unknown = [key for key in beat.nodes if not self._renew(executor, key, now + lease_ttl)]
        self._done(*{key.job for key in beat.nodes})
        return unknown, changed

    def _renew(self, executor: str, key: NodeKey, until: float) -> bool:
        node = self.nodes.get((key.job, key.attempt, key.rank))
        if node is None or node["executor_id"] != executor:
            return False
        if self.attempts[key.job, key.attempt]["state"] not in f.LIVE:
            return False
        node["lease_until"] = until
        return True

    def machines(self, now: float, online_for: float) -> list[Machine]:
        running: dict[str, list[Running]] = defaultdict(list)
        for key, node in sorted(self.nodes.items()):
            attempt = self.attempts[key[:2]]
            if node["ended"] is None and attempt["state"] in f.LIVE:
                plan = attempt["plan"]
                running[node["executor_id"]].append(Running(key[0], (), plan["cpu"], int(plan["memory"])))
        return [
            Machine(
                id=name, name=row["name"], capabilities=row["capabilities"],
                online=row["last_seen"] is not None
                and now - row["last_seen"] <= online_for
                and not row["draining"],
                revoked=row["revoked"] is not None, running=tuple(running[name]),
            )
            for name, row in sorted(self.executors.items())
        ]  # fmt: skip

    def open_orders(self, executor: str) -> list[Order]:
        rows = [
            row for row in self.orders.values() if row["executor_id"] == executor and row["closed"] is None
        ]
        return [self._order(row) for row in sorted(rows, key=lambda row: (row["created"], row["id"]))]

    def _order(self, row: Row) -> Order:
        attempt = self.attempts[row["job_id"], row["attempt"]]
        token = FencingToken(incarnation=attempt["token_incarnation"], number=attempt["token_number"])
        key = NodeKey(job=row["job_id"], attempt=row["attempt"], rank=row["rank"])
        return Order.model_construct(id=row["id"], node=key, token=token, body=row["body"])

    def accept_orders(
        self, executor: str, ids: Iterable[str], now: float, lease_ttl: float
    ) -> list[tuple[str, str]]:
        accepted = []
        for name in ids:
            row = self.orders.get(name)
            if row is None or row["executor_id"] != executor or row["closed"] is not None:
                continue
            row |= {"accepted": now, "closed": now}
            accepted.append((row["job_id"], name))
            node = self.nodes[row["job_id"], row["attempt"], row["rank"]]
            if row["kind"] == "run" and node["ended"] is None:
                node |= {"state": "running", "started": now, "lease_until": now + lease_ttl}
        self._done(*{job for job, _ in accepted})
        return accepted

    def refuse_order(self, executor: str, order: str, why: str, now: float) -> str:
        row = self.orders.get(order)
        if row is None or row["executor_id"] != executor or row["closed"] is not None:
            return ""
        row |= {"refused": why or "refused", "closed": now}
        self._done(row["job_id"])
        return str(row["job_id"])

    def close_order(self, executor: str, order: str, now: float) -> None:
        row = self.orders.get(order)
        if row is not None and row["executor_id"] == executor and row["closed"] is None:
            row["closed"] = now
            self._done(row["job_id"])

    # --- deadlines --------------------------------------------------------------------------------------

    def _at_work(self) -> list[Row]:
        return [
            node
            for key, node in self.nodes.items()
            if (node["ended"] is None or node["published"] is None)
            and self.attempts[key[:2]]["state"] in f.LIVE
        ]

    def renew_leases(self, until: float) -> None:
        for node in self._at_work():
            node["lease_until"] = until
        self._done(*self.jobs)

    def move_deadlines(self, by: float, now: float, lease_ttl: float) -> None:
        ahead = max(by, 0.0)
        for node in self._at_work():
            node["lease_until"] = min(node["lease_until"] + ahead, now + lease_ttl)
            node["created"] = min(node["created"] + ahead, now)
        unfinished = {job for job, row in self.jobs.items() if row["ended"] is None}
        rows = [self.jobs[job] for job in unfinished]
        ended = [row for key, row in self.attempts.items() if key[0] in unfinished]
        for some, column in ((rows, "queued"), (ended, "ended"), (self.executors.values(), "last_seen")):
            for row in some:
                if row[column] is not None:
                    row[column] = min(row[column] + ahead, now)
        self._done(*self.jobs)

    # --- journals ---------------------------------------------------------------------------------------

    def check_node(self, executor: str, key: NodeKey) -> Row:
        node = self.nodes.get((key.job, key.attempt, key.rank))
        if node is None or node["executor_id"] != executor:
            raise Forbidden(f"node {key} is not yours")
        return node

    def append_journal(
        self, executor: str, key: NodeKey, batch: JournalBatch, now: float, lease_ttl: float
    ) -> Stored:
        node = self.check_node(executor, key)
        fresh = fresh_records(batch, node["acknowledged"])
        intake = read_records(fresh) if fresh else None
        attempt = self.attempts[key.job, key.attempt]
        own = FencingToken(incarnation=attempt["token_incarnation"], number=attempt["token_number"])
        newest = self.jobs[key.job]["attempt"] == key.attempt
        f.may_speak(batch.token, own, attempt["state"], newest=newest)
        node["lease_until"] = now + lease_ttl
        if intake is None or not fresh:
            self._done(key.job)
            return Stored(node["acknowledged"])
        if node["started"] is None:
            node |= {"started": now, "state": "running"}
        first = node["acknowledged"] == 0
        node |= {"acknowledged": fresh[-1].n, **intake.node}
        self.lines.setdefault((key.job, key.attempt, key.rank), []).extend(
            line["text"] for line in intake.lines
        )
        if intake.waiting is not None and self.jobs[key.job]["ended"] is None:
            self.jobs[key.job]["waiting"] = {"remote": intake.waiting}
        if first:
            token = f"{own.incarnation}-{own.number}"
            row = self.orders[f"{key.job}.{key.attempt}.{key.rank}.{token}.run"]
            if row["closed"] is None:
                row |= {"accepted": now, "closed": now}
        self._done(key.job)
        return Stored(fresh[-1].n, intake)
