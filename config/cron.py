"""Cron expressions: minute, hour, day, month and weekday, as crontab(5) has them, in UTC. Pure.

A day and a weekday that are both given mean either; a star leaves the choice to the other.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_FIELDS: tuple[tuple[str, int, int, tuple[str, ...]], ...] = (
    ("minute", 0, 59, ()),
    ("hour", 0, 23, ()),
    ("day", 1, 31, ()),
    ("month", 1, 12, ("", *_MONTHS)),
    ("weekday", 0, 7, _DAYS),  # both 0 and 7 are Sunday
)
_PART = re.compile(r"(\*|(?P<first>\w+)(-(?P<last>\w+))?)(/(?P<step>[0-9]{1,4}))?", re.ASCII)
_LONGEST_DAYS = 41 * 366  # a 29 February that is a Sunday comes after 40 years at the latest
_DAY_S = 86400


@dataclass(frozen=True)
class Cron:
    minutes: frozenset[int]
    hours: frozenset[int]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]  # 0 is Sunday
    any_day: bool
    any_weekday: bool

    def next_after(self, moment: float) -> float | None:
        """The first of its times after a moment, in unix seconds; None if it has none."""
        day = _day(moment)
        for _ in range(_LONGEST_DAYS):
            if self._on(day):
                for time in self._times(day):
                    if time > moment:
                        return time
            day += timedelta(days=1)
        return None

    def last_until(self, moment: float) -> float | None:
        """The newest of its times that is not after a moment; None if it has none."""
        day = _day(moment)
        for _ in range(_LONGEST_DAYS):
            if self._on(day):
                for time in reversed(list(self._times(day))):
                    if time <= moment:
                        return time
            day -= timedelta(days=1)
        return None

    def _on(self, day: date) -> bool:
        if day.month not in self.months:
            return False
        in_month, in_week = day.day in self.days, day.isoweekday() % 7 in self.weekdays
        if self.any_day or self.any_weekday:
            return in_month and in_week
        return in_month or in_week

    def _times(self, day: date) -> Iterator[float]:
        midnight = datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()
        for hour in sorted(self.hours):
            for minute in sorted(self.minutes):
                yield midnight + hour * 3600 + minute * 60


def parse_cron(text: str) -> Cron:
    """Raises ValueError, in words for a person."""
    fields = text.lower().split()
    if len(fields) != len(_FIELDS):
        raise ValueError("five cron fields: minute, hour, day, month and weekday")
    minutes, hours, days, months, weekdays = (
        _field(field, *about) for field, about in zip(fields, _FIELDS, strict=True)
    )
    cron = Cron(
        minutes,
        hours,
        days,
        months,
        frozenset(day % 7 for day in weekdays),
        any_day=fields[2].startswith("*"),
        any_weekday=fields[4].startswith("*"),
    )
    if cron.next_after(0.0) is None:
        raise ValueError("a day that comes at all")
    return cron


def due(crons: Sequence[str], handled: float, now: float) -> float | None:
    """The newest time of any of them that has come since `handled`; what was missed before it stays so."""
    times = [parse_cron(cron).last_until(now) for cron in crons]
    return max((time for time in times if time is not None and time > handled), default=None)


def next_time(crons: Sequence[str], now: float) -> float | None:
    times = [parse_cron(cron).next_after(now) for cron in crons]
    return min((time for time in times if time is not None), default=None)


def slot_name(time: float) -> str:
    return f"{datetime.fromtimestamp(time, UTC):%Y-%m-%dT%H:%MZ}"


def _day(moment: float) -> date:
    return datetime.fromtimestamp(moment // _DAY_S * _DAY_S, UTC).date()


def _field(text: str, name: str, low: int, high: int, names: tuple[str, ...]) -> frozenset[int]:
    chosen: set[int] = set()
    for part in text.split(","):
        match = _PART.fullmatch(part)
        if match is None:
            raise ValueError(f"a {name} such as {low}, {low}-{high} or */2")
        step = int(match["step"] or 1)
        first, last = low, high
        if match["first"] is not None:
            first = _value(match["first"], name, low, high, names)
            last = _value(match["last"], name, low, high, names) if match["last"] else first
            if match["step"] and not match["last"]:
                last = high
        if first > last or step < 1:
            raise ValueError(f"a {name} from {low} to {high}, the lower end first")
        chosen.update(range(first, last + 1, step))
    return frozenset(chosen)


def _value(text: str, name: str, low: int, high: int, names: tuple[str, ...]) -> int:
    value = names.index(text) if text in names else int(text) if text.isdecimal() and len(text) < 5 else -1
    if not low <= value <= high:
        raise ValueError(f"a {name} from {low} to {high}")
    return value
