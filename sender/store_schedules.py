"""The manifests that run at times: what is known of them, and which time has led to jobs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from trainforge.sender import schema as s
from trainforge.sender.store_events import EventStore, NewEvent, NewJob


@dataclass(frozen=True)
class Schedule:
    """A manifest at the newest commit known of its default branch; `handled` is the last time dealt with."""

    repository_id: str
    manifest_path: str
    ref: str
    commit: str
    crons: tuple[str, ...]
    handled: float


class ScheduleStore(EventStore):
    def schedules(self, repository_id: str = "") -> list[Schedule]:
        t = s.schedules
        query = sa.select(t).order_by(t.c.repository_id, t.c.manifest_path)
        if repository_id:
            query = query.where(t.c.repository_id == repository_id)
        with self.read() as c:
            return [Schedule(**{**row, "crons": tuple(row["crons"])}) for row in c.execute(query).mappings()]

    def scheduled_commit(self, repository_id: str) -> str:
        """The commit whose manifests were last asked for their times."""
        t = s.repositories
        with self.read() as c:
            return str(c.execute(sa.select(t.c.scheduled).where(t.c.id == repository_id)).scalar() or "")

    def note_schedules(
        self, repository_id: str, ref: str, commit: str, crons: Mapping[str, Sequence[str]], now: float
    ) -> None:
        """What a commit's manifests say of times, by path. Times that are new count from now on."""
        t, r = s.schedules, s.repositories
        known = {schedule.manifest_path: schedule for schedule in self.schedules(repository_id)}
        with self.write() as c:
            c.execute(sa.delete(t).where(t.c.repository_id == repository_id))
            for path, times in crons.items():
                old = known.get(path)
                same = old is not None and old.crons == tuple(times)
                c.execute(
                    sa.insert(t).values(
                        repository_id=repository_id,
                        manifest_path=path,
                        ref=ref,
                        commit=commit,
                        crons=list(times),
                        handled=old.handled if old is not None and same else now,
                    )
                )
            c.execute(sa.update(r).where(r.c.id == repository_id).values(scheduled=commit))

    def record_slot(
        self, schedule: Schedule, slot: float, event: NewEvent, jobs: list[NewJob], now: float
    ) -> bool:
        """Mark a time as handled, with its event and jobs, at once; False if somebody else has."""
        t = s.schedules
        mine = sa.and_(
            t.c.repository_id == schedule.repository_id,
            t.c.manifest_path == schedule.manifest_path,
            t.c.handled == schedule.handled,
        )
        with self.write() as c:
            if c.execute(sa.update(t).where(mine).values(handled=slot)).rowcount != 1:
                return False
            self._add_event(c, event, jobs, now)
        return True
