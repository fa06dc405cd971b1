"""Who belongs to this sender: join tokens, executors' keys and standing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, RowMapping

from trainforge.config.errors import Conflict, NotTrusted
from trainforge.config.messages import JoinRequest
from trainforge.config.trust import thumbprint
from trainforge.sender import schema as s
from trainforge.sender.database import Database
from trainforge.sender.store_audit import SENDER, record


@dataclass(frozen=True)
class Member:
    """An executor as the doors see it."""

    id: str
    name: str
    public_key: dict[str, str]
    endpoint: str
    revoked: bool
    pending: bool = False
    previous_key: dict[str, str] | None = None
    previous_until: float = 0.0

    def keys(self, now: float) -> dict[str, dict[str, str]]:
        """What it may sign with: its key, and while a change is under way the one before."""
        known = [self.public_key]
        if self.previous_key is not None and now < self.previous_until:
            known.append(self.previous_key)
        return {thumbprint(key): key for key in known}


def member_of(row: RowMapping) -> Member:
    return Member(
        id=row["id"],
        name=row["name"],
        public_key=row["public_key"],
        endpoint=row["endpoint"],
        revoked=row["revoked"] is not None,
        pending=row["pending"],
        previous_key=row["previous_key"],
        previous_until=row["previous_until"] or 0.0,
    )


# Made once, for it is part of most requests: making a query anew costs more than running it.
_E = s.executors.c
MEMBER = (
    _E.id,
    _E.name,
    _E.public_key,
    _E.endpoint,
    _E.revoked,
    _E.pending,
    _E.previous_key,
    _E.previous_until,
)
_MEMBER = sa.select(*MEMBER).where(_E.id == sa.bindparam("executor"))


class MemberStore(Database):
    # --- joining ----------------------------------------------------------------------------------------

    def add_join_token(
        self,
        digest: str,
        now: float,
        expires: float,
        *,
        approval: bool = False,
        ephemeral: bool = False,
        max_jobs: int | None = None,
        actor: str = SENDER,
    ) -> None:
        t = s.join_tokens
        kind = {"approval": approval, "ephemeral": ephemeral, "max_jobs": max_jobs}
        with self.write() as c:
            c.execute(sa.delete(t).where(t.c.expires < now - 86_400))
            c.execute(sa.insert(t).values(digest=digest, created=now, expires=expires, **kind))
            record(c, actor, "join_token.created", digest[:12], kind, now=now)

    def join(self, digest: str, executor: str, request: JoinRequest, now: float) -> bool:
        """Spend the token and note the executor, or neither; whether it has to be approved.

        Joining again with the same key renews it. The name of an executor that was removed is free.

        Raises:
            NotTrusted: the token is unknown, used or expired.
            Conflict: the name belongs to another executor.
        """
        with self.write() as c:
            token = self._spend(c, digest, executor, now)
            self._free_name(c, request.name, executor)
            values = {
                "name": request.name,
                "public_key": request.public_key,
                "capabilities": request.capabilities.model_dump(mode="json"),
                "joined": now,
                "last_seen": None,
                "revoked": None,
                "drained": False,
                "pending": token.approval,
                "ephemeral": token.ephemeral,
                "jobs_left": token.max_jobs,
                "previous_key": None,
            }
            new = self.insert(s.executors).values(id=executor, load={}, **values)
            c.execute(new.on_conflict_do_update(index_elements=["id"], set_=values))
            said = {"name": request.name, "token": digest[:12], "pending": bool(token.approval)}
            record(c, f"executor:{executor}", "executor.joined", executor, said, now=now)
        return bool(token.approval)

    @staticmethod
    def _spend(c: Connection, digest: str, executor: str, now: float) -> Any:
        t = s.join_tokens
        usable = sa.and_(t.c.digest == digest, t.c.used.is_(None), t.c.expires > now)
        spend = sa.update(t).where(usable).values(used=now, used_by=executor)
        token = c.execute(spend.returning(t.c.approval, t.c.ephemeral, t.c.max_jobs)).first()
        if token is None:
            raise NotTrusted(
                "this join token is unknown, used or expired",
                hint="`trainforge sender token` prints a new one",
            )
        return token

    @staticmethod
    def _free_name(c: Connection, name: str, executor: str) -> None:
        t = s.executors
        other = c.execute(sa.select(t.c.id, t.c.revoked).where(t.c.name == name, t.c.id != executor)).first()
        if other is None:
            return
        if other.revoked is None:
            free = f"`trainforge executor remove {name}`"
            raise Conflict(
                f"another executor is called {name}",
                hint=f"join with another --name, or free this one: {free}",
            )
        former = f"{name[:45]}-{other.id}"
        c.execute(sa.update(t).where(t.c.id == other.id).values(name=former))

    # --- standing ---------------------------------------------------------------------------------------

    def member(self, executor: str) -> Member | None:
        with self.ask() as c:
            row = c.execute(_MEMBER, {"executor": executor}).mappings().first()
        return None if row is None else member_of(row)

    def executor_ids(self) -> dict[str, str]:
        """The id of every executor by its name."""
        with self.read() as c:
            rows = c.execute(sa.select(s.executors.c.name, s.executors.c.id)).all()
        return {row.name: row.id for row in rows}

    def approve(self, executor: str, now: float, actor: str = SENDER) -> bool:
        """Let it have work; whether it waited for that."""
        t = s.executors
        waits = sa.and_(t.c.id == executor, t.c.pending, t.c.revoked.is_(None))
        with self.write() as c:
            row = c.execute(sa.update(t).where(waits).values(pending=False).returning(t.c.public_key)).first()
            if row is not None:
                detail = {"fingerprint": thumbprint(row.public_key)}
                record(c, actor, "executor.approved", executor, detail, now=now)
        return row is not None

    def change_key(self, executor: str, key: dict[str, str], now: float, until: float) -> float:
        """A new key for the same executor; until when the old one is good, too. Repeating changes nothing.

        Raises:
            Conflict: the key is another executor's.
        """
        t = s.executors
        with self.write() as c:
            row = c.execute(sa.select(t).where(t.c.id == executor)).mappings().one()
            if row["public_key"] == key:
                return float(row["previous_until"] or now)
            others = c.execute(sa.select(t.c.public_key).where(t.c.id != executor)).scalars()
            if any(other == key for other in others):
                raise Conflict("this key is another executor's", hint="make a key for this executor alone")
            values = {"public_key": key, "previous_key": row["public_key"], "previous_until": until}
            c.execute(sa.update(t).where(t.c.id == executor).values(values))
            detail = {"fingerprint": thumbprint(key), "before": thumbprint(row["public_key"])}
            record(c, f"executor:{executor}", "executor.key_changed", executor, detail, now=now)
        return until

    def revoke(
        self, executor: str, now: float, actor: str = SENDER, action: str = "executor.removed"
    ) -> bool:
        """Refuse it from now on, and its passwords for git. One that came for a while leaves no trace."""
        t, n, passwords = s.executors, s.nodes, s.job_credentials
        with self.write() as c:
            gone = sa.update(t).where(t.c.id == executor, t.c.revoked.is_(None))
            row = c.execute(gone.values(revoked=now, endpoint="").returning(t.c.name, t.c.ephemeral)).first()
            if row is None:
                return False
            c.execute(sa.delete(passwords).where(passwords.c.executor_id == executor))
            if row.ephemeral:
                worked = sa.exists().where(n.c.executor_id == executor)
                c.execute(sa.delete(t).where(t.c.id == executor, ~worked))
            record(c, actor, action, executor, {"name": row.name}, now=now)
        return True

    def gone_visitors(self, heard_before: float) -> list[str]:
        """Executors that came for a while and were not heard of since a moment."""
        t = s.executors
        silent = sa.func.coalesce(t.c.last_seen, t.c.joined) < heard_before
        query = sa.select(t.c.id).where(t.c.ephemeral, t.c.revoked.is_(None), silent)
        with self.read() as c:
            return list(c.execute(query).scalars())

    def drain(self, executor: str, drained: bool, now: float, actor: str = SENDER) -> bool:
        """Keep new jobs from this executor, or let them come again; whether it is one of ours."""
        t = s.executors
        with self.write() as c:
            ours = sa.update(t).where(t.c.id == executor, t.c.revoked.is_(None))
            done = c.execute(ours.values(drained=drained)).rowcount == 1
            if done:
                record(c, actor, "executor.drained" if drained else "executor.undrained", executor, now=now)
        return done
