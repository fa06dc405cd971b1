"""Small things kept by kind and name: planned jobs, machines that are expected, preferences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from trainforge.sender import schema as s
from trainforge.sender.database import Database


class DocumentStore(Database):
    def put_document(self, kind: str, name: str, value: Mapping[str, Any], now: float) -> None:
        t = s.documents
        row = {"value": dict(value), "updated": now}
        with self.write() as c:
            put = self.insert(t).values(kind=kind, name=name, **row)
            c.execute(put.on_conflict_do_update(index_elements=["kind", "name"], set_=row))

    def document(self, kind: str, name: str) -> dict[str, Any] | None:
        return self.documents(kind, name).get(name)

    def documents(self, kind: str, name: str = "") -> dict[str, dict[str, Any]]:
        """All of a kind, by name; with a name, that one at most."""
        t = s.documents
        query = sa.select(t.c.name, t.c.value).where(t.c.kind == kind).order_by(t.c.name)
        if name:
            query = query.where(t.c.name == name)
        with self.read() as c:
            return {row.name: row.value for row in c.execute(query)}

    def drop_document(self, kind: str, name: str) -> bool:
        """Whether it was there."""
        t = s.documents
        with self.write() as c:
            return c.execute(sa.delete(t).where(t.c.kind == kind, t.c.name == name)).rowcount == 1

    def drop_documents(self, kind: str, before: float) -> None:
        """Those that were last written before a moment."""
        t = s.documents
        with self.write() as c:
            c.execute(sa.delete(t).where(t.c.kind == kind, t.c.updated < before))
