"""Secrets as they are kept: encrypted values, and who set them for which repository."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from trainforge.config.errors import Unreachable
from trainforge.config.messages import FencingToken, NodeKey
from trainforge.sender import schema_trust as s
from trainforge.sender.schema import documents
from trainforge.sender.store_audit import record
from trainforge.sender.store_journal import JournalStore

OWN = "sealed"  # the kind of document that holds what the sender keeps for itself


@dataclass(frozen=True)
class StoredSecret:
    """`branches` are globs of the branches whose jobs get it; none is the default branch alone."""

    repository_id: str
    name: str
    sealed: str
    branches: list[str]
    changed: float
    by: str


class SecretStore(JournalStore):
    def put_secret(self, secret: StoredSecret, actor: str) -> None:
        t = s.secrets
        row = {
            "sealed": secret.sealed,
            "branches": secret.branches,
            "changed": secret.changed,
            "by": secret.by,
        }
        key = {"repository_id": secret.repository_id, "name": secret.name}
        with self.write() as c:
            put = self.insert(t).values(**key, **row)
            c.execute(put.on_conflict_do_update(index_elements=list(key), set_=row))
            detail = {"repository": secret.repository_id, "branches": secret.branches}
            record(c, actor, "secret.set", secret.name, detail, now=secret.changed)

    def drop_secret(self, repository_id: str, name: str, actor: str, now: float) -> bool:
        """Whether it was there."""
        t = s.secrets
        with self.write() as c:
            gone = c.execute(
                sa.delete(t).where(t.c.repository_id == repository_id, t.c.name == name)
            ).rowcount
            if gone:
                record(c, actor, "secret.removed", name, {"repository": repository_id}, now=now)
        return gone == 1

    def secrets(self, repository_id: str = "") -> list[StoredSecret]:
        t = s.secrets
        query = sa.select(t).order_by(t.c.repository_id, t.c.name)
        if repository_id:
            query = query.where(t.c.repository_id == repository_id)
        with self.read() as c:
            return [StoredSecret(**row) for row in c.execute(query).mappings()]

    def reseal_secrets(self, again: Callable[[StoredSecret], str], actor: str, now: float) -> int:
        """Replace what is kept of every secret, all or none; how many there are."""
        t = s.secrets
        with self.write() as c:
            rows = [StoredSecret(**row) for row in c.execute(sa.select(t)).mappings()]
            for row in rows:
                where = (t.c.repository_id == row.repository_id, t.c.name == row.name)
                c.execute(sa.update(t).where(*where).values(sealed=again(row)))
            self._reseal_own(c, again, now)
            record(c, actor, "secrets.key_rotated", "", {"secrets": len(rows)}, now=now)
        return len(rows)

    @staticmethod
    def _reseal_own(c: Connection, again: Callable[[StoredSecret], str], now: float) -> None:
        """What the sender keeps for itself (`sealed.py`)."""
        t = documents
        for row in c.execute(sa.select(t.c.name, t.c.value).where(t.c.kind == OWN)).all():
            sealed = again(StoredSecret(OWN, row.name, row.value["sealed"], [], now, ""))
            where = (t.c.kind == OWN, t.c.name == row.name)
            c.execute(sa.update(t).where(*where).values(value={"sealed": sealed}, updated=now))

    def check_holder(self, executor: str, key: NodeKey, token: FencingToken, now: float) -> None:
        """The executor holds the node's lease now, with the attempt's own token.

        Raises:
            Forbidden: the node is not this executor's. Conflict: the token is not the attempt's, or it was
            given up. Unreachable: the lease has run out; after a heartbeat it holds again.
        """
        node = self.check_node(executor, key)
        with self.read() as c:
            self._check_token(c, key, token)
        if node["lease_until"] < now:
            raise Unreachable("the lease has run out", hint="send a heartbeat first")


def branch_words(branches: Sequence[Any]) -> str:
    return ", ".join(map(str, branches)) or "the default branch"
