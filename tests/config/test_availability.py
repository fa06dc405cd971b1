"""Windows of time in which a machine may be used."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainforge.config.availability import DAYS, closed_words, parse_available

MONDAY = datetime(2026, 11, 23, tzinfo=UTC)


def at(day: str, time: str) -> float:
    hours, minutes = time.split(":")
    return (MONDAY + timedelta(days=DAYS.index(day), hours=int(hours), minutes=int(minutes))).timestamp()


@pytest.mark.parametrize(
    ("text", "day", "time", "words"),
    [
        ("", "Wed", "12:00", ""),
        ("Mon-Fri 18:00-08:00", "Mon", "07:59", "available from 18:00"),  # Sunday's night is not in it
        ("Mon-Fri 18:00-08:00", "Tue", "07:59", ""),
        ("Mon-Fri 18:00-08:00", "Sat", "07:59", ""),
        ("Mon-Fri 18:00-08:00", "Sat", "08:00", "available from Mon 18:00"),
        ("mon-fri 18:00-08:00, sat-sun", "Sat", "12:00", ""),
        ("Sat-Sun", "Fri", "23:59", "available from Sat 00:00"),
        ("Fri-Mon", "Sun", "12:00", ""),
        ("9:00-17:00", "Sun", "17:00", "available from Mon 09:00"),
        ("00:00-24:00", "Sun", "23:59", ""),
    ],
)
def test_when_it_may_be_used(text: str, day: str, time: str, words: str) -> None:
    assert closed_words(text, at(day, time), 0) == words


def test_it_is_the_machines_own_time_that_counts() -> None:
    noon = at("Wed", "12:00")
    assert closed_words("13:00-14:00", noon, 0) == "available from 13:00"
    assert closed_words("13:00-14:00", noon, 3600) == ""


@pytest.mark.parametrize(
    "text", ["always", "Mon-Fry", "25:00-26:00", "18:00", "Mon 18:70-19:00", "Mon Tue", "24:00-00:00"]
)
def test_what_is_not_understood_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        parse_available(text)


@given(st.sampled_from(DAYS), st.integers(0, 1439), st.integers(0, 1440), st.integers(0, 10_079))
def test_it_opens_when_it_says(day: str, begin: int, end: int, minute: int) -> None:
    text = f"{day} {begin // 60:02}:{begin % 60:02}-{end // 60:02}:{end % 60:02}"
    words = closed_words(text, MONDAY.timestamp() + minute * 60, 0)
    if words:
        said = words.removeprefix("available from ").split()
        there = said[0] if len(said) == 2 else DAYS[minute // 1440]
        assert closed_words(text, at(there, said[-1]), 0) == ""
