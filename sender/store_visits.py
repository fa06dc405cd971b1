"""Executors' requests as the database sees them: each proof counts once, and a heartbeat renews leases.

Many are let in by one transaction, for a fleet says much more often that it is there than anything else.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, RowMapping

from trainforge.config.messages import Heartbeat, NodeKey
from trainforge.sender import schema as s
from trainforge.sender.facts import LIVE
from trainforge.sender.store_members import MEMBER, Member, MemberStore, member_of

CLEAR_EVERY_S = 10.0


@dataclass(frozen=True)
class Visit:
    """A request that its signature proves; `beat` is what a heartbeat says."""

    executor: str
    jti: str
    expires: float
    beat: Heartbeat | None = None


@dataclass(frozen=True)
class Admitted:
    """What a request led to. Of a heartbeat: the nodes it names that are not this executor's any more,
    and whether what the planner looks at has changed."""

    unknown: tuple[NodeKey, ...] = ()
    changed: bool = False


# Made once, for they are part of every request: making a query anew costs more than running it.
_E, _P = s.executors.c, s.proofs.c
_EXECUTOR: sa.BindParameter[str] = sa.bindparam("executor")
_EXECUTORS: sa.BindParameter[list[str]] = sa.bindparam("executors", expanding=True)
_MEMBERS = sa.select(*MEMBER).where(_E.id.in_(_EXECUTORS))
_USED = sa.select(_P.executor_id, _P.jti).where(
    _P.executor_id.in_(_EXECUTORS), _P.jti.in_(sa.bindparam("jtis", expanding=True))
)
_NEW_PROOF = sa.insert(s.proofs)
_OLD_PROOFS = sa.delete(s.proofs).where(_P.expires < sa.bindparam("now"))
_BEFORE = sa.select(_E.id, _E.capabilities, _E.draining, _E.last_seen, _E.endpoint, _E.endpoint_seq).where(
    _E.id.in_(_EXECUTORS)
)
_BEAT = sa.update(s.executors).where(_E.id == _EXECUTOR)
_LIVE_ATTEMPT = sa.exists().where(
    s.attempts.c.job_id == s.nodes.c.job_id,
    s.attempts.c.number == s.nodes.c.attempt,
    s.attempts.c.state.in_(LIVE),
)
_RENEW = sa.update(s.nodes).where(
    s.nodes.c.job_id == sa.bindparam("job"),
    s.nodes.c.attempt == sa.bindparam("number"),
    s.nodes.c.rank == sa.bindparam("node"),
    s.nodes.c.executor_id == _EXECUTOR,
    _LIVE_ATTEMPT,
)


class VisitStore(MemberStore):
    _cleared = 0.0  # when proofs that had expired were last removed

    def members(self, executors: Iterable[str]) -> dict[str, Member]:
        """Those of these executors that have joined."""
        with self.ask() as c:
            rows = c.execute(_MEMBERS, {"executors": sorted(set(executors))}).mappings().all()
        return {row["id"]: member_of(row) for row in rows}

    def admit(self, visits: Sequence[Visit], now: float, lease_ttl: float) -> list[Admitted | None]:
        """Remember the proofs, and take what heartbeats say; None for a proof that was used before.

        Of each executor at most one heartbeat.
        """
        with self.write() as c:
            first = self._first_uses(c, visits, now)
            beats = {v.executor: v.beat for v, new in zip(visits, first, strict=True) if new and v.beat}
            told = self._take_beats(c, beats, now, lease_ttl) if beats else {}
        nothing = Admitted()
        return [
            (told[visit.executor] if visit.beat else nothing) if new else None
            for visit, new in zip(visits, first, strict=True)
        ]

    def _first_uses(self, c: Connection, visits: Sequence[Visit], now: float) -> list[bool]:
        """Which of these proofs are used for the first time; they are remembered until they have expired."""
        if not 0 <= now - self._cleared < CLEAR_EVERY_S:
            c.execute(_OLD_PROOFS, {"now": now})
            self._cleared = now
        asked = {"executors": [visit.executor for visit in visits], "jtis": [visit.jti for visit in visits]}
        known = {(row.executor_id, row.jti) for row in c.execute(_USED, asked)}
        first, new = [], []
        for visit in visits:
            key = (visit.executor, visit.jti)
            first.append(key not in known)
            if first[-1]:
                known.add(key)
                new.append({"executor_id": visit.executor, "jti": visit.jti, "expires": visit.expires})
        if new:
            c.execute(_NEW_PROOF, new)
        return first

    def _take_beats(
        self, c: Connection, beats: Mapping[str, Heartbeat], now: float, lease_ttl: float
    ) -> dict[str, Admitted]:
        before = {row["id"]: row for row in c.execute(_BEFORE, {"executors": sorted(beats)}).mappings()}
        alike: dict[tuple[str, ...], list[dict[str, Any]]] = defaultdict(list)
        told = {}
        for executor, beat in sorted(beats.items()):
            if (old := before.get(executor)) is None:  # a visitor that has been forgotten just now
                told[executor] = Admitted(tuple(beat.nodes))
                continue
            values, changed = _news(beat, old, now, lease_ttl)
            alike[tuple(values)].append({"executor": executor, **values})
            lost = (key for key in beat.nodes if not self._renew(c, executor, key, now + lease_ttl))
            told[executor] = Admitted(tuple(lost), changed)
        for rows in alike.values():
            c.execute(_BEAT, rows)
        return told

    def _renew(self, c: Connection, executor: str, key: NodeKey, until: float) -> bool:
        node = {"job": key.job, "number": key.attempt, "node": key.rank, "executor": executor}
        return c.execute(_RENEW, {**node, "lease_until": until}).rowcount == 1


def _news(beat: Heartbeat, old: RowMapping, now: float, lease_ttl: float) -> tuple[dict[str, Any], bool]:
    """What a heartbeat changes of its executor's row, and whether the planner is to know."""
    said = beat.capabilities.model_dump(mode="json")
    values: dict[str, Any] = {
        "last_seen": now,
        "load": beat.load.model_dump(mode="json"),
        "draining": beat.draining,
    }
    if said != old["capabilities"]:
        values["capabilities"] = said
    address = {"endpoint": beat.endpoint, "endpoint_seq": beat.endpoint_seq}
    if _newer_endpoint(beat, old) and any(old[name] != value for name, value in address.items()):
        values |= address
    same = old["draining"] == beat.draining and _lasting(old["capabilities"]) == _lasting(said)
    was_away = old["last_seen"] is None or now - old["last_seen"] > lease_ttl
    return values, was_away or not same


def _newer_endpoint(beat: Heartbeat, old: RowMapping) -> bool:
    """An address counts once its number is higher; having none any more is true at once."""
    if beat.endpoint and old["endpoint"] not in {"", beat.endpoint}:
        return bool(beat.endpoint_seq > old["endpoint_seq"])
    return not beat.endpoint or bool(beat.endpoint_seq >= old["endpoint_seq"])


def _lasting(capabilities: Mapping[str, Any]) -> dict[str, Any]:
    """What of them does not change all the time by itself."""
    return {key: value for key, value in capabilities.items() if key != "disk_free_bytes"}
