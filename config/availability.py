"""When a machine may be used: `Mon-Fri 18:00-08:00, Sat-Sun`, in the machine's own time. Pure.

Parts are separated by commas; each has days, hours or both. Hours that end before they begin last until
the next day. Nothing at all means always.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from functools import lru_cache
from typing import Annotated

from pydantic import AfterValidator, Field

DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_DAY, _WEEK = 24 * 60, 7 * 24 * 60
_PART = re.compile(
    r"(?:(?P<first>[a-z]{3})(?:-(?P<last>[a-z]{3}))?)?\s*(?:(?P<begin>\d\d?:\d\d)-(?P<end>\d\d?:\d\d))?",
    re.IGNORECASE,
)


@lru_cache(maxsize=1024)
def parse_available(text: str) -> tuple[tuple[int, int], ...]:
    """The windows as (first minute of the week, minutes long); none means always.

    Raises:
        ValueError: in words that name the part.
    """
    windows: list[tuple[int, int]] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        match = _PART.fullmatch(part)
        if match is None:
            raise ValueError(f"expected days and hours such as Mon-Fri 18:00-08:00, got {part!r}")
        begin, end = _minute(match["begin"] or "00:00"), _minute(match["end"] or "24:00")
        if begin == _DAY:
            raise ValueError(f"expected hours that begin before 24:00, got {part!r}")
        length = (end - begin) if end > begin else end + _DAY - begin
        windows += [(day * _DAY + begin, length) for day in _days(match["first"], match["last"])]
    return tuple(windows)


def closed_words(text: str, now: float, utc_offset: float) -> str:
    """Since it may not be used now, when it may again; empty when it may be used now."""
    windows = parse_available(text)
    there = datetime.fromtimestamp(now + utc_offset, UTC)
    minute = there.weekday() * _DAY + there.hour * 60 + there.minute
    if not windows or any((minute - begin) % _WEEK < length for begin, length in windows):
        return ""
    opens = min((begin for begin, _ in windows), key=lambda begin: (begin - minute) % _WEEK)
    day = "" if opens // _DAY == minute // _DAY else f"{DAYS[opens // _DAY]} "
    return f"available from {day}{opens % _DAY // 60:02}:{opens % 60:02}"


def _understood(text: str) -> str:
    parse_available(text)
    return text


Available = Annotated[str, Field(max_length=500), AfterValidator(_understood)]


def _days(first: str | None, last: str | None) -> list[int]:
    if first is None:
        return list(range(7))
    begin = _day(first)
    count = (_day(last) - begin) % 7 if last else 0
    return [(begin + step) % 7 for step in range(count + 1)]


def _day(text: str) -> int:
    if text.title() not in DAYS:
        raise ValueError(f"expected a day such as Mon, got {text!r}")
    return DAYS.index(text.title())


def _minute(text: str) -> int:
    hours, minutes = (int(part) for part in text.split(":"))
    if minutes > 59 or hours * 60 + minutes > _DAY:
        raise ValueError(f"expected a time such as 18:00, got {text!r}")
    return hours * 60 + minutes
