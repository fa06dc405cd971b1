"""Job ids: the same for the same, different for the different, and fit for the wire."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from trainforge.config.identity import job_id
from trainforge.config.messages import JobId

FIELD = st.text(st.characters(blacklist_characters="\0", blacklist_categories=("Cs",)), max_size=12)
FIELDS = st.tuples(FIELD, FIELD, FIELD, FIELD, FIELD, FIELD)


def make(fields: tuple[str, str, str, str, str, str]) -> str:
    repository, commit, path, blob, cell, rerun = fields
    return job_id(repository, commit, path, blob, cell=cell, rerun=rerun)


def test_an_id_never_changes() -> None:
    """Results are found by it: this very value must stand in every later version."""
    assert job_id("builtin:digits", "a" * 40, "trainforge.yaml", "b" * 40) == "exilh2ludwmpt2ewqnm6p3esxb"


@given(FIELDS, FIELDS)
def test_equal_fields_and_only_those_give_equal_ids(
    one: tuple[str, str, str, str, str, str], other: tuple[str, str, str, str, str, str]
) -> None:
    assert (make(one) == make(other)) == (one == other)


@given(FIELDS)
def test_ids_have_the_form_of_the_wire(fields: tuple[str, str, str, str, str, str]) -> None:
    TypeAdapter(JobId).validate_python(make(fields))


def test_text_cannot_move_from_one_field_to_the_next() -> None:
    ids = {job_id("ab", "c", "d", "e"), job_id("a", "bc", "d", "e"), job_id("a", "b", "cd", "e")}
    ids |= {job_id("a", "b", "c", "d", cell="e"), job_id("a", "b", "c", "d", rerun="e")}
    assert len(ids) == 5


def test_nul_is_refused() -> None:
    with pytest.raises(ValueError, match="NUL"):
        job_id("a\0b", "c", "d", "e")
