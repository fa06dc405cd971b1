"""Who did what: rows that are only ever added, each with a hash over itself and the row before it.

`record` is called inside the transaction of what it tells about, so that neither is kept without the other.
The hashes are noted in a file beside the sender's key as well (`Database.write` does so once they are
committed): who can change the database alone cannot make a changed history look whole.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, RowMapping

from trainforge.sender import schema_trust as s
from trainforge.sender.database import AUDITED, Database

SENDER = "sender"  # the actor of what nobody asked for
_LOCK = 724838
_HEAD_LINE = re.compile(r"(\d{1,18}) ([0-9a-f]{64})")
_BATCH = 1000


def record(
    c: Connection,
    actor: str,
    action: str,
    subject: str = "",
    detail: Mapping[str, Any] | None = None,
    *,
    now: float,
) -> None:
    """Note that `actor` did `action` to `subject`; `detail` is JSON and never holds a secret.

    Actors are `sender`, `executor:<id>`, or `person:<name>`; actions are `<what>.<done>`, such as
    `executor.removed`, `token.created`, `secret.set`, `job.stopped`, `login`.
    """
    if c.dialect.name == "postgresql":  # one row after the other; SQLite has one writer anyway
        c.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK})")
    t = s.audit
    last = c.execute(sa.select(t.c.n, t.c.hash).order_by(t.c.n.desc()).limit(1)).first()
    row = {
        "n": last.n + 1 if last else 1,
        "time": float(now),
        "actor": actor,
        "action": action,
        "subject": subject,
        "detail": dict(detail or {}),
    }
    digest = _digest(last.hash if last else "", row)
    c.execute(sa.insert(t).values(**row, hash=digest))
    c.info.setdefault(AUDITED, []).append(f"{row['n']} {digest}\n")


@dataclass(frozen=True)
class Verdict:
    """What checking the audit log found. `problems` name rows; `head` is worth keeping elsewhere."""

    rows: int
    head: str
    problems: tuple[str, ...] = ()


class AuditStore(Database):
    def audit(
        self,
        actor: str,
        action: str,
        subject: str = "",
        detail: Mapping[str, Any] | None = None,
        *,
        now: float,
    ) -> None:
        """`record` in a transaction of its own: for what changes nothing in the database."""
        with self.write() as c:
            record(c, actor, action, subject, detail, now=now)

    def audit_rows(self, *, before: int = 0, limit: int = 100) -> list[RowMapping]:
        """The newest first; with `before`, older than that row."""
        t = s.audit
        query = sa.select(t).order_by(t.c.n.desc()).limit(limit)
        with self.read() as c:
            return list(c.execute(query.where(t.c.n < before) if before else query).mappings())

    def verify_audit(self, head: str = "") -> Verdict:
        """Check every row against the one before it, the file of hashes and, if given, an older `head`."""
        hashes: list[str] = []
        problems = []
        for row in self._all_audit_rows():
            expected = len(hashes) + 1
            if row["n"] != expected:
                problems.append(_missing(expected, row["n"] - 1))
                hashes.extend("" for _ in range(expected, row["n"]))
            elif row["hash"] != _digest(hashes[-1] if hashes else "", dict(row)):
                problems.append(f"row {row['n']} was changed, or the row before it")
            hashes.append(row["hash"])
        noted = self._noted()
        problems += _compare(hashes, noted, "the hash noted beside the database")
        if hashes and not noted:
            problems.append(f"{self.audit_heads} does not hold the hashes that were noted")
        if head:
            said = _HEAD_LINE.fullmatch(head.replace(":", " ", 1))
            if said is None:
                problems.append("the given head is not of the form NUMBER:HASH")
            else:
                problems += _compare(hashes, {(int(said[1]), said[2])}, "the given head")
        last = f"{len(hashes)}:{hashes[-1]}" if hashes else ""
        return Verdict(len(hashes), last, tuple(dict.fromkeys(problems)))

    def _all_audit_rows(self) -> Iterator[RowMapping]:
        """In batches, each its own read: the log may be long, and rows do not change."""
        t, after = s.audit, -1
        while True:
            query = sa.select(t).where(t.c.n > after).order_by(t.c.n).limit(_BATCH)
            with self.read() as c:
                rows = c.execute(query).mappings().all()
            yield from rows
            if len(rows) < _BATCH:
                return
            after = rows[-1]["n"]

    def audit_restored(self, incarnation: int, now: float) -> None:
        """The database was set back to an older copy: what was noted of its future is kept aside."""
        if self.audit_heads is not None and self.audit_heads.exists():
            self.audit_heads.rename(
                self.audit_heads.with_name(f"{self.audit_heads.name}.before-{incarnation}")
            )
        self.audit(SENDER, "database.restored", "", {"incarnation": incarnation}, now=now)

    def _noted(self) -> set[tuple[int, str]]:
        """What the file says; a line that was cut off by a crash says nothing."""
        if self.audit_heads is None or not self.audit_heads.exists():
            return set()
        lines = self.audit_heads.read_text(errors="replace").splitlines()
        found = (_HEAD_LINE.fullmatch(line) for line in lines)
        return {(int(line[1]), line[2]) for line in found if line}


def _digest(previous: str, row: Mapping[str, Any]) -> str:
    said = [previous, *(row[name] for name in ("n", "time", "actor", "action", "subject", "detail"))]
    text = json.dumps(said, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _compare(hashes: list[str], noted: set[tuple[int, str]], what: str) -> list[str]:
    problems = []
    gone = sorted(n for n, _ in noted if n > len(hashes))
    if gone:
        problems.append(_missing(gone[0], gone[-1]))
    for n, digest in sorted(noted):
        if 0 < n <= len(hashes) and hashes[n - 1] not in ("", digest):
            problems.append(f"row {n} differs from {what}: it was written anew")
    return problems


def _missing(first: int, last: int) -> str:
    return f"row {first} is missing" if first == last else f"rows {first} to {last} are missing"
