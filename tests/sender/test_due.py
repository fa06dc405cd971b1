"""What is due without anybody saying so."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from trainforge.sender.due import Due


def test_a_job_is_due_once_at_its_newest_moment() -> None:
    due = Due()
    assert due.first() is None
    due.put("a", 10.0)
    due.put("b", 5.0)
    due.put("a", 20.0)
    due.put("c", 1.0)
    due.put("c", None)
    assert due.first() == 5.0
    assert due.take(4.9) == set()
    assert due.take(10.0) == {"b"}
    assert due.first() == 20.0
    assert due.take(20.0) == {"a"}
    assert due.first() is None
    assert due.take(1e9) == set()


@given(st.lists(st.tuples(st.sampled_from("abcde"), st.none() | st.integers(0, 20)), max_size=40))
def test_it_is_what_a_dictionary_of_moments_would_be(puts: list[tuple[str, int | None]]) -> None:
    due, known = Due(), dict[str, int]()
    for job, moment in puts:
        due.put(job, moment)
        known.pop(job, None)
        if moment is not None:
            known[job] = moment
        assert due.first() == min(known.values(), default=None)
    for now in range(21):
        ready = {job for job, moment in known.items() if moment <= now}
        assert due.take(now) == ready
        known = {job: moment for job, moment in known.items() if job not in ready}
