"""Every parser over its seeds and over variations of them; every address over what its description allows."""

from __future__ import annotations

import time
from pathlib import Path

import httpx2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuzz.api import live_api, round_of
from fuzz.entries import ENTRIES
from trainforge.sender.access import ACCESS, PUBLIC
from trainforge.sender.operations import OPERATIONS


@pytest.mark.parametrize("name", ENTRIES)
def test_a_parser_gives_a_value_or_its_own_error_and_soon(name: str) -> None:
    entry = ENTRIES[name]

    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
    @given(
        st.binary(max_size=300)
        | st.text(max_size=200).map(str.encode)
        | st.builds(_mutated, st.sampled_from(entry.seeds), st.integers(0, 4000), st.binary(max_size=9))
    )
    def vary(data: bytes) -> None:
        entry.run(data)

    for seed in entry.seeds:
        began = time.process_time()
        entry.run(seed)
        assert time.process_time() - began < 1
    vary()


def _mutated(seed: bytes, at: int, said: bytes) -> bytes:
    at %= len(seed) + 1
    return seed[:at] + said + seed[at + len(said) // 2 :]


def test_the_sender_answers_as_described_whatever_it_is_asked(tmp_path: Path) -> None:
    with live_api(tmp_path) as live:
        assert round_of(live, examples=2, seed=1) == len(OPERATIONS) - 1


def test_nobody_unknown_is_answered_but_by_the_public_addresses(tmp_path: Path) -> None:
    with live_api(tmp_path) as live, httpx2.Client(base_url=live.site.url, timeout=30) as client:
        for label, operation in live.operations():
            path = operation.path
            for part in ("{job}", "{token}"):
                path = path.replace(part, live.job if part == "{job}" else "1")
            row = next(row for row in OPERATIONS if row.replace(":int", "").replace(":path", "") == label)
            answer = client.request(operation.method, path, content=b"{}")
            assert (answer.status_code == 401) == (ACCESS[row] != PUBLIC), label
