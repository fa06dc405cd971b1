"""Cron times: the table of crontab(5), and properties against a search minute by minute."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainforge.config.cron import due, next_time, parse_cron, slot_name

MINUTE = 60.0


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("cron", "now", "after"),
    [
        ("* * * * *", "2026-11-21T12:00:30", "2026-11-21T12:01"),
        ("* * * * *", "2026-11-21T12:00", "2026-11-21T12:01"),
        ("0 3 * * 1", "2026-11-21T12:00", "2026-11-23T03:00"),
        ("0 3 * * mon", "2026-11-23T03:00", "2026-11-30T03:00"),
        ("*/20 9-17/4 * * *", "2026-11-21T09:41", "2026-11-21T13:00"),
        ("5/25 * * * *", "2026-11-21T09:06", "2026-11-21T09:30"),
        ("0 0 29 2 *", "2026-11-21T12:00", "2028-02-29T00:00"),
        ("0 0 29 2 *", "2096-03-01T00:00", "2104-02-29T00:00"),
        ("30 6 1,15 * *", "2026-12-31T23:59", "2027-01-01T06:30"),
        ("0 0 13 * 5", "2026-11-14T00:00", "2026-11-20T00:00"),  # either the 13th or a Friday
        ("0 0 */2 * 5", "2026-11-21T00:00", "2026-11-27T00:00"),  # a star leaves it to the other: both
        ("0 0 * JAN-mar 7", "2026-11-21T00:00", "2027-01-03T00:00"),
    ],
)
def test_the_next_time(cron: str, now: str, after: str) -> None:
    assert parse_cron(cron).next_after(at(now)) == at(after)


@pytest.mark.parametrize(
    ("cron", "words"),
    [
        ("* * * *", "five cron fields"),
        ("60 * * * *", "a minute from 0 to 59"),
        ("* 5-3 * * *", "the lower end first"),
        ("* * 0 * *", "a day from 1 to 31"),
        ("* * * foo *", "a month from 1 to 12"),
        ("* * * * 8", "a weekday from 0 to 7"),
        ("*/0 * * * *", "a minute from 0 to 59"),
        ("1,,2 * * * *", "a minute such as"),
        ("٣ * * * *", "a minute such as"),
        ("0 0 31 2,4 *", "a day that comes at all"),
    ],
)
def test_what_is_no_cron_expression(cron: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_cron(cron)


def numbers(low: int, high: int) -> st.SearchStrategy[str]:
    value = st.integers(low, high)
    steps = st.integers(1, high).map(lambda step: f"*/{step}")
    ranges = st.tuples(value, value).map(lambda ends: f"{min(ends)}-{max(ends)}")
    listed = st.lists(value.map(str) | ranges, min_size=1, max_size=3).map(",".join)
    return st.just("*") | steps | listed


CRONS = st.tuples(
    numbers(0, 59), numbers(0, 23), st.just("*") | numbers(1, 28), numbers(1, 12), numbers(0, 7)
).map(" ".join)
MOMENTS = st.floats(at("2020-01-01T00:00"), at("2036-01-01T00:00"))


@given(CRONS, MOMENTS)
@settings(max_examples=300, deadline=None)
def test_next_and_last_enclose_a_moment_and_meet(cron: str, moment: float) -> None:
    times = parse_cron(cron)
    after, until = times.next_after(moment), times.last_until(moment)
    assert after is not None
    assert until is not None
    assert until <= moment < after
    assert after % MINUTE == 0
    assert times.next_after(until) == after, "nothing lies between the two"
    assert times.last_until(after) == after
    assert times.last_until(after - 1) == until


@given(st.lists(CRONS, min_size=1, max_size=3), MOMENTS, st.floats(0, 40 * 86400))
@settings(max_examples=100, deadline=None)
def test_of_the_times_missed_only_the_newest_is_due_and_that_once(
    crons: list[str], now: float, slept: float
) -> None:
    slot = due(crons, now - slept, now)
    upcoming = next_time(crons, now)
    assert upcoming is not None
    if slot is None:
        first = next_time(crons, now - slept)
        assert first is not None
        assert first > now
        return
    assert now - slept < slot <= now
    assert due(crons, slot, now) is None
    assert due(crons, slot, upcoming) == upcoming


def test_a_slot_has_a_name() -> None:
    assert slot_name(at("2026-11-21T03:05")) == "2026-11-21T03:05Z"
