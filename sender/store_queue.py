"""The queue as the database has it: which jobs have not ended, and what those that wait are told."""

from __future__ import annotations

from collections.abc import Mapping

import sqlalchemy as sa

from trainforge.sender import schema as s
from trainforge.sender.database import Database


class QueueStore(Database):
    def versions(self) -> dict[str, int]:
        """The version of every job that has not ended: higher priority first, then older."""
        t = s.jobs
        query = sa.select(t.c.id, t.c.version).where(t.c.ended.is_(None))
        with self.read() as c:
            rows = c.execute(query.order_by(t.c.priority.desc(), t.c.created, t.c.id)).all()
        return {row.id: row.version for row in rows}

    def tell(self, reasons: Mapping[str, Mapping[str, str]]) -> None:
        """Note why these jobs wait."""
        t = s.jobs
        mine = sa.update(t).where(t.c.id == sa.bindparam("job"), t.c.ended.is_(None))
        rows = [{"job": job, "words": dict(words)} for job, words in reasons.items()]
        with self.write() as c:
            c.execute(mine.values(waiting=sa.bindparam("words", type_=t.c.waiting.type)), rows)
