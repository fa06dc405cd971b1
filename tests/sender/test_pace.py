"""Turns of pushes to a repository at GitHub: never more than recommended, and nobody is passed over."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from trainforge.sender.pace import WINDOW_S, Pace


def test_a_burst_and_then_as_often_as_recommended() -> None:
    pace = Pace(6)
    assert [pace.wait("one", 100.0) for _ in range(6)] == [0.0] * 6
    assert pace.wait("one", 101.0) == 59.0
    assert pace.wait("one", 130.0) == 30.0, "asking again keeps the turn"
    assert pace.wait("two", 130.0) == 30.0, "another one has a turn of its own"
    assert pace.wait("two", 160.0) == 0.0
    assert pace.wait("one", 160.0) == 0.0


def test_a_turn_that_nobody_takes_holds_up_nobody_for_long() -> None:
    pace = Pace(1)
    assert pace.wait("one", 0.0) == 0.0
    assert pace.wait("gone", 0.0) == WINDOW_S
    assert pace.wait("two", 0.0) == 2 * WINDOW_S
    assert pace.wait("two", 80.0) == 0.0


@given(
    most=st.integers(1, 8),
    asked=st.lists(st.tuples(st.sampled_from("abcd"), st.floats(0, 30)), max_size=120),
)
def test_no_minute_has_more_than_recommended(most: int, asked: list[tuple[str, float]]) -> None:
    pace, now, pushed = Pace(most), 0.0, list[float]()
    for who, later in asked:
        now += later
        wait = pace.wait(who, now)
        assert 0 <= wait <= WINDOW_S * (1 + 4 / most), "each of the others has one turn before"
        if wait == 0:
            pushed.append(now)
    assert all(end - begin >= WINDOW_S for begin, end in zip(pushed, pushed[most:], strict=False))
