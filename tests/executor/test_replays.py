"""The same signed orders again and again, also by an executor that was started anew: one start each."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import pytest

from trainforge.config.errors import Conflict, TrainForgeError
from trainforge.config.messages import FencingToken, NodeKey, Order, Repository, RunOrder, StopOrder
from trainforge.config.trust import SigningKey, executor_id, sign_order, verify_order
from trainforge.executor.orders import OrderBook

SENDER, EXECUTOR = SigningKey.generate(), SigningKey.generate()
ME = executor_id(EXECUTOR.public)
REPLAYS, RESTARTS = 10_000, 100
RUN = RunOrder(
    repository=Repository(id="builtin:p", name="p", url="http://127.0.0.1/git/p.git"),
    ref="refs/heads/main", commit="a" * 40, manifest_path="trainforge.yaml", manifest_blob="b" * 40,
    project="p", nodes=1, processes_per_node=1, results_branch="r", lease_ttl=90,
)  # fmt: skip


def order(number: int, attempt: int, body: Any, token: int) -> tuple[Order, str]:
    node = NodeKey(job="abcdefghij234567"[number] * 26, attempt=attempt, rank=0)
    made = Order(
        id=f"{node}.{token}.{body.kind}",
        node=node,
        token=FencingToken(incarnation=1, number=token),
        body=body,
    )
    return made, sign_order(SENDER, sender=SENDER.id, executor=ME, order=made, now=time.time())


def test_ten_thousand_replays_across_a_hundred_restarts_start_nothing_again(tmp_path: Path) -> None:
    captured = []
    for number in range(10):
        captured.append(order(number, 1, RUN, token=number + 1))
        captured.append(order(number, 1, StopOrder(code="stopped", reason=""), token=number + 1))
    started: list[str] = []
    book = OrderBook(tmp_path, lambda node: started.append(str(node)))
    for made, token in captured:
        assert book.accept(_checked(token)), made.id
    # The first five are over and forgotten; the others have gone on to a second attempt.
    for made, _ in captured[:10:2]:
        book.forget(made.node)
    for number in range(5, 10):
        assert book.accept(_checked(order(number, 2, RUN, token=100 + number)[1]))
    before, known = list(started), book.known()
    chance = random.Random(3)  # noqa: S311 - to be repeated
    taken = refused = 0
    for round_number in range(RESTARTS):
        book = OrderBook(tmp_path, lambda node: started.append(str(node)))
        book.tidy()
        for _ in range(REPLAYS // RESTARTS):
            _, token = chance.choice(captured)
            try:
                taken += book.accept(_checked(token))
            except TrainForgeError as error:
                assert isinstance(error, Conflict), round_number
                refused += 1
    assert taken == 0
    assert refused > REPLAYS / 10
    assert started == before
    assert book.known() == known


def _checked(token: str) -> Order:
    keys = {SENDER.id: SENDER.public}
    return verify_order(token, sender=SENDER.id, keys=keys, executor=ME, now=time.time())


def test_an_order_is_good_for_its_own_claim_alone() -> None:
    made, _ = order(0, 1, RUN, token=1)
    answer = sign_order(
        SENDER, sender=SENDER.id, executor=ME, order=made, now=time.time(), challenge="c" * 22
    )
    keys = {SENDER.id: SENDER.public}
    for challenge in ("", "d" * 22, "c" * 21, "c" * 23):
        with pytest.raises(TrainForgeError, match="challenge"):
            verify_order(
                answer, sender=SENDER.id, keys=keys, executor=ME, now=time.time(), challenge=challenge
            )
