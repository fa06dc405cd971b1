"""Batches: what comes together is done together, and none pays for another."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pytest

from trainforge.sender.batches import Batches


def test_what_comes_while_a_batch_is_done_is_the_next_batch() -> None:
    seen: list[list[int]] = []
    busy, go_on = threading.Event(), threading.Event()

    def work(pieces: Sequence[int]) -> list[int | Exception]:
        seen.append(list(pieces))
        busy.set()
        go_on.wait(10)
        return [piece * 2 for piece in pieces]

    async def run() -> list[int]:
        batches: Batches[int, int] = Batches("test", work)
        first = asyncio.create_task(batches.do(1))
        await asyncio.to_thread(busy.wait, 10)
        others = [asyncio.create_task(batches.do(number)) for number in (2, 3)]
        await asyncio.sleep(0)
        go_on.set()
        return await asyncio.gather(first, *others)

    assert asyncio.run(run()) == [2, 4, 6]
    assert seen == [[1], [2, 3]]


def test_a_piece_that_breaks_the_work_does_not_break_its_neighbours() -> None:
    def work(pieces: Sequence[int]) -> list[int | Exception]:
        if 2 in pieces:
            raise ValueError("two")
        return [KeyError(piece) if piece == 3 else piece for piece in pieces]

    async def run() -> list[int | BaseException]:
        batches: Batches[int, int] = Batches("test", work)
        return await asyncio.gather(*map(batches.do, (1, 2, 3)), return_exceptions=True)

    one, two, three = asyncio.run(run())
    assert one == 1
    with pytest.raises(ValueError, match="two"):
        raise two  # type: ignore[misc]
    assert isinstance(three, KeyError)
