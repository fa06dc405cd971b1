"""What comments on GitHub asked for: written before it is done, done before it is answered, each once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from trainforge.sender.database import Database
from trainforge.sender.schema_reports import github_commands

MOST_OPEN = 50  # of one repository; more are not taken on
KEEP_S = 90 * 86_400.0


@dataclass(frozen=True)
class Asked:
    """One command in a comment. `acted`: it was done or refused, and `reaction` and `answer` say how."""

    repository_id: str
    comment_id: int
    number: int
    author: str
    words: str
    acted: bool = False
    reaction: str = ""
    answer: str = ""
    tries: int = 0


class CommandStore(Database):
    def add_command(self, asked: Asked, now: float) -> bool:
        """Whether it is taken on: a comment counts once, and so many wait for an answer at most."""
        t = github_commands
        waiting = sa.select(sa.func.count()).where(
            t.c.repository_id == asked.repository_id, t.c.answered.is_(None)
        )
        row = {
            "repository_id": asked.repository_id, "comment_id": asked.comment_id, "number": asked.number,
            "author": asked.author, "words": asked.words, "created": now,
        }  # fmt: skip
        with self.write() as c:
            c.execute(sa.delete(t).where(t.c.answered < now - KEEP_S))
            if c.execute(waiting).scalar_one() >= MOST_OPEN:
                return False
            return self.add_new(c, t, row)

    def open_commands(self, now: float) -> Sequence[Asked]:
        t = github_commands
        query = sa.select(t).where(t.c.answered.is_(None), t.c.due <= now).order_by(t.c.created)
        with self.read() as c:
            rows = c.execute(query.limit(MOST_OPEN)).mappings().all()
        names = ("repository_id", "comment_id", "number", "author", "words", "reaction", "answer", "tries")
        return [Asked(**{name: row[name] for name in names}, acted=row["acted"] is not None) for row in rows]

    def acted_on(self, asked: Asked, reaction: str, answer: str, now: float) -> None:
        """What was done is written with what there is to say about it."""
        self._change_command(asked, acted=now, reaction=reaction, answer=answer)

    def answered(self, asked: Asked, now: float) -> None:
        self._change_command(asked, answered=now)

    def rest_command(self, asked: Asked, until: float) -> None:
        self._change_command(asked, due=until, tries=github_commands.c.tries + 1)

    def _change_command(self, asked: Asked, **values: object) -> None:
        t = github_commands
        mine = (t.c.repository_id == asked.repository_id, t.c.comment_id == asked.comment_id)
        with self.write() as c:
            c.execute(sa.update(t).where(*mine).values(values))
