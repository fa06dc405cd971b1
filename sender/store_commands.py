"""What was asked for on GitHub: written before it is done, done before it is answered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from trainforge.sender.schema_reports import github_commands
from trainforge.sender.store_events import EventStore, NewEvent, NewJob

MOST_OPEN = 50  # of one repository; more are not taken on
KEEP_S = 90 * 86_400.0
# What `Asked.origin` begins with, by where it was asked.
COMMENT, BUTTON, SUITE, DISPATCH = "comment", "button", "suite", "dispatch"


@dataclass(frozen=True)
class Asked:
    """One command: of a comment at the pull request `number`, of a button of `job`, or for a commit's jobs.

    `origin` tells it from every other. `words` are the command; of a suite the commit, of a dispatch the
    request as JSON. `acted`: it was done or refused; `reaction` and `answer` say how.
    """

    repository_id: str
    origin: str
    author: str
    words: str
    comment_id: int | None = None
    number: int | None = None
    job: str = ""
    acted: bool = False
    reaction: str = ""
    answer: str = ""

    @property
    def kind(self) -> str:
        return self.origin.partition(":")[0]


class CommandStore(EventStore):
    def add_command(self, asked: Asked, now: float) -> bool:
        """Whether it is taken on: a command counts once, and so many wait for an answer at most."""
        t = github_commands
        waiting = sa.select(sa.func.count()).where(
            t.c.repository_id == asked.repository_id, t.c.answered.is_(None)
        )
        row = {
            "repository_id": asked.repository_id, "origin": asked.origin, "author": asked.author,
            "words": asked.words, "comment_id": asked.comment_id, "number": asked.number, "job": asked.job,
            "created": now,
        }  # fmt: skip
        with self.write() as c:
            c.execute(sa.delete(t).where(t.c.answered < now - KEEP_S))
            if c.execute(waiting).scalar_one() >= MOST_OPEN:
                return False
            return self.add_new(c, t, row)

    def open_commands(self, repository_id: str, now: float) -> Sequence[Asked]:
        """What is to be done or answered now, in the order in which it was asked for."""
        t = github_commands
        mine = (t.c.repository_id == repository_id, t.c.answered.is_(None), t.c.due <= now)
        query = sa.select(t).where(*mine).order_by(t.c.created, t.c.origin)
        with self.read() as c:
            rows = c.execute(query.limit(MOST_OPEN)).mappings().all()
        names = (
            "repository_id", "origin", "author", "words", "comment_id", "number", "job", "reaction", "answer",
        )  # fmt: skip
        return [Asked(**{name: row[name] for name in names}, acted=row["acted"] is not None) for row in rows]

    def acted_on(self, asked: Asked, reaction: str, answer: str, now: float) -> None:
        """What was done is written with what there is to say about it."""
        self._change_command(asked, acted=now, reaction=reaction, answer=answer)

    def record_asked(self, asked: Asked, event: NewEvent, jobs: list[NewJob], now: float) -> bool:
        """What came of a command, with its jobs, at once with that it was done; whether it was not before."""
        t = github_commands
        mine = (t.c.repository_id == asked.repository_id, t.c.origin == asked.origin, t.c.acted.is_(None))
        with self.write() as c:
            if c.execute(sa.update(t).where(*mine).values(acted=now, answered=now)).rowcount == 0:
                return False
            self._add_event(c, event, jobs, now)
            return True

    def answered(self, asked: Asked, now: float) -> None:
        self._change_command(asked, answered=now)

    def _change_command(self, asked: Asked, **values: object) -> None:
        t = github_commands
        mine = (t.c.repository_id == asked.repository_id, t.c.origin == asked.origin)
        with self.write() as c:
            c.execute(sa.update(t).where(*mine).values(values))
